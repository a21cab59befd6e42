"""The work of ``norton-det serve``; ``options/serve.py`` says what it is."""

import argparse
import contextlib
import logging
import socket
import sys
import webbrowser
from pathlib import Path

from ..deploy.engines import require_module
from ..live.detectors import DetectorSource, demo_detectors, load_predictors
from ..live.server import LARGEST_FRAME, LOCAL, Model, OneLine, make_app, make_protocol
from ..utils.errors import InputError


def load(args: argparse.Namespace) -> list[Model]:
    """The detectors, by names that differ."""
    sources = [parse_source(entry, args.config_file) for entry in args.weights]
    if not sources:
        sources = [DetectorSource("", args.config_file)] if args.config_file else demo_detectors()
    titles = [source.title for source in sources]
    if twice := [source for source in sources if titles.count(source.title) > 1]:
        raise InputError(
            f"--weights: expected names that differ, got {twice[0].title} twice; write NAME={twice[0].weights}"
        )
    options = {"precision": args.precision, "min_size": args.min_size, "threads": args.threads}
    predictors = load_predictors(sources, opts=args.opts, **options)
    for title, predictor in zip(titles, predictors, strict=True):
        print(f"loaded {title}: {predictor.name}", file=sys.stderr)
    return [
        Model(title, predictor, predictor.info, predictor.name)
        for title, predictor in zip(titles, predictors, strict=True)
    ]


def parse_source(entry: str, config: str | None) -> DetectorSource:
    """FILE or NAME=FILE; a file whose name has = in it is taken as it is."""
    name, _, file = ("", "", entry) if Path(entry).exists() else entry.rpartition("=")
    return DetectorSource(file, config, name)


def names_of(host: str, allowed: list[str]) -> list[str]:
    """Names that the page may be called by. Names of others that lead here (DNS rebinding) are not among them, while
    an address in numbers cannot be made to."""
    names = [*LOCAL, *allowed]
    if host not in LOCAL:
        machine = socket.gethostname()
        names += [bracketed(host), machine, f"{machine}.local", "*"]
    return [name.lower() for name in names]


def bracketed(host: str) -> str:
    """A host as it stands in an address: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def main(args: argparse.Namespace) -> int:
    uvicorn = require_module("uvicorn")
    app = make_app(load(args), names_of(args.host, args.allow_host))
    scheme = "https" if args.ssl_certfile else "http"
    host = "localhost" if args.host in (*LOCAL, "::1", "0.0.0.0", "::") else bracketed(args.host)
    address = f"{scheme}://{host}:{args.socket.getsockname()[1]}"
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
        uvicorn.Server(config).run(sockets=[args.socket])
    return 0
