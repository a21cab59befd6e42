#!/usr/bin/env python3
"""Set up what `make test` and `make demo` need; needs itself only Python's standard library and pip.

Usage: python3 tools/setup_env.py        (make setup)
       python3 tools/setup_env.py --detectron2-wheel DIR

1. makes `.venv`, unless it is there;
2. makes a pure wheel of Detectron2, unless one that imports (0.6 or newer) is already installed. PyPI has
   no wheel of Detectron2 itself, but sal-detectron2 0.7.2 holds the upstream sources of 2024-04-15, beside a
   compiled library for Python 3.10, a top-level package `tools` and the requirement numpy<2. Without those
   three it runs on any Python 3: the compiled library serves only rotated boxes, deformable convolutions and
   the fast COCO evaluator;
3. installs norton_det (editable), its requirements, OpenCV and Detectron2, at constraints.txt's versions;
4. imports the lot once, and leaves a stamp, so that running again returns at once.

With --detectron2-wheel only the wheel of step 2 is made, in DIR, with the pip of the Python that runs this:
for an environment of your own, with norton_det from its wheel (pip install norton_det.whl DIR/detectron2-*.whl).
Nothing else is installed or changed.

Environment: NORTON_DET_PYTHON, the interpreter of an environment to use instead of `.venv` (of an active one:
NORTON_DET_PYTHON=python). That environment keeps its own Detectron2 and OpenCV, and, as constraints.txt is
not applied there, every version that setup.cfg allows.

Exit status: 0 ready, 2 not possible here (one line says what was expected, what came, and the mend).
"""

import argparse
import base64
import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

# This file has to load on an old Python 3, only to say so: no newer syntax here.
OLDEST_PYTHON = (3, 11)
OLDEST_DETECTRON2 = (0, 6)

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = "norton_det-setup.stamp"
LOG = "norton_det-setup.log"
STAMPED = ("setup.cfg", "pyproject.toml", "constraints.txt", "tools/setup_env.py")

SOURCE = "sal-detectron2"
SOURCE_VERSION = "0.7.2"
GRAD_CAM = "grad-cam==1.5.7"  # pytorch-grad-cam
SOURCE_SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
WHEEL_VERSION = SOURCE_VERSION + "+pure"
WHEEL_REQUIRES = (
    # upstream's own list, less black (needed only to print a LazyConfig as source) and iopath's upper bound
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "numpy",
    "fvcore>=0.1.5,<0.1.6",
    "iopath>=0.1.7",
    "omegaconf>=2.1,<2.4",
    "hydra-core>=1.1",
    "packaging",
    "setuptools<81",  # detectron2.model_zoo imports pkg_resources, which later ones lack
)
OPENCV = (
    "opencv-python",
    "opencv-python-headless",
    "opencv-contrib-python",
    "opencv-contrib-python-headless",
)

# Run by the interpreter of the environment: where it is, and what is there already.
PREFIX = "import sys; print(sys.prefix)"
PROBE = """
import importlib.metadata, json, sys
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
found = {"python": list(sys.version_info[:3]), "prefix": sys.prefix, "error": None, "detectron2": None}
found["opencv"] = [name for name in sys.argv[1:] if version(name)]
try:
    import detectron2
    found["detectron2"] = version("detectron2") or detectron2.__version__
    import detectron2.modeling
except Exception as error:
    if getattr(error, "name", None) != "detectron2":
        found["error"] = "%s: %s" % (type(error).__name__, (str(error).splitlines() or [""])[0])
        found["detectron2"] = version("detectron2") or "of an unknown version"
print(json.dumps(found))
"""

# Run at the end: everything a first import could trip over.
CHECK = """
import platform, torch, torchvision, cv2, pycocotools.mask
import detectron2.model_zoo, detectron2.engine, detectron2.evaluation, detectron2.data
detectron2.model_zoo.get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
versions = {
    "Python": platform.python_version(), "torch": torch.__version__, "torchvision": torchvision.__version__,
    "Detectron2": detectron2.__version__, "OpenCV": cv2.__version__}
print(", ".join("%s %s" % item for item in versions.items()))
"""

