import subprocess
import sys

SCRIPT = """
import importlib, pkgutil, sys
sys.modules["torch"] = None  # any import of it fails
import distllm.data
names = [module.name for module in pkgutil.walk_packages(distllm.data.__path__, "distllm.data.")]
for name in names:
    importlib.import_module(name)
print(len(names), *sorted(name for name in sys.modules if name in ("transformers", "deepspeed", "wandb")))
"""


def test_no_module_of_data_needs_torch():
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    count, *heavy = result.stdout.split()
    assert int(count) >= 13
    assert heavy == []
