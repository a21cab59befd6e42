"""What is shipped: the files of a wheel and of a source distribution, the console script, the extras."""

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

import norton_det
from tests import REPOSITORY

NAME = f"norton_det-{norton_det.__version__}"
SHIPPED = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "SECURITY.md")
SHIPPED += ("CONTRIBUTING.md", "constraints.txt", "pyproject.toml", "setup.cfg", "ruff.toml")


def files_of(folder: str, *endings: str) -> set[str]:
    """Files of the repository below a folder, by their names from its root."""
    found = (path for path in (REPOSITORY / folder).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(REPOSITORY).as_posix() for path in found if not endings or path.suffix in endings}


def build(kind: str, source: Path, target: Path) -> Path:
    """A wheel or sdist, by the build backend itself, which nothing is downloaded for."""
    code = f"import sys\nfrom setuptools.build_meta import build_{kind}\nbuild_{kind}(sys.argv[1])"
    # torch must not be needed to read the version
    (target / "hidden").mkdir(exist_ok=True)
    (target / "hidden" / "torch.py").write_text("raise SystemExit('torch is imported')")
    environment = os.environ | {"PYTHONPATH": str(target / "hidden")}
    command = [sys.executable, "-c", code, str(target)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(target.glob("*.whl" if kind == "wheel" else "*.tar.gz"))


def not_shipped(folder: str, names: list[str]) -> set[str]:
    """Products of building and running, and prepared data."""
    products = {name for name in names if name.startswith(".") or name.endswith(".egg-info") or name == "__pycache__"}
    if Path(folder) == REPOSITORY:
        return products | {"build", "dist", "output", "outputs"} & set(names)
    inner = {name for name in names if (Path(folder) / name).is_dir()}
    return products | (inner if Path(folder) == REPOSITORY / "datasets" else set())


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    pytest.importorskip("setuptools", reason="no setuptools: a distribution cannot be built")
    copy = tmp_path_factory.mktemp("copy") / "source"
    shutil.copytree(REPOSITORY, copy, ignore=not_shipped, symlinks=True)
    return build("sdist", copy, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the source distribution: what that lacks is missed here."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / NAME, tmp_path_factory.mktemp("wheel"))


def test_the_source_distribution_is_a_clone_without_history(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert set(SHIPPED) <= names
    wanted = files_of("norton_det", ".py", ".txt", ".html", ".js", ".css", ".typed") | files_of("configs", ".yaml")
    wanted |= files_of("tests", ".py") | files_of("tools", ".py") | files_of("docs")
    wanted |= {f"datasets/{path.name}" for path in (REPOSITORY / "datasets").iterdir() if path.is_file()}
    assert not wanted - names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_the_wheel_has_all_that_runs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = f"{NAME}.dist-info/"
    package = files_of("norton_det", ".py", ".txt", ".html", ".js", ".css", ".svg", ".typed")
    package |= {f"norton_det/{name}" for name in files_of("configs", ".yaml")}
    assert {"norton_det/py.typed", "norton_det/configs/norton_mask_rcnn.yaml"} <= package
    assert any(name.startswith("norton_det/live/page/") for name in package) and len(package) > 150
    assert {name for name in names if not name.startswith(info)} == package
    assert {f"{info}licenses/LICENSE", f"{info}entry_points.txt"} <= names
    assert wheel.name == f"{NAME}-py3-none-any.whl"


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read(f"{NAME}.dist-info/METADATA").decode())
        scripts = configparser.ConfigParser()
        scripts.read_string(archive.read(f"{NAME}.dist-info/entry_points.txt").decode())
    assert metadata["Version"] == norton_det.__version__
    extras = {"cam", "demo", "dev", "onnx", "opencv", "opencv-headless", "openvino", "serve"}
    assert set(metadata.get_all("Provides-Extra")) == extras
    assert dict(scripts["console_scripts"]) == {"norton-det": "norton_det.commands.main:entry"}


def test_extras_have_the_packages_that_messages_name(wheel):
    from norton_det.utils.extras import MENDS, PACKAGES

    with zipfile.ZipFile(wheel) as archive:
        metadata = HeaderParser().parsestr(archive.read(f"{NAME}.dist-info/METADATA").decode())
    assert all("pip install" in how for how in MENDS.values())
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" in line]
    for module, packages in PACKAGES.items():
        assert module in packages.split()
        for package in packages.split():
            assert any(line.startswith(package) for line in required), (module, package)


def test_versions_are_told_once_the_same():
    """The citation and the changelog go with the version and with the formats of files."""
    from norton_det.data import generate
    from norton_det.deploy import info
    from norton_det.models import description, spec

    assert f"\nversion: {norton_det.__version__}\n" in (REPOSITORY / "CITATION.cff").read_text()
    log = (REPOSITORY / "CHANGELOG.md").read_text()
    assert f"## [{norton_det.__version__}] - 2" in log
    for row in (
        f"`.pth` of training) | version {description.FORMAT_VERSION} | 1 to {description.FORMAT_VERSION} |",
        f"specification in it | version {spec.SPEC_VERSION} | {spec.SPEC_VERSION} |",
        f"(`.xml`, `.onnx`) | version {info.VERSION} | 1 and {info.VERSION} |",
        f"generated data set | version {generate.VERSION} | {generate.VERSION} |",
    ):
        assert row in log, row
