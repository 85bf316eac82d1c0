"""The rules of docs/architecture.md about who may import whom, and what no file may do; read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "FasterRCNN"
ROOT_MODULES = sorted(ROOT.glob("*.py"))
COMMANDS = [file for file in ROOT_MODULES if '__name__ == "__main__"' in file.read_text(encoding="utf-8")]
MODULES = sorted(PACKAGE.rglob("*.py"))
SOURCES = ROOT_MODULES + MODULES + [
    file for folder in ("benchmarks", "demo", "tools") for file in sorted((ROOT / folder).rglob("*.py"))]

# A part of FasterRCNN -> what it may import of FasterRCNN.
MAY_IMPORT = {
    "masks": set(),
    "structures": {"structures", "masks"},
    "evaluation": {"evaluation", "metrics"},
    "report": {"report", "datasets", "imaging", "structures", "masks", "metrics", "evaluation"},
    "voc_evaluation": {"evaluation"},
    "metrics": set(),
    "ops": {"ops"},
    "modeling": {"modeling", "ops"},
    "imaging": {"imaging", "structures", "masks"},
    "foreign": {"foreign", "datasets", "engine"},
    "datasets": {"datasets", "imaging", "structures", "masks"},
    "loading": {"loading", "datasets", "imaging", "structures", "masks"},
    "engine": {"engine", "modeling", "ops", "imaging", "structures", "masks"},
}
TENSORFLOW_PARTS = {"ops", "modeling", "engine"}
TENSORFLOW = {"tensorflow", "tensorpack", "horovod", "keras"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "marshal", "shelve", "cloudpickle"}
UNSAFE_CALLS = {"eval", "exec", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"}

pytestmark = pytest.mark.skipif(not COMMANDS, reason="no sources beside the tests")


def names(files):
    return pytest.mark.parametrize("file", files, ids=[str(file.relative_to(ROOT)) for file in files])


def part(file):
    """FasterRCNN/ops/boxes.py -> ops; FasterRCNN/__init__.py -> ''."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imports(file, nodes=None):
    """Full names of what a file imports: 'from ..ops import nms' in FasterRCNN/modeling is FasterRCNN.ops.nms."""
    package = file.parent.relative_to(ROOT).parts
    for node in ast.walk(parse(file)) if nodes is None else nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_import_time(node):
    """The nodes of a module that run when it is imported: everything outside functions and TYPE_CHECKING."""
    for child in ast.iter_child_nodes(node):
        is_for_checkers = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_for_checkers and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from at_import_time(child)


def parse(file):
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def unsafe(tree):
    """What in a syntax tree could run code that stands in data."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in UNSAFE_CALLS:
            yield f"{ast.unparse(node.func)}() in line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            yield f"allow_pickle in line {node.value.lineno}"
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            yield from (f"import of {module}" for module in modules if module.split(".")[0] in UNSAFE_MODULES)


@names(MODULES)
def test_parts_import_downwards_only(file):
    allowed = MAY_IMPORT.get(part(file), set())
    inside = {name.split(".")[1] for name in imports(file) if name.startswith("FasterRCNN.")}
    assert inside <= allowed, f"{part(file)} may import only {sorted(allowed)} of FasterRCNN"


@names(MODULES)
def test_nothing_inside_imports_a_command(file):
    outside = {name.split(".")[0] for name in imports(file)}
    assert not outside & {file.stem for file in ROOT_MODULES}


@names([file for file in MODULES if file != PACKAGE / "modeling" / "build.py"])
def test_only_build_reads_cfg(file):
    found = [node.lineno for node in ast.walk(parse(file))
             if "cfg" in (getattr(node, "id", None), getattr(node, "arg", None), getattr(node, "attr", None))]
    assert not found, f"cfg in lines {found}: take numbers and callables as keyword arguments"


@names([file for file in MODULES if part(file) not in TENSORFLOW_PARTS])
def test_host_parts_do_not_know_tensorflow(file):
    assert not {name.split(".")[0] for name in imports(file)} & TENSORFLOW


@names(ROOT_MODULES)
def test_root_modules_import_tensorflow_only_inside_functions(file):
    assert not {name.split(".")[0] for name in imports(file, at_import_time(parse(file)))} & TENSORFLOW


@names(SOURCES)
def test_nothing_runs_code_from_data(file):
    assert not list(unsafe(parse(file)))


@pytest.mark.parametrize("text", [
    "eval('1')", "exec(x)", "yaml.load(f)", "np.load(f, allow_pickle=True)", "import pickle", "from dill import load"])
def test_the_search_finds_what_it_is_for(text):
    assert len(list(unsafe(ast.parse(text)))) == 1


def test_the_search_leaves_harmless_code_alone():
    tree = ast.parse("import eval\nyaml.safe_load(f)\nnp.load(f, allow_pickle=False)\nvariable.eval()\n")
    assert not list(unsafe(tree))


HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
sys.path.insert(0, ".")
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    loaded = sorted({"tensorflow", "tensorpack", "keras"} & set(sys.modules))
    sys.exit(stop.code or (f"loaded {loaded}" if loaded else 0))
sys.exit("did not exit")
"""


@names(COMMANDS)
def test_help_loads_no_tensorflow_through_any_import(file):
    done = subprocess.run([sys.executable, "-c", HELP, file.name], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@names(COMMANDS)
def test_python_without_the_packages_gets_one_line(file):
    """-S leaves out site-packages: a user who has not activated .venv."""
    done = subprocess.run([sys.executable, "-S", file.name, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert "make setup" in done.stderr
    assert "source .venv/bin/activate" in done.stderr
