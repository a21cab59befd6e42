#!/usr/bin/env python3
"""See a detector at work on a camera, a video, a stream or pictures; beside a second one with --compare.

Weights: an exported file (.xml, .onnx), a detector of torchvision's, or one of Detectron2's with --config-file.
Without any, the detectors that `make demo` trained are shown. A window opens where there is a display and no --output.

Times: "model" is one detector's own time, from the frame to its detections; "end to end" adds reading and writing the
frame and drawing. Two detectors see the same frames, one after the other, and each is timed alone."""

import argparse
import json
import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from early import importing, parser, refuse, run

if TYPE_CHECKING:
    from norton_det.live import Source
    from norton_det.live.choice import Choice
    from norton_det.live.show import Side

STARTED = time.perf_counter()
EXAMPLES = """
  tools/demo.py --webcam                                                     after make demo
  tools/demo.py --weights detector.xml --webcam 1 --confidence-threshold 0.7
  tools/demo.py --weights norton.xml --compare dense.xml --video-input street.mp4 --output both.mp4
  tools/demo.py --config-file norton_faster_rcnn.yaml --weights model_final.pth --input "photos/*.jpg" --output found
  tools/demo.py --weights norton.xml --video-input rtsp://camera.local/stream --output - --max-frames 300
"""
LOST = 3  # exit status when a camera or stream has gone


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


def load(args: argparse.Namespace) -> "list[Side]":
    """The detectors, the one to compare with first."""
    from norton_det.live import Overlay
    from norton_det.live.choice import load_choices
    from norton_det.live.show import Side

    logging.getLogger("norton_det").setLevel(logging.ERROR)  # one config may serve a dense and a compressed detector
    choices = choose(args)
    options = {"precision": args.precision, "min_size": args.min_size, "threads": args.threads}
    predictors = load_choices(choices, opts=args.opts, color="BGR", **options)
    return [
        Side(choice.title, predictor, Overlay(predictor.info.classes))
        for choice, predictor in zip(choices, predictors, strict=True)
    ]


def choose(args: argparse.Namespace) -> "list[Choice]":
    """What is named, or the detectors of `make demo`."""
    from norton_det.live.choice import DEMO_CONFIG, Choice, demo_choices

    if args.weights or args.config_file:
        shown = Choice(args.weights or "", args.config_file, eager=args.eager)
        if not args.compare:
            return [shown]
        return [Choice(args.compare, args.compare_config or args.config_file, eager=args.compare_eager), shown]
    dense, small = (replace(each, eager=args.eager) for each in demo_choices())
    compared = Choice(args.compare, args.compare_config or DEMO_CONFIG) if args.compare else dense
    return [replace(compared, eager=args.compare_eager), small]


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse what is wrong by itself, before anything is imported."""
    if not 0 <= args.confidence_threshold <= 1:
        refuse(f"--confidence-threshold: expected 0 to 1, got {args.confidence_threshold}; 0.5 is usual")
    if args.min_size is not None and args.min_size < 1:
        refuse(f"--min-size: expected 1 or more pixels, got {args.min_size}; leave it out")
    if args.max_frames is not None and args.max_frames < 1:
        refuse(f"--max-frames: expected 1 or more, got {args.max_frames}; leave it out for all")
    if args.compare_eager and not args.compare and (args.weights or args.config_file):
        refuse("--compare-eager: expected a second detector, got none; give --compare FILE")


def check_files(args: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    from norton_det.files import require_writable
    from norton_det.live import check_output

    if args.json:
        require_writable(args.json)
    if args.output != "-":
        check_output(args.output, args.window)
    choose(args)


def main() -> int:
    args = make_parser().parse_args()
    check_numbers(args)
    with importing():
        from norton_det.errors import InputError
        from norton_det.live import open_sink, open_source
        from norton_det.live.show import Interrupt, show
    check_files(args)
    named = (args.webcam, args.video_input, args.input)
    source = open_source(next(each for each in named if each is not None))  # it says at once what is missing
    try:
        sink = None if args.output == "-" else open_sink(args.output, source, args.window, args.max_frames)
        sides = load(args)
        options = {"threshold": args.confidence_threshold, "most": args.max_frames, "quiet": args.quiet}
        with Interrupt(source) as interrupt:
            try:
                shown = show(sides, source, sink, **options)
            finally:
                interrupt.closing = True
                if sink is not None:
                    sink.close()
    finally:
        source.close()
    for line in [*source.skipped, *(sink.told if sink is not None else [])]:
        print(line, file=sys.stderr)
    if shown.first is not None:
        report(args, sides, source, shown.frames, shown.first - STARTED)
    if interrupt.asked:
        raise KeyboardInterrupt
    if shown.lost:
        print(f"error: {shown.lost}", file=sys.stderr)
        return LOST
    if not shown.frames:
        raise InputError(f"{source.name}: expected a frame, got none that can be read; give another")
    return 0


def report(args: argparse.Namespace, sides: "Sequence[Side]", source: "Source", shown: int, first: float) -> None:
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
        from norton_det.files import atomic_path

        content = {"source": source.name, "frames": shown, "first_frame_s": first, "detectors": results}
        with atomic_path(args.json) as temporary:
            temporary.write_text(json.dumps(content | {"skipped": source.skipped}, indent=1) + "\n")


if __name__ == "__main__":
    run(main)