OTHER_PYTHON = "name another Python: make setup PYTHON=/path/to/python3"
OTHER_ENVIRONMENT = "remove .venv, or unset NORTON_DET_PYTHON, and run again"


class SetupError(Exception):
    """One line: what was expected, what came, the mend."""

    def __init__(self, expected: str, got: object, mend: str) -> None:
        super().__init__(f"expected {expected}, got {got}; {mend}")


def say(text: str) -> None:
    print("set-up: " + text, flush=True)


def version_tuple(text: str) -> tuple:
    """Leading numbers of a version: '0.7.2+pure' -> (0, 7, 2)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", text).group().strip(".").split(".") if part)


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def dotted(version: tuple) -> str:
    return ".".join(str(part) for part in version)


def check_python() -> None:
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise SetupError(
            f"Python {dotted(OLDEST_PYTHON)} or newer",
            f"{dotted(sys.version_info[:3])} ({sys.executable})",
            OTHER_PYTHON,
        )


def fingerprint() -> str:
    """Hash of what the set-up depends on: its own files, and the place an editable install points to."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in STAMPED:
        digest.update(hashlib.sha256((ROOT / name).read_bytes()).digest())
    return digest.hexdigest()


def is_done(prefix: Path) -> bool:
    stamp = prefix / STAMP
    return stamp.is_file() and stamp.read_text() == fingerprint()


def make_venv() -> Path:
    """The interpreter of `.venv`, which is made if it is not there or no longer runs."""
    python = VENV / "bin" / "python"
    if python.exists() and run_quietly([python, "-m", "pip", "--version"]).returncode == 0:
        return python
    try:
        import ensurepip  # noqa: F401
        import venv
    except ImportError as error:
        raise SetupError(
            f"the modules venv and ensurepip in {sys.executable}",
            f"'{error}'",
            f"install them (Debian, Ubuntu: apt-get install python3-venv), or {OTHER_PYTHON}",
        ) from None
    say(f"making .venv with {sys.executable}")
    try:
        venv.EnvBuilder(clear=True, with_pip=True, symlinks=True).create(str(VENV))
    except (OSError, subprocess.CalledProcessError) as error:
        raise SetupError(
            f"to make {VENV}", f"'{error}'", f"check the free space and the rights there, or {OTHER_PYTHON}"
        ) from None
    return python


def run_quietly(command: list) -> subprocess.CompletedProcess:
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=str(ROOT), capture_output=True, text=True)


def probe(python: Path) -> dict:
    ran = run_quietly([python, "-c", PROBE, *OPENCV])
    if ran.returncode != 0:
        raise SetupError(f"a Python that runs at {python}", f"'{last_line(ran.stderr)}'", OTHER_ENVIRONMENT)
    found = json.loads(ran.stdout.splitlines()[-1])
    if tuple(found["python"]) < OLDEST_PYTHON:
        raise SetupError(
            f"Python {dotted(OLDEST_PYTHON)} or newer at {python}", dotted(found["python"]), OTHER_ENVIRONMENT
        )
    return found


