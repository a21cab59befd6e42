"""The config files of this project by name."""

from pathlib import Path

from .errors import InputError

FOLDER = (Path(__file__).parents[1] / "configs").resolve()
"""The configs of an installed wheel; in a clone a link leads to the repository's ``configs/``."""


def find_config(name: str) -> Path:
    """A config file: the path itself, or that name anywhere below the project's ``configs`` folder.

    Raises:
        InputError: there is none; the message lists what there is.
    """
    if Path(name).is_file():
        return Path(name)
    configs = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*.yaml"))}
    matches = [path for key, path in configs.items() if name in (key, path.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise InputError(f"{name}: expected one config of that name, found {', '.join(map(str, matches))}; give a path")
    names = ", ".join(key for key, path in configs.items() if not path.name.startswith("Base"))
    raise InputError(f"{name}: expected a config file, found no such file; the project's own are {names}")
