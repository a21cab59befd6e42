"""The code blocks of README.md and docs/: what is in them, and what of it cannot run everywhere."""

import re
from dataclasses import dataclass

from tests import REPOSITORY

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "datasets/README.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
LANGUAGES = ("sh", "python", "yaml", "text")
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)

COCO = r"coco_2017_\w+: .*prepare coco"
DOWNLOAD = r"download resnet50-0676ba61\.pth elsewhere and pass the file"
# What cannot be had on every machine, and the one line that a command ends in without it: the first that is found in
# the command counts.
WITHOUT = (
    ("torchvision://", DOWNLOAD),
    ("--register mine_train=", DOWNLOAD),  # its config starts from torchvision's weights
    ("--webcam", r"expected a display|camera"),
    ("rtsp://", r"camera\.local"),
    ("prepare_coco.py", r"coco|COCO"),
    ("--ssl-certfile", "expected a certificate"),
    ("/path/to/", r"/path/to/|expected a new folder"),
    ("tools/tradeoff.py --config dense_faster_rcnn.yaml", COCO),
)
NEEDS_COCO = re.compile(
    r"coco_2017_val"
    r"|(?:train_net|compare)\.py(?!.*(?:--register|bccd_|shapes_|quick_schedules/)).*--config(?:-file)? \S+_rcnn"
)
NEEDS_SHAPES = re.compile(r"quick_schedules/|shapes_|prepare_generated\.py$")  # the data set that takes seconds to draw
NOT_RUN = {  # the set-up, which a test does not do again (of make: are there such targets), and what needs two machines
    "git clone": "",
    "source ": "",
    "make ": "make -n",
    "cd ": "",
    "ln ": "",
    "torchrun ": "",
    "python -m pytest ": "",  # of these: is the path there
}


@dataclass(frozen=True)
class Block:
    """A code block: its page, the line it starts at, its language and text."""

    page: str
    line: int
    language: str
    text: str


def blocks() -> list[Block]:
    """All of them, in order."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text[: match.start()].count("\n") + 1
            found.append(Block(page.relative_to(REPOSITORY).as_posix(), line, match[1], match[2]))
    return found


def commands() -> dict[str, str]:
    """Every shell command of the pages, lines joined and comments gone, and where it stands first."""
    found: dict[str, str] = {}
    for block in blocks():
        if block.language != "sh":
            continue
        for line in re.sub(r"\\\n\s*", "", block.text).splitlines():
            for part in re.sub(r"(^|\s)#.*", "", line).split(" && "):
                if command := re.sub(r"\s+", " ", part).strip():
                    found.setdefault(command, f"{block.page}:{block.line}")
    return found


def expected_line(command: str) -> str | None:
    """The error that a command ends in where something is lacking; ``None`` for one that has to work."""
    found = next((line for part, line in WITHOUT if part in command), None)
    return found or (COCO if NEEDS_COCO.search(command) else None)
