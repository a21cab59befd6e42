"""The work of ``norton-det demo``; ``options/demo.py`` says what it is."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace

from ..live import Overlay, Source, check_output, open_sink, open_source
from ..live.detectors import DEMO_CONFIG, DetectorSource, demo_detectors, load_predictors
from ..live.show import Interrupt, Side, show
from ..utils.errors import InputError
from ..utils.files import require_writable, write_text
from .options.demo import STARTED

LOST = 3  # exit status when a camera or stream has gone


def load(args: argparse.Namespace) -> list[Side]:
    """The detectors, the one to compare with first."""
    sources = choose(args)
    options = {"precision": args.precision, "min_size": args.min_size, "threads": args.threads}
    predictors = load_predictors(sources, opts=args.opts, color="BGR", **options)
    return [
        Side(source.title, predictor, Overlay(predictor.info.classes))
        for source, predictor in zip(sources, predictors, strict=True)
    ]


def choose(args: argparse.Namespace) -> list[DetectorSource]:
    """The detectors that the flags name, or those of `make demo`."""
    if args.weights or args.config_file:
        detector = DetectorSource(args.weights or "", args.config_file, eager=args.eager)
        if not args.compare:
            return [detector]
        return [
            DetectorSource(args.compare, args.compare_config or args.config_file, eager=args.compare_eager),
            detector,
        ]
    dense, compressed = (replace(detector, eager=args.eager) for detector in demo_detectors())
    baseline = DetectorSource(args.compare, args.compare_config or DEMO_CONFIG) if args.compare else dense
    return [replace(baseline, eager=args.compare_eager), compressed]


def check_files(args: argparse.Namespace) -> None:
    """Refuse what can be seen to be wrong before anything is loaded."""
    if args.json:
        require_writable(args.json)
    if args.output != "-":
        check_output(args.output, args.window)
    choose(args)


def main(args: argparse.Namespace) -> int:
    check_files(args)
    places = (args.webcam, args.video_input, args.input)
    source = open_source(next(place for place in places if place is not None))  # it says at once what is missing
    try:
        sink = None if args.output == "-" else open_sink(args.output, source, args.window, args.max_frames)
        sides = load(args)
        options = {"threshold": args.confidence_threshold, "most": args.max_frames, "quiet": args.quiet}
        with Interrupt(source) as interrupt:
            try:
                outcome = show(sides, source, sink, **options)
            finally:
                interrupt.closing = True
                if sink is not None:
                    sink.close()
    finally:
        source.close()
    for line in [*source.skipped, *(sink.told if sink is not None else [])]:
        print(line, file=sys.stderr)
    if outcome.first is not None:
        report(args, sides, source, outcome.frames, outcome.first - STARTED)
    if interrupt.asked:
        raise KeyboardInterrupt
    if outcome.lost:
        print(f"error: {outcome.lost}", file=sys.stderr)
        return LOST
    if not outcome.frames:
        raise InputError(f"{source.name}: expected a frame, got none that can be read; give another")
    return 0


def report(args: argparse.Namespace, sides: Sequence[Side], source: Source, frames: int, first: float) -> None:
    """Print a table of times, and write --json; ``first``: seconds until the first frame was done."""
    results = [side.summary() for side in sides]
    where = f" in {args.output}" if args.output and args.output != "-" else ""
    print(f"{frames} frame{'s' * (frames > 1)} of {source.name}{where}; the first after {first:.1f} s")
    width = max(len(row["name"]) for row in results)
    for row in results:
        model = f"{row['model_ms']:.1f} ms a frame ({row['model_fps']:.1f} FPS)"
        whole = f"{row['end_to_end_ms']:.1f} ms ({row['end_to_end_fps']:.1f} FPS)"
        cold = " (first frame)" if frames == 1 else ""
        print(f"{row['name']:{width}}  {row['engine']} {row['precision']}: {model}, end to end {whole}{cold}")
    if args.json:
        content = {"source": source.name, "frames": frames, "first_frame_s": first, "detectors": results}
        write_text(args.json, json.dumps(content | {"skipped": source.skipped}, indent=1) + "\n")
