"""The config files of this project: in a wheel they are the package ``norton_det.configs``, in a clone ``configs/``."""

from pathlib import Path

from .errors import InputError

FOLDERS = (
    Path(__file__).resolve().parents[1] / "configs",  # of an installed wheel
    Path(__file__).resolve().parents[2] / "configs",  # of a checkout
)


def find_config(name: str) -> Path:
    """A config file: the path itself, or that name anywhere below the project's ``configs`` folder.

    Raises:
        InputError: there is none; the message lists what there is.
    """
    if Path(name).is_file():
        return Path(name)
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in sorted(folder.rglob("*.yaml")):
            found.setdefault(path.relative_to(folder).as_posix(), path)
    matches = [path for key, path in found.items() if key == name or Path(key).name == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(f"{name}: expected one config of that name, found {', '.join(map(str, matches))}; give a path")
    names = ", ".join(sorted(key for key in found if not Path(key).name.startswith("Base")))
    raise InputError(f"{name}: expected a config file, found no such file; the project's own are {names}")
