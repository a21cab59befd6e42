#!/usr/bin/env python3
"""A web page on this machine that shows detectors at work on the browser's camera, a picture or a video.

Weights: exported files (.xml, .onnx), detectors of torchvision's, or Detectron2's with --config-file; repeat --weights
to choose between them, or to see two side by side. Without any, the detectors that `make demo` trained are shown.

The server keeps no frame. It listens to this machine alone unless --host says otherwise; browsers give a camera to
pages from localhost or over https (--ssl-certfile, --ssl-keyfile) only."""

import argparse
import contextlib
import logging
import socket
import sys
import webbrowser
from pathlib import Path

from norton_det.cli import parser, run

# isort: split
from norton_det.deploy.engines import require_module
from norton_det.deploy.source import EXPORTED, load_predictor
from norton_det.errors import InputError
from norton_det.files import require_file
from norton_det.live.choice import DEMO_CONFIG, demo_detectors, title
from norton_det.live.server import LARGEST_FRAME, Model, make_app

EXAMPLES = """
  tools/serve.py                                                        after make demo, then open the address
  tools/serve.py --weights dense.xml --weights norton.xml --open
  tools/serve.py --config-file norton_faster_rcnn.yaml --weights small=model_final.pth --weights dense=dense.pth
  tools/serve.py --weights norton.xml --host 0.0.0.0 --ssl-certfile cert.pem --ssl-keyfile key.pem   for telephones
"""
LOCAL = ("127.0.0.1", "localhost", "[::1]", "::1")


def make_parser() -> argparse.ArgumentParser:
    own = parser(__doc__, EXAMPLES)
    own.add_argument("--weights", action="append", default=[], metavar="[NAME=]FILE", help="a detector; repeat")
    own.add_argument("--config-file", "--config", metavar="FILE", help="of Detectron2 detectors in PyTorch")
    own.add_argument("--precision", choices=("f32", "bf16"), help="of the engine; by default what the file says")
    own.add_argument("--min-size", type=int, metavar="S", help="short side of the input, of a detector in PyTorch")
    own.add_argument("--threads", type=int, help="of ONNX Runtime and OpenVINO; by default all cores")
    own.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: the whole network")
    own.add_argument("--port", type=int, default=8000, help="0: any that is free")
    own.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="another name of this machine")
    own.add_argument("--ssl-certfile", metavar="FILE", help="certificate, for https")
    own.add_argument("--ssl-keyfile", metavar="FILE", help="its key")
    own.add_argument("--open", action="store_true", help="open the page in a browser")
    own.add_argument("--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="changes to the config")
    return own


def load(args: argparse.Namespace) -> list[Model]:
    """The detectors, by names that differ."""
    logging.getLogger("norton_det").setLevel(logging.ERROR)  # one config may serve a dense and a compressed detector
    entries = [entry.rpartition("=")[::2] for entry in args.weights]
    if not entries and not args.config_file:
        args.config_file = DEMO_CONFIG
        entries = list(demo_detectors().items())
    models: list[Model] = []
    for name, weights in entries or [("", "")]:
        exported = weights.endswith(EXPORTED)
        predictor = load_predictor(
            weights,
            None if exported else args.config_file,
            () if exported else args.opts,
            precision=args.precision,
            min_size=None if exported else args.min_size,
            threads=args.threads if exported else None,
        )
        label = name or title(weights, args.config_file)
        if label in [model.name for model in models]:
            raise InputError(f"--weights: expected names that differ, got {label} twice; write NAME={weights}")
        models.append(Model(label, predictor, predictor.info, predictor.name))
        print(f"loaded {label}: {predictor.name}", file=sys.stderr)
    return models


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything is loaded.

    Raises:
        InputError: the address is taken or not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(64)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--host {host} --port {port}: cannot listen there ({reason}); give another --port") from None
    return found


def names_of(host: str, allowed: list[str]) -> list[str]:
    """Names that the page may be called by: of this machine, the host, and for the whole network its addresses."""
    names = [*LOCAL, *allowed]
    if host not in LOCAL:
        names += [host, socket.gethostname()]
        if host in ("0.0.0.0", "::"):
            found = socket.getaddrinfo(socket.gethostname(), None)
            names += [str(each[4][0]) for each in found]
    return list(dict.fromkeys(names))


def main() -> int:
    args = make_parser().parse_args()
    if bool(args.ssl_certfile) != bool(args.ssl_keyfile):
        raise InputError("--ssl-certfile, --ssl-keyfile: expected both or neither, got one; give the other")
    for path, what in ((args.ssl_certfile, "a certificate"), (args.ssl_keyfile, "a key")):
        if path:
            require_file(path, what)
    uvicorn = require_module("uvicorn", "serve")
    found = listen(args.host, args.port)
    app = make_app(load(args), names_of(args.host, args.allow_host))
    scheme = "https" if args.ssl_certfile else "http"
    shown = "localhost" if args.host in ("127.0.0.1", "0.0.0.0", "::") else args.host
    address = f"{scheme}://{shown}:{found.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        log_level="warning",
        ws_max_size=LARGEST_FRAME,
        ssl_certfile=Path(args.ssl_certfile) if args.ssl_certfile else None,
        ssl_keyfile=args.ssl_keyfile,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    if args.host not in LOCAL:
        print(f"Everybody who reaches {args.host} can use these detectors", file=sys.stderr)
    if args.open:
        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        uvicorn.Server(config).run(sockets=[found])
    return 0


if __name__ == "__main__":
    run(main)
