"""Run the kernels with one thing in their source wrong."""

import importlib
import importlib.util
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mutated(module_name, original, wrong):
    """Replace the only ``original`` in the module's source by ``wrong``, wherever its functions are used."""
    module = importlib.import_module(f"distllm.kernels.{module_name}")
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert source.count(original) == 1, f"{module_name} holds {original!r} {source.count(original)} times"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "mutant.py"
        path.write_text(source.replace(original, wrong), encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"mutant_of_{module_name}", path)
        mutant = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = mutant  # dataclasses look their module up
        spec.loader.exec_module(mutant)
        undo = _replace_everywhere(module, mutant)
        try:
            yield
        finally:
            for user, name, stock in undo:
                setattr(user, name, stock)
            del sys.modules[spec.name]


def _replace_everywhere(module, mutant):
    """Point every user of the module's functions at the mutant's; return what undoes it."""
    undo = []
    users = [m for name, m in list(sys.modules.items()) if name.startswith("distllm.kernels.")]
    for name, stock in list(vars(module).items()):
        kernel = getattr(stock, "fn", stock)
        if not callable(kernel) or getattr(kernel, "__module__", None) != module.__name__:
            continue
        for user in users:
            for alias, value in list(vars(user).items()):
                if value is stock:
                    undo.append((user, alias, stock))
                    setattr(user, alias, getattr(mutant, name))
    assert undo, f"nothing uses {module.__name__}"
    return undo
