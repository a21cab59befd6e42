#!/usr/bin/env python3
"""See a detector at work on a camera, a video, a stream or pictures; beside a second one with --compare.

Weights: an exported file (.xml, .onnx), a detector of torchvision's, or one of Detectron2's with --config-file.
Without any, the detectors that `make demo` trained are shown. A window opens where there is a display and no --output.

Times: "model" is one detector's own time, from the frame to its detections; "end to end" adds reading and writing the
frame and drawing. Two detectors see the same frames, one after the other, and each is timed alone."""

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

STARTED = time.perf_counter()

from norton_det.cli import parser, run  # noqa: E402

# isort: split
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from norton_det.data.images import beside  # noqa: E402
from norton_det.errors import InputError  # noqa: E402
from norton_det.files import atomic_path, require_writable  # noqa: E402
from norton_det.live import Frame, Meter, Overlay, Sink, Source, SourceLost, check_output, open_sink, open_source  # noqa: E402
from norton_det.live.choice import DEMO_CONFIG, Choice, demo_choices, load_choices  # noqa: E402

EXAMPLES = """
  tools/demo.py --webcam                                                     after make demo
  tools/demo.py --weights detector.xml --webcam 1 --confidence-threshold 0.7
  tools/demo.py --weights norton.xml --compare dense.xml --video-input street.mp4 --output both.mp4
  tools/demo.py --config-file norton_faster_rcnn.yaml --weights model_final.pth --input "photos/*.jpg" --output found
  tools/demo.py --weights norton.xml --video-input rtsp://camera.local/stream --output - --max-frames 300
"""
LOST = 3  # exit status when a camera or stream has gone


@dataclass
class Side:
    """One detector of the demo, with its times."""

    name: str
    predictor: Any
    overlay: Overlay
    model: Meter = field(default_factory=Meter)
    whole: Meter = field(default_factory=Meter)

    def lines(self) -> list[str]:
        """What stands above its picture."""
        info = self.predictor.info
        precision = "" if self.predictor.name.endswith("eager") else f" {info.precision}"
        text = [f"{self.name}, {self.predictor.name}{precision}"]
        if info.macs:
            text[0] += f", {info.macs / 1e9:.1f} G MACs, {info.params / 1e6:.1f} M"
        if len(self.model.all) == 1:
            return [*text, f"first frame, {1000 * self.model.all[0]:.0f} ms model"]
        whole = f", {self.whole.fps:.1f} FPS end to end" if self.whole.fps else ""
        return [*text, f"{self.model.fps:.1f} FPS model{whole}"]

    def summary(self) -> dict[str, Any]:
        """Its times, for --json and the end."""
        info = self.predictor.info
        return {
            "name": self.name,
            "engine": self.predictor.name,
            "precision": info.precision,
            "model_ms": self.model.median_ms,
            "model_fps": rate(self.model.median_ms),
            "end_to_end_ms": self.whole.median_ms,
            "end_to_end_fps": rate(self.whole.median_ms),
            "macs": info.macs or None,  # not known of files of older versions
            "params": info.params or None,
        }


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    given = own.add_argument_group("what is seen, one of").add_mutually_exclusive_group(required=True)
    given.add_argument("--webcam", nargs="?", const=0, type=int, metavar="N", help="a camera; 0 is the first")
    given.add_argument("--video-input", metavar="FILE", help="a video, /dev/videoN, or a URL (http, rtsp)")
    given.add_argument("--input", nargs="+", metavar="FILE", help="pictures, folders of them, or patterns")
    models = own.add_argument_group("what sees it")
    models.add_argument("--config-file", "--config", metavar="FILE", help="of a Detectron2 detector in PyTorch")
    models.add_argument("--weights", metavar="FILE", help=".xml, .onnx, or a detector's weights")
    models.add_argument("--compare", metavar="DENSE", help="weights of a second detector, shown on the left")
    models.add_argument("--compare-config", metavar="FILE", help="its config; by default --config-file")
    models.add_argument("--eager", action="store_true", help="as the stack itself runs a detector, not its deploy form")
    models.add_argument("--compare-eager", action="store_true", help="the same for the second one")
    models.add_argument("--precision", choices=("f32", "bf16"), help="of the engine; by default what the file says")
    models.add_argument("--min-size", type=int, metavar="S", help="short side of the input, of a detector in PyTorch")
    models.add_argument("--threads", type=int, help="of ONNX Runtime and OpenVINO; by default all cores")
    models.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="changes to the config; give it last"
    )
    own.add_argument("--confidence-threshold", type=float, default=0.5, metavar="P", help="least score that is shown")
    own.add_argument("--output", metavar="PLACE", help=".mp4, .mkv, .avi, a folder, or - for no picture at all")
    own.add_argument("--window", action="store_true", help="a window beside --output; q or Esc closes it")
    own.add_argument("--max-frames", type=int, metavar="N", help="stop after so many")
    own.add_argument("--json", metavar="FILE", help="write the times there")
    own.add_argument("--quiet", action="store_true", help="no progress bar")
    return own


def rate(milliseconds: float) -> float:
    return 1000 / milliseconds if milliseconds else 0.0


def load(args: argparse.Namespace) -> list[Side]:
    """The detectors, the one to compare with first."""
    logging.getLogger("norton_det").setLevel(logging.ERROR)  # one config may serve a dense and a compressed detector
    choices = choose(args)
    options = {"precision": args.precision, "min_size": args.min_size, "threads": args.threads}
    predictors = load_choices(choices, opts=args.opts, color="BGR", **options)
    return [
        Side(choice.title, predictor, Overlay(predictor.info.classes))
        for choice, predictor in zip(choices, predictors, strict=True)
    ]


