"""The work of ``norton-det info``; ``options/info.py`` says what it is."""

import argparse
import json
from typing import Any

from ..checkpoint import zoo
from ..checkpoint.zoo_table import LEVELS, NETWORKS, ON_OTHERS, OTHERS
from .inventory import inventory


def main(args: argparse.Namespace) -> None:
    found = inventory()
    if args.json:
        print(json.dumps(found | {"zoo": [entry.name for entry in zoo.entries()]}, indent=1))
        return
    print(text(found))


def text(found: dict[str, Any]) -> str:
    """The inventory in lines."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"norton_det {found['norton_det']}", f"  {versions}", "", "devices"]
    lines += [f"  {device}" for device in found["devices"]]
    lines += ["", "optional packages"]
    width = max(map(len, found["optional"]))
    for name, package in found["optional"].items():
        lines.append(f"  {name:{width}}  {package['version'] or 'missing: ' + package['mend']}")
    lines += ["", "configs", *(f"  {folder}" for folder in found["configs"] or ["none found; install it again"])]
    with_weights = [entry.name for entry in zoo.entries() if entry.weights is not None]
    lines += [
        "",
        "zoo (norton-det zoo)",
        f"  {', '.join(LEVELS)}",
        f"  of {', '.join((*NETWORKS, *OTHERS, *ON_OTHERS))}",
        f"  with weights to download: {', '.join(with_weights)}",
        f"  kept in {found['zoo_folder']}",
    ]
    return "\n".join(lines)
