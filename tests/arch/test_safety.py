"""Nothing read from disk or from a configuration may run code."""

import ast

import yaml
from arch.sources import ROOT, code_files, imported_modules, name_of, tree

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}
UNSAFE_CALLS = {
    "os.system": "use subprocess with a list",
    "os.popen": "use subprocess with a list",
    "yaml.load": "use yaml.safe_load",
    "yaml.unsafe_load": "use yaml.safe_load",
    "hydra.utils.instantiate": "use a closed registry",
    "instantiate": "use a closed registry",
}
REFUSES_TARGETS = "distllm/config/keys.py"


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe_call(node):
    """Say what is wrong with a call, or return an empty string."""
    name = dotted(node.func)
    options = {keyword.arg: keyword.value for keyword in node.keywords}
    true = {key for key, value in options.items() if isinstance(value, ast.Constant) and value.value is True}
    if name in UNSAFE_BUILTINS:
        return f"{name}() runs code"
    if name in UNSAFE_CALLS:
        return f"{name}: {UNSAFE_CALLS[name]}"
    if name == "torch.load" and "weights_only" not in true:
        return "torch.load without weights_only=True unpickles"
    if "allow_pickle" in true or "trust_remote_code" in true or "shell" in true:
        return f"{name} with allow_pickle, trust_remote_code or shell"
    return "use a filter of tarfile" if name.endswith(".extractall") and "filter" not in options else ""


def findings(module):
    return [
        f"line {node.lineno}: {problem}"
        for node in ast.walk(module)
        if isinstance(node, ast.Call) and (problem := unsafe_call(node))
    ]


def test_the_finder_finds():
    bad = """
torch.load(path)
torch.load(path, weights_only=False)
eval(text)
os.system(text)
yaml.load(text)
np.load(path, allow_pickle=True)
subprocess.run(text, shell=True)
archive.extractall(path)
"""
    assert len(findings(ast.parse(bad))) == 8
    good = (
        "torch.load(p, weights_only=True); model.eval(); re.compile('a'); torch.compile(m); yaml.safe_load(t)"
    )
    assert findings(ast.parse(good)) == []


def test_no_code_runs_what_it_reads():
    bad = [f"{name_of(path)} {finding}" for path in code_files() for finding in findings(tree(path))]
    assert not bad


def test_no_module_that_unpickles_is_imported():
    bad = [
        f"{name_of(path)}:{line} imports {module}"
        for path in code_files()
        for line, module in imported_modules(path)
        if module.split(".")[0] in UNSAFE_MODULES
    ]
    assert not bad


def test_configurations_name_no_code():
    named = [name_of(path) for path in code_files() if "_target_" in path.read_text(encoding="utf-8")]
    assert named == [REFUSES_TARGETS]
    assert not [path for path, text in yaml_files() if "_target_" in text]


def yaml_files():
    files = [
        (name_of(path), path.read_text(encoding="utf-8")) for path in sorted((ROOT / "conf").rglob("*.y*ml"))
    ]
    assert len(files) >= 20, f"only {len(files)} configuration files found"
    return files


def leaves(value, path=""):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, path)
    else:
        yield path, value


def test_every_configuration_file_is_plain_yaml_without_auto():
    for name, text in yaml_files():
        content = yaml.safe_load(text)
        assert isinstance(content, dict | None), name
        for path, value in leaves(content or {}):
            settled = value != "auto" or path.endswith("resume")
            assert settled, f"{name}: {path} is auto: derive it, so that a reader sees the number"
