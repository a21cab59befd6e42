"""Imports run one way: the core needs torch alone, the adapters are apart, nothing imports commands or tools."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import norton_det

PACKAGE = Path(norton_det.__file__).parent
CORE = sorted(module.name for module in pkgutil.iter_modules([str(PACKAGE)]) if not module.ispkg)
HEAVY = ("torchvision", "detectron2", "cv2")
# each module of the core may know only those before it
ORDER = [
    *(
        "errors",
        "architecture",
        "presets",
        "number_list",
        "spec",
        "als",
        "cp",
        "saliency",
        "layers",
        "patches",
        "surgery",
        "fuse",
        "resnet",
        "moments",
        "cp_output",
        "calibration",
        "channels",
    ),
    *("reconstruct", "prune", "report", "compress", "detector_fit", "detector_report", "detector"),
    *("classify", "recipe", "finetune"),
    *("forms", "tune_report", "tune"),
    *("cost_model", "error_curves", "effect", "sensitivity", "allocate", "latency", "subject", "search"),
]


def loaded_by(*modules: str, path: str | None = None, among: tuple[str, ...] = HEAVY) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after importing the modules."""
    code = (
        "import importlib, sys\n"
        f"sys.path[:0] = {[path] if path else []!r}\n"
        f"for name in {list(modules)!r}: importlib.import_module(name)\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split()) & set(among)


def imported_by(file: Path) -> set[str]:
    """All absolute names that a file imports, anywhere in it."""
    names: set[str] = set()
    package = ["norton_det", *file.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def test_the_package_and_its_core_load_no_detection_stack():
    assert len(CORE) > 10
    assert loaded_by("norton_det") == set()
    assert loaded_by(*(f"norton_det.{name}" for name in CORE)) == set()


def test_the_package_and_the_parsers_load_no_torch():
    options = (f"norton_det.commands.options.{file.stem}" for file in (PACKAGE / "commands/options").glob("[a-z]*.py"))
    modules = ["norton_det", "norton_det.cli", "norton_det.commands.main", *options]
    assert len(modules) > 15 and loaded_by(*modules, among=("torch", *HEAVY)) == set()
    assert loaded_by("norton_det.cp", among=("torch",)) == {"torch"}


def test_names_of_the_package():
    """Each public name is what its module defines, in whatever order modules are imported."""
    code = (
        "import sys, typing, norton_det.compress, norton_det.search, norton_det as nd\n"
        "from norton_det import fuse, tune\nimport norton_det.tune\n"
        "assert set(nd.__all__) == set(nd._HOMES) and set(nd.__all__) <= set(dir(nd))\n"
        "for name, home in nd._HOMES.items():\n"
        "    assert getattr(nd, name) is getattr(sys.modules[f'norton_det.{home}'], name), name\n"
        "assert nd.fuse is fuse and nd.tune is tune and not hasattr(nd, 'no_such_name')\n"
        "nd.compress = 3\nassert nd.compress == 3\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_that_check_can_fail(tmp_path):
    (tmp_path / "guilty.py").write_text("import norton_det.cp\nimport torchvision.ops\n")
    assert loaded_by("guilty", path=str(tmp_path)) == {"torchvision"}


def test_imported_by_resolves_relative_names():
    assert "norton_det.errors.InputError" in imported_by(PACKAGE / "cp.py")
    adapters = set().union(*map(imported_by, (PACKAGE / "d2").glob("*.py")))
    assert any(is_within(name, "norton_det.resnet") for name in adapters)  # from ..resnet import


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    names, place = imported_by(file), file.relative_to(PACKAGE).parts[0]
    assert not any(is_within(name, "tools") or is_within(name, "tests") for name in names)
    if place not in ("commands", "__main__.py"):
        assert not any(is_within(name, "norton_det.commands") for name in names)
    if place == "d2":
        assert not any(is_within(name, "norton_det.tv") for name in names)
    if place == "tv":
        assert not any(is_within(name, "norton_det.d2") or is_within(name, "detectron2") for name in names)


@pytest.mark.parametrize("module", ORDER)
def test_the_core_is_layered(module):
    names = imported_by(PACKAGE / f"{module}.py")
    for above in ORDER[ORDER.index(module) + 1 :]:
        assert not any(is_within(name, f"norton_det.{above}") for name in names), above


def test_spec_needs_the_standard_library_only():
    outside = {name.partition(".")[0] for name in imported_by(PACKAGE / "spec.py")} - set(sys.stdlib_module_names)
    assert outside == {"norton_det"}
