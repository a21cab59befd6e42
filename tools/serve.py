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
import ssl
import sys
import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from early import importing, parser, refuse, run

if TYPE_CHECKING:
    from norton_det.live.choice import Choice
    from norton_det.live.server import Model

EXAMPLES = """
  tools/serve.py                                                        after make demo, then open the address
  tools/serve.py --weights dense.xml --weights norton.xml --open
  tools/serve.py --config-file norton_faster_rcnn.yaml --weights small=model_final.pth --weights dense=dense.pth
  tools/serve.py --weights norton.xml --host 0.0.0.0 --ssl-certfile cert.pem --ssl-keyfile key.pem   for telephones
"""


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


def load(args: argparse.Namespace) -> "list[Model]":
    """The detectors, by names that differ."""
    from norton_det.errors import InputError
    from norton_det.live.choice import Choice, demo_choices, load_choices
    from norton_det.live.server import Model

    logging.getLogger("norton_det").setLevel(logging.ERROR)  # one config may serve a dense and a compressed detector
    choices = [choice_of(entry, args.config_file) for entry in args.weights]
    if not choices:
        choices = [Choice("", args.config_file)] if args.config_file else demo_choices()
    titles = [each.title for each in choices]
    if twice := [each for each in choices if titles.count(each.title) > 1]:
        raise InputError(
            f"--weights: expected names that differ, got {twice[0].title} twice; write NAME={twice[0].weights}"
        )
    options = {"precision": args.precision, "min_size": args.min_size, "threads": args.threads}
    predictors = load_choices(choices, opts=args.opts, **options)
    for title, predictor in zip(titles, predictors, strict=True):
        print(f"loaded {title}: {predictor.name}", file=sys.stderr)
    return [
        Model(title, predictor, predictor.info, predictor.name)
        for title, predictor in zip(titles, predictors, strict=True)
    ]


def choice_of(entry: str, config: str | None) -> "Choice":
    """FILE or NAME=FILE; a file whose name has = in it is taken as it is."""
    from norton_det.live.choice import Choice

    name, _, file = ("", "", entry) if Path(entry).exists() else entry.rpartition("=")
    return Choice(file, config, name)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything is imported; refused where the address is taken or not of this machine."""
    if not 0 <= port <= 65535:
        refuse(f"--port: expected 0 to 65535, got {port}; 8000 is usual")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(64)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        refuse(f"--host {host} --port {port}: cannot listen there ({reason}); give others")
    return found


def names_of(host: str, allowed: list[str]) -> list[str]:
    """Names that the page may be called by. Names of others that lead here (DNS rebinding) are not among them, while
    an address in numbers cannot be made to."""
    from norton_det.live.server import LOCAL

    names = [*LOCAL, *allowed]
    if host not in LOCAL:
        here = socket.gethostname()
        names += [bracketed(host), here, f"{here}.local", "*"]
    return [name.lower() for name in names]


def bracketed(host: str) -> str:
    """As it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def check_certificate(cert: str | None, key: str | None) -> None:
    """Refuse a certificate that would not serve: one of the two is missing, is none, or they do not belong together."""
    if bool(cert) != bool(key):
        refuse("--ssl-certfile, --ssl-keyfile: expected both or neither, got one; give the other")
    if not cert or not key:
        return
    for file in (cert, key):
        if not Path(file).is_file():
            refuse(f"{file}: expected a certificate or key (PEM), found no such file; check the path")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or error
        refuse(f"{cert}: expected a certificate (PEM) and its key, got others ({reason}); make a pair")


def main() -> int:
    args = make_parser().parse_args()
    check_certificate(args.ssl_certfile, args.ssl_keyfile)
    found = listen(args.host, args.port)
    with importing():
        from norton_det.deploy.engines import require_module
        from norton_det.live.server import LARGEST_FRAME, LOCAL, OneLine, make_app, make_protocol

        uvicorn = require_module("uvicorn", "serve")
    app = make_app(load(args), names_of(args.host, args.allow_host))
    scheme = "https" if args.ssl_certfile else "http"
    shown = "localhost" if args.host in (*LOCAL, "::1", "0.0.0.0", "::") else bracketed(args.host)
    address = f"{scheme}://{shown}:{found.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        log_level="warning",
        http=make_protocol(),
        ws_max_size=LARGEST_FRAME,
        ssl_certfile=Path(args.ssl_certfile) if args.ssl_certfile else None,
        ssl_keyfile=args.ssl_keyfile,
        timeout_graceful_shutdown=2,
        server_header=False,
    )
    logging.getLogger("uvicorn.error").addFilter(OneLine())
    print(f"{address}  (Ctrl-C ends it)", flush=True)
    if args.host not in (*LOCAL, "::1"):
        print(f"Everybody who reaches {args.host} can use these detectors", file=sys.stderr)
    if args.open:
        webbrowser.open(address)
    with contextlib.suppress(KeyboardInterrupt):  # the usual end
        uvicorn.Server(config).run(sockets=[found])
    return 0


if __name__ == "__main__":
    run(main)
