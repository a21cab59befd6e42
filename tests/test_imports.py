"""Imports run one way, from the mathematics up to the commands: one table holds it for every package."""

import ast
import functools
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import norton_det

PACKAGE = Path(norton_det.__file__).parent
HEAVY = ("torchvision", "detectron2", "cv2", "pycocotools", "safetensors")
CORE = ("utils", "decomposition", "models", "compression", "compression.search")
# package -> the packages that its modules may import, beside itself
MAY_IMPORT = {
    "utils": "",
    "decomposition": "utils",
    "models": "utils decomposition",
    "checkpoint": "utils models",
    "compression": "utils decomposition models",
    "compression.search": "utils decomposition models compression",
    "data": "utils models",
    "classification": "utils models checkpoint compression data",
    "deploy": "utils decomposition models checkpoint data",
    "d2": "utils decomposition models checkpoint compression compression.search data classification deploy",
    "tv": "utils decomposition models checkpoint compression compression.search data classification deploy",
    "live": "utils models data deploy",
    "commands.parser": "utils",
    "commands.options": "utils models data classification commands.parser",  # they load no PyTorch, see below
    "commands": "utils decomposition models checkpoint compression compression.search data classification deploy"
    " d2 tv live commands.parser commands.options",
}


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


def module_name(file: Path, root: Path = PACKAGE) -> str:
    """The dotted name of a module's file."""
    parts = [root.name, *file.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def modules(root: Path = PACKAGE) -> dict[str, Path]:
    """All modules below a package by name."""
    return {module_name(file, root): file for file in sorted(root.rglob("*.py"))}


def imported_by(file: Path, root: Path = PACKAGE) -> set[str]:
    """Absolute names of the modules that a file imports, anywhere in it.

    ``from package import name`` counts as the module ``package.name`` where there is one.
    """
    names: set[str] = set()
    package = [root.name, *file.relative_to(root).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            whole = {f"{module}.{alias.name}" for alias in node.names}
            inside = whole & set(modules(root))
            names |= inside | ({module} if len(inside) < len(whole) else set())
    return names


def package_of(name: str) -> str:
    """The package of ``MAY_IMPORT`` that a module of ``norton_det`` belongs to; empty for the root's own."""
    inner = name.partition(".")[2]
    return max((key for key in MAY_IMPORT if inner == key or inner.startswith(key + ".")), key=len, default="")


def arrows_up() -> dict[tuple[str, str], str]:
    """Imports that the table does not allow: (package, package) -> the first module that does it."""
    arrows: dict[tuple[str, str], str] = {}
    for name, file in modules().items():
        here = package_of(name)
        for target in imported_by(file):
            if not here or not target.startswith("norton_det."):
                continue
            there = package_of(target)
            if there != here and there not in MAY_IMPORT[here].split():
                arrows.setdefault((here, there or target), f"{name} imports {target}")
    return arrows


def test_every_package_is_in_the_table():
    folders = {file.parent.relative_to(PACKAGE).as_posix().replace("/", ".") for file in PACKAGE.rglob("*.py")}
    assert folders - {"."} | {"commands.parser"} == set(MAY_IMPORT)  # one module, which parsers of commands need


def test_the_table_itself_has_no_circle():
    graph = {package: set(may.split()) for package, may in MAY_IMPORT.items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(MAY_IMPORT)


def test_imports_run_one_way():
    assert not arrows_up()


def test_no_module_imports_itself_over_others():
    graph = {name: imported_by(file) & set(modules()) - {name} for name, file in modules().items()}
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(graph)


def test_nothing_imports_tools_or_tests():
    for name, file in modules().items():
        assert not {target.partition(".")[0] for target in imported_by(file)} & {"tools", "tests"}, name


def test_the_stacks_do_not_know_each_other():
    for name, file in modules().items():
        if package_of(name) == "tv":
            assert "detectron2" not in {target.partition(".")[0] for target in imported_by(file)}, name


def test_no_module_is_long():
    long = {name: len(file.read_text().splitlines()) for name, file in modules().items()}
    assert {name: lines for name, lines in long.items() if lines > 300} == {}


def test_the_package_and_its_core_load_no_detection_stack():
    core = [name for name in modules() if package_of(name) in CORE]
    assert len(core) > 40
    assert loaded_by("norton_det") == set()
    assert loaded_by(*core) == set()


def test_the_core_needs_pytorch_numpy_and_tqdm():
    later = {"norton_det.utils.files": {"filelock"}, "norton_det.utils.plots": {"matplotlib"}}  # when they are called
    for name, file in modules().items():
        if package_of(name) in CORE:
            roots = {target.partition(".")[0] for target in imported_by(file)} - set(sys.stdlib_module_names)
            assert roots <= {"norton_det", "torch", "numpy", "tqdm"} | later.get(name, set()), name


def test_the_package_and_the_parsers_load_no_torch():
    options = [name for name in modules() if package_of(name) == "commands.options"]
    parsers = ["norton_det", "norton_det.commands.parser", "norton_det.commands.main", *options]
    assert len(parsers) > 15 and loaded_by(*parsers, among=("torch", *HEAVY)) == set()
    assert loaded_by("norton_det.decomposition.cp", among=("torch",)) == {"torch"}


def test_names_of_the_package():
    """Each public name is what its module defines, in whatever order modules are imported; type checkers see all."""
    code = (
        "import sys, norton_det.compression.resnet, norton_det.compression.search.search, norton_det as nd\n"
        "from norton_det import fuse, tune\nimport norton_det.deploy.tune\n"
        "assert set(nd.__all__) <= set(dir(nd)) and len(nd.__all__) > 20\n"
        "for name in nd.__all__:\n"
        "    value = getattr(nd, name)\n"
        "    assert value is getattr(sys.modules[value.__module__], name), name\n"
        "assert nd.fuse is fuse and nd.tune is tune and not hasattr(nd, 'no_such_name')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    typed = {alias.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed >= set(norton_det.__all__)


def test_spec_needs_the_standard_library_only():
    outside = {name.partition(".")[0] for name in imported_by(PACKAGE / "models/spec.py")} - set(
        sys.stdlib_module_names
    )
    assert outside == {"norton_det"}


def test_these_checks_can_fail(tmp_path):
    (tmp_path / "guilty.py").write_text("import norton_det.decomposition.cp\nimport torchvision.ops\n")
    assert loaded_by("guilty", path=str(tmp_path)) == {"torchvision"}
    house = tmp_path / "house"
    (house / "upper").mkdir(parents=True)
    (house / "__init__.py").write_text("")
    (house / "upper/__init__.py").write_text("from .. import lower\n")
    (house / "lower.py").write_text("def work():\n    import json\n\nfrom house.upper import x\nimport os.path\n")
    assert imported_by(house / "upper/__init__.py", house) == {"house.lower"}
    assert imported_by(house / "lower.py", house) == {"house.upper", "os.path", "json"}
    graph = {name: imported_by(file, house) & set(modules(house)) for name, file in modules(house).items()}
    with pytest.raises(graphlib.CycleError):
        list(graphlib.TopologicalSorter(graph).static_order())
    assert package_of("norton_det.compression.search.costs") == "compression.search"
    assert package_of("norton_det.compression.prune") == "compression" and package_of("norton_det.__main__") == ""


def table() -> str:
    """Each package in Markdown: modules, lines, and what it imports."""
    rows = {package: [0, 0, set()] for package in ("", *MAY_IMPORT)}
    for name, file in modules().items():
        row = rows[package_of(name)]
        row[0] += 1
        row[1] += len(file.read_text(encoding="utf-8").splitlines())
        row[2] |= {package_of(target) for target in imported_by(file) if target.startswith("norton_det.")}
    lines = ["| package | modules | lines | imports |", "|---|---:|---:|---|"]
    for package, (count, length, targets) in rows.items():
        others = " ".join(sorted(targets - {package, ""}))
        lines.append(f"| {package or 'norton_det'} | {count} | {length} | {others} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
