"""The page of the config keys, from the source of ``add_norton_config``: the comment above each key is its text.

The configs of the project are listed with their own first comment, those without one with what they set.
"""

import ast
import io
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from norton_det.utils.errors import InputError

from .markdown import cell, plain

SOURCE = "norton_det/d2/config.py"
BASE = "configs/Base-RCNN-FPN.yaml"
INTRODUCTION = """# Configuration

The keys that `norton_det.d2.add_norton_config` adds to those of Detectron2, and the configs in `configs/`;
`tools/make_reference.py` writes this page. Back to the [README](../README.md); the options of commands are in
[tools.md](tools.md), what the keys do in a training in [train.md](train.md).

`MODEL.BACKBONE.NAME` chooses the compressed ResNet: `build_norton_resnet_fpn_backbone`, or
`build_norton_resnet_backbone` without FPN. A config of your own starts from one here:

```python
from detectron2.config import get_cfg
from norton_det.d2 import add_norton_config
from norton_det.d2.config import find_config

cfg = get_cfg()
add_norton_config(cfg)
cfg.merge_from_file(str(find_config("norton_faster_rcnn.yaml")))
cfg.merge_from_list(["MODEL.NORTON.PRESET", "norton-64", "MODEL.NORTON.NECK_RANK", "1"])
```

"None" in a YAML file is `null`, on a command line `None`. "In the configs" is what `Base-RCNN-FPN.yaml` sets, from
which all of them start.
"""


@dataclass(frozen=True)
class Key:
    """A config key: its dotted name, its default as it is written, the comment above it; a node has no default."""

    name: str
    default: str | None
    text: str


def read_keys(source: str) -> list[Key]:
    """The assignments to ``cfg.*`` in ``add_norton_config`` with the comments right above them.

    Raises:
        InputError: one has no comment.
    """
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    body = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "add_norton_config"
    ).body
    keys = []
    for node in body:
        if not isinstance(node, ast.Assign):
            continue
        name = ast.unparse(node.targets[0]).removeprefix("cfg.")
        is_node = isinstance(node.value, ast.Call)
        lines, above = [], node.lineno - 1
        while above in comments:
            lines.insert(0, comments[above])
            above -= 1
        if not lines:
            raise InputError(f"{SOURCE}: {name}: expected a comment above it, got none; say what it does")
        keys.append(Key(name, None if is_node else ast.unparse(node.value), " ".join(lines)))
    return keys


def configuration_page(repository: Path) -> str:
    """The whole page."""
    base = yaml.safe_load((repository / BASE).read_text(encoding="utf-8"))
    lines: list[str] = []
    section = ""
    for key in read_keys((repository / SOURCE).read_text(encoding="utf-8")):
        if key.default is None:
            lines += ["", f"## {key.name}", "", plain(key.text)]
            section = key.name
            continue
        node = key.name.rpartition(".")[0]
        if node != section or not lines[-1].startswith("|"):
            lines += [] if node == section else ["", f"## {node}"]
            lines += ["", "| key | default | in the configs | what it does |", "| --- | --- | --- | --- |"]
            section = node
        here = _value(base, key.name)
        given = "" if here is None else f"`{here}`"
        lines.append(f"| `{key.name}` | `{key.default}` | {given} | {cell(key.text)} |")
    return INTRODUCTION + "\n".join([*lines, "", *_configs(repository)]) + "\n"


def _configs(repository: Path) -> list[str]:
    lines = ["## Configs", "", "A bare name is enough where a tool asks for `--config`.", ""]
    lines += ["| config | starts from | what it is |", "| --- | --- | --- |"]
    folder = repository / "configs"
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent != folder, path)):
        text = path.read_text(encoding="utf-8")
        content = yaml.safe_load(text)
        start = Path(content.get("_BASE_", "")).name
        name = path.relative_to(folder).as_posix()
        lines.append(
            f"| `{name}` | {f'`{start}`' if start else ''} | {cell(_first_comment(text)) or _settings(content)} |"
        )
    return lines


def _first_comment(text: str) -> str:
    """The comment at the top of a file, as one line."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return " ".join(lines)


def _settings(content: dict[str, Any], prefix: str = "") -> str:
    """What a config sets besides its output folder: ``MODEL.NORTON.PRESET: norton-43``."""
    found = []
    for name, value in content.items():
        if isinstance(value, dict):
            found.append(_settings(value, f"{prefix}{name}."))
        elif name not in ("_BASE_", "OUTPUT_DIR"):
            found.append(f"`{prefix}{name}: {value}`")
    return ", ".join(found)


def _value(content: Any, name: str) -> Any:
    for part in name.split("."):
        content = content.get(part) if isinstance(content, dict) else None
    return content
