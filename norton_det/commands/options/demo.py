"""See a detector at work on a camera, a video, a stream or pictures; beside a second one with --compare.

Weights: an exported file (.xml, .onnx), a detector of torchvision's, or one of Detectron2's with --config-file.
Without any, the detectors that `make demo` trained are shown. A window opens where there is a display and no --output.

Times: "model" is one detector's own time, from the frame to its detections; "end to end" adds reading and writing the
frame and drawing. Two detectors see the same frames, one after the other, and each is timed alone."""

import argparse
import time

from ..parser import command_parser, refuse

STARTED = time.perf_counter()
EXAMPLES = """
  norton-det demo --webcam                                                     after make demo
  norton-det demo --weights detector.xml --webcam 1 --confidence-threshold 0.7
  norton-det demo --weights norton.xml --compare dense.xml --video-input street.mp4 --output both.mp4
  norton-det demo --config-file norton_faster_rcnn.yaml --weights model_final.pth --input "photos/*.jpg" --output found
  norton-det demo --weights norton.xml --video-input rtsp://camera.local/stream --output - --max-frames 300
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    sources = parser.add_argument_group("what is seen, one of").add_mutually_exclusive_group(required=True)
    sources.add_argument("--webcam", nargs="?", const=0, type=int, metavar="N", help="a camera; 0 is the first")
    sources.add_argument("--video-input", metavar="FILE", help="a video, /dev/videoN, or a URL (http, rtsp)")
    sources.add_argument("--input", nargs="+", metavar="FILE", help="pictures, folders of them, or patterns")
    models = parser.add_argument_group("what sees it")
    models.add_argument("--config-file", "--config", metavar="FILE", help="of a Detectron2 detector in PyTorch")
    models.add_argument("--weights", metavar="FILE", help=".xml, .onnx, or a detector's weights")
    models.add_argument("--compare", metavar="DENSE", help="weights of a second detector, shown on the left")
    models.add_argument("--compare-config", metavar="FILE", help="its config; by default --config-file")
    models.add_argument("--eager", action="store_true", help="as the stack itself runs a detector, not its deploy form")
    models.add_argument("--compare-eager", action="store_true", help="the same for the second one")
    models.add_argument("--precision", choices=("f32", "bf16"), help="of the engine; by default what the file says")
    models.add_argument(
        "--min-size", type=int, metavar="S", help="short side of the input, of a detector in PyTorch; 0: no resizing"
    )
    models.add_argument("--threads", type=int, help="of ONNX Runtime and OpenVINO; by default all cores")
    models.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="changes to the config; give it last"
    )
    parser.add_argument(
        "--confidence-threshold", type=float, default=0.5, metavar="P", help="least score that is shown"
    )
    parser.add_argument("--output", metavar="PLACE", help=".mp4, .mkv, .avi, a folder, or - for no picture at all")
    parser.add_argument("--window", action="store_true", help="a window beside --output; q or Esc closes it")
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop after so many")
    parser.add_argument("--json", metavar="FILE", help="write the times there")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse what is wrong by itself, before anything heavy is imported."""
    if not 0 <= args.confidence_threshold <= 1:
        refuse(f"--confidence-threshold: expected 0 to 1, got {args.confidence_threshold}; 0.5 is usual")
    if args.min_size is not None and args.min_size < 0:
        refuse(f"--min-size: expected 0 or more pixels, got {args.min_size}; 0 leaves pictures at their size")
    if args.max_frames is not None and args.max_frames < 1:
        refuse(f"--max-frames: expected 1 or more, got {args.max_frames}; leave it out for all")
    if args.compare_eager and not args.compare and (args.weights or args.config_file):
        refuse("--compare-eager: expected a second detector, got none; give --compare FILE")