def pip(python: Path, log: Path, arguments: list, wanted: str, env: dict) -> None:
    """Run pip; its large downloads (10 MB and more) are shown, everything goes to the log.

    Raises:
        SetupError: pip failed; names what was wanted, pip's reason and the mend.
    """
    command = [str(python), "-m", "pip", *[str(argument) for argument in arguments]]
    lines = []
    with log.open("a", encoding="utf-8") as record:
        record.write("$ " + " ".join(command) + "\n")
        process = subprocess.Popen(
            command,
            cwd=str(ROOT),
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        for line in process.stdout:
            record.write(line)
            lines.append(line.strip())
            shown = re.match(r"\s*Downloading (?:.*/)?([^/ ]+\.(?:whl|gz|zip)) (\(\d\d+\.\d [MG]B\))", line)
            if shown:
                say("  " + " ".join(shown.groups()))
            elif line.startswith("Installing collected packages"):
                say("  unpacking")
        if process.wait() == 0:
            return
    text = "\n".join(lines)
    errors = [line for line in lines if line.lower().startswith("error")] or lines[-1:] or ["no output"]
    unreachable = re.search(
        r"name resolution|NewConnectionError|ConnectTimeout|Connection refused|Network is unreachable"
        r"|ProxyError|SSLError|ReadTimeout|Read timed out|Connection broken|Connection reset",
        text,
    )
    if unreachable:
        reason = f"no answer from the package index ({unreachable.group()})"
        mend = "check the connection, or name a mirror in PIP_INDEX_URL, and run again"
    elif "No space left on device" in text:
        reason, mend = "a full disk", "free about 10 GB, or put TMPDIR elsewhere, and run again"
    else:
        reason, mend = f"'{errors[-1]}'", f"pip's own words are in {log}"
    raise SetupError(f"pip to {wanted}", reason, mend)


def has_display_libraries() -> bool:
    """Whether opencv-python can load: on Linux it needs libGL, which a machine without a display may lack."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        ctypes.CDLL("libGL.so.1")
    except OSError:
        return False
    return True


def repack(source: Path, folder: Path) -> Path:
    """Detectron2's Python files and yaml out of the wheel `source`, as a pure wheel in `folder`."""
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    if digest != SOURCE_SHA256:
        raise SetupError(f"{source.name} with sha256 {SOURCE_SHA256}", digest, "the download is damaged: run again")
    info = f"detectron2-{WHEEL_VERSION}.dist-info/"
    files = {}  # name in the wheel -> bytes
    with zipfile.ZipFile(str(source)) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith("detectron2/") and name.endswith((".py", ".yaml")):
                files[name] = archive.read(name)
            elif name.endswith(".dist-info/LICENSE"):
                files[info + "LICENSE"] = archive.read(name)
    metadata = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        "Version: " + WHEEL_VERSION,
        f"Summary: Detectron2, its Python files only, taken unchanged from {SOURCE} {SOURCE_VERSION}",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Requires-Python: >=3.8",
    ]
    metadata += ["Requires-Dist: " + requirement for requirement in WHEEL_REQUIRES]
    tags = ["Wheel-Version: 1.0", "Generator: norton_det", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    files[info + "METADATA"] = ("\n".join(metadata) + "\n").encode()
    files[info + "WHEEL"] = ("\n".join(tags) + "\n").encode()
    files[info + "top_level.txt"] = b"detectron2\n"
    record = ""
    for name, data in files.items():
        checksum = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={checksum},{len(data)}\n"
    files[info + "RECORD"] = (record + info + "RECORD,,\n").encode()

    wheel = folder / f"detectron2-{WHEEL_VERSION}-py3-none-any.whl"
    with zipfile.ZipFile(str(wheel), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, (2024, 4, 15, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, data)
    return wheel


def fetch_detectron2(python: Path, log: Path, folder: Path, env: dict) -> Path:
    """Download the source wheel with pip, which checks its hash, and repack it in `folder`."""
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{SOURCE}=={SOURCE_VERSION} --hash=sha256:{SOURCE_SHA256}\n")
    arguments = ["download", "--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", folder]
    # the tags of its file name; the files taken out of it fit every Python 3
    arguments += ["--python-version", "3.10", "--implementation", "cp", "--abi", "none", "--platform", "any"]
    env = {name: value for name, value in env.items() if name != "PIP_CONSTRAINT"}  # those carry no hashes
    pip(
        python,
        log,
        [*arguments, "-r", requirements],
        f"download {SOURCE}=={SOURCE_VERSION} (not needed where Detectron2 is installed from source)",
        env,
    )
    return repack(next(folder.glob("sal_detectron2-*.whl")), folder)


def keeps_detectron2(found: dict, python: Path) -> bool:
    """Whether the Detectron2 that is installed stays. False: there is none, or one that this script made."""
    version = found["detectron2"]
    if version is None:
        return False
    if version.endswith("+pure"):
        return found["error"] is None and version == WHEEL_VERSION
    if found["error"] or version_tuple(version) < OLDEST_DETECTRON2:
        raise SetupError(
            f"Detectron2 {dotted(OLDEST_DETECTRON2)} or newer that imports",
            f"{version} ({found['error'] or 'too old'})",
            f"rebuild it, or remove it and run again: {python} -m pip uninstall -y detectron2",
        )
    say(f"keeping the installed Detectron2 {version}")
    return True


def install(python: Path, found: dict, pinned: bool) -> str:
    """Install what is missing into the environment of `python`; returns a line of versions."""
    log = Path(found["prefix"]) / LOG
    log.write_text("")
    env = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_USE_PEP517="1", PIP_NO_INPUT="1")
    extras = "dev"
    if not found["opencv"]:
        extras += ",opencv" if has_display_libraries() else ",opencv-headless"
    arguments = ["install", "--progress-bar", "off", "--editable", f".[{extras}]", "setuptools<81"]
    if pinned:
        arguments += ["--constraint", "constraints.txt"]
        # also where pip builds: some of Detectron2's requirements come as source only
        env.update(PIP_CONSTRAINT="constraints.txt", PIP_BUILD_CONSTRAINT="constraints.txt")
    with tempfile.TemporaryDirectory() as folder:
        if not keeps_detectron2(found, python):
            say(f"Detectron2: repacking {SOURCE} {SOURCE_VERSION}")
            arguments.append(fetch_detectron2(python, log, Path(folder), env))
        say("installing norton_det and what it needs (the first time: minutes, about 3 GB of downloads)")
        pip(python, log, arguments, "install norton_det and its requirements", env)
        # it requires opencv-python-headless, which must not stand beside opencv-python
        pip(python, log, ["install", "--no-deps", GRAD_CAM], "install pytorch-grad-cam", env)
    ran = run_quietly([python, "-c", CHECK])
    if ran.returncode != 0:
        raise SetupError(
            "torch, torchvision, cv2 and detectron2 to import",
            f"'{last_line(ran.stderr)}'",
            OTHER_ENVIRONMENT,
        )
    return last_line(ran.stdout)


def make_detectron2_wheel(folder: Path) -> Path:
    """The pure wheel of Detectron2 in `folder`, and nothing else; pip's words stay there only if it fails."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    log.write_text("")
    env = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    with tempfile.TemporaryDirectory() as temporary:
        made = fetch_detectron2(Path(sys.executable), log, Path(temporary).resolve(), env)
        wheel = folder / made.name
        shutil.move(str(made), str(wheel))
    log.unlink()
    return wheel


def parse(arguments: list) -> argparse.Namespace:
    own = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    own.add_argument("--detectron2-wheel", metavar="DIR", help="only make the pure wheel of Detectron2 there")
    return own.parse_args(arguments)


def main() -> int:
    started, args = time.monotonic(), parse(sys.argv[1:])
    chosen = os.environ.get("NORTON_DET_PYTHON")
    try:
        check_python()
        if args.detectron2_wheel:
            say(f"made {make_detectron2_wheel(Path(args.detectron2_wheel).resolve())}")
            return 0
        if not chosen and (VENV / "bin" / "python").exists() and is_done(VENV):
            return 0
        if chosen and not shutil.which(chosen):
            raise SetupError("an interpreter in NORTON_DET_PYTHON", f"'{chosen}'", "correct it, or unset it")
        python = Path(shutil.which(chosen)) if chosen else make_venv()
        if chosen and is_done(Path(last_line(run_quietly([python, "-c", PREFIX]).stdout))):
            return 0
        found = probe(python)
        versions = install(python, found, pinned=not chosen)
        (Path(found["prefix"]) / STAMP).write_text(fingerprint())
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(
            f"set-up: {SetupError('to write here', error, 'check the rights and the free space')}",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("set-up: interrupted; run again to go on", file=sys.stderr)
        return 130
    say(f"ready in {time.monotonic() - started:.0f} s: {versions}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