def choose(args: argparse.Namespace) -> list[Choice]:
    """What is named, or the detectors of `make demo`."""
    if args.weights or args.config_file:
        shown = Choice(args.weights or "", args.config_file, eager=args.eager)
        if not args.compare:
            return [shown]
        return [Choice(args.compare, args.compare_config or args.config_file, eager=args.compare_eager), shown]
    dense, small = (replace(each, eager=args.eager) for each in demo_choices())
    compared = Choice(args.compare, args.compare_config or DEMO_CONFIG) if args.compare else dense
    return [replace(compared, eager=args.compare_eager), small]


def check(args: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    if not 0 <= args.confidence_threshold <= 1:
        raise InputError(f"--confidence-threshold: expected 0 to 1, got {args.confidence_threshold}; 0.5 is usual")
    if args.min_size is not None and args.min_size < 1:
        raise InputError(f"--min-size: expected 1 or more pixels, got {args.min_size}; leave it out")
    if args.max_frames is not None and args.max_frames < 1:
        raise InputError(f"--max-frames: expected 1 or more, got {args.max_frames}; leave it out for all")
    if args.compare_eager and not args.compare and (args.weights or args.config_file):
        raise InputError("--compare-eager: expected a second detector, got none; give --compare FILE")
    if args.json:
        require_writable(args.json)
    if args.output != "-":
        check_output(args.output, args.window)
    choose(args)


def show(
    args: argparse.Namespace, sides: Sequence[Side], source: Source, sink: Sink | None
) -> tuple[int, float | None, str]:
    """Run the frames through the detectors; how many, seconds to the first one, and why it ended early if it did."""
    total = min(filter(None, (source.count, args.max_frames)), default=None)
    shown, first, ended = 0, None, ""
    bar = tqdm(total=total, unit="frame", desc="demo", disable=args.quiet)
    began = time.perf_counter()
    try:
        for frame in source:
            waited = time.perf_counter() - began
            drawn = [see(args, side, frame, sink is not None) for side in sides]
            started = time.perf_counter()
            if sink is not None:
                sink.write(drawn[0][0] if len(drawn) == 1 else beside([picture for picture, _ in drawn]), frame)
            written = time.perf_counter() - started
            for side, (_, seconds) in zip(sides, drawn, strict=True):
                side.whole.add(waited + seconds + written)
            shown += 1
            if first is None:
                first = time.perf_counter() - STARTED
            bar.update()
            if sink is not None:
                sink.pause()
            if source.stopped or shown == args.max_frames or (sink is not None and not sink.wanted):
                break
            began = time.perf_counter()
    except SourceLost as lost:
        ended = str(lost)
    finally:
        bar.close()
    return shown, first, ended


def see(args: argparse.Namespace, side: Side, frame: Frame, draw: bool) -> tuple[np.ndarray, float]:
    """A frame with what one detector found; seconds of both together."""
    started = time.perf_counter()
    found = side.predictor(frame.image, args.confidence_threshold)
    side.model.add(time.perf_counter() - started)
    if draw:
        picture = side.overlay.draw(frame.image, found, side.lines())
    else:
        picture = frame.image
    return picture, time.perf_counter() - started


class Interrupt:
    """Ctrl-C or SIGTERM ends the run after its frame; a second one at once, but not while files are closed."""

    def __init__(self, source: Source) -> None:
        self.source, self.asked, self.closing = source, False, False

    def __enter__(self) -> "Interrupt":
        self.before = {each: signal.signal(each, self.handle) for each in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self.before.items():
            signal.signal(each, handler)

    def handle(self, *_: object) -> None:
        if self.asked and not self.closing:
            raise KeyboardInterrupt
        self.asked = self.source.stopped = True


def main() -> int:
    args = make_parser().parse_args()
    check(args)
    named = (args.webcam, args.video_input, args.input)
    source = open_source(next(each for each in named if each is not None))  # it says at once what is missing
    try:
        sink = None if args.output == "-" else open_sink(args.output, source, args.window, args.max_frames)
        sides = load(args)
        with Interrupt(source) as interrupt:
            try:
                shown, first, lost = show(args, sides, source, sink)
            finally:
                interrupt.closing = True
                if sink is not None:
                    sink.close()
    finally:
        source.close()
    for line in [*source.skipped, *(sink.told if sink is not None else [])]:
        print(line, file=sys.stderr)
    if shown:
        report(args, sides, source, shown, first or 0.0)
    if interrupt.asked:
        raise KeyboardInterrupt
    if lost:
        print(f"error: {lost}", file=sys.stderr)
        return LOST
    if not shown:
        raise InputError(f"{source.name}: expected a frame, got none that can be read; give another")
    return 0


def report(args: argparse.Namespace, sides: Sequence[Side], source: Source, shown: int, first: float) -> None:
    """What came of it: a table of times, and --json."""
    results = [side.summary() for side in sides]
    where = f" in {args.output}" if args.output and args.output != "-" else ""
    print(f"{shown} frame{'s' * (shown > 1)} of {source.name}{where}; the first after {first:.1f} s")
    width = max(len(each["name"]) for each in results)
    for each in results:
        model = f"{each['model_ms']:.1f} ms a frame ({each['model_fps']:.1f} FPS)"
        whole = f"{each['end_to_end_ms']:.1f} ms ({each['end_to_end_fps']:.1f} FPS)"
        cold = " (first frame)" if shown == 1 else ""
        print(f"{each['name']:{width}}  {each['engine']} {each['precision']}: {model}, end to end {whole}{cold}")
    if args.json:
        content = {"source": source.name, "frames": shown, "first_frame_s": first, "detectors": results}
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(content | {"skipped": source.skipped}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
