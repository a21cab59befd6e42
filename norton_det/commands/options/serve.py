"""A web page on this machine that shows detectors at work on the browser's camera, a picture or a video.

Weights: exported files (.xml, .onnx), detectors of torchvision's, or Detectron2's with --config-file; repeat --weights
to choose between them, or to see two side by side. Without any, the detectors that `make demo` trained are shown.

The server keeps no frame. It listens to this machine alone unless --host says otherwise; browsers give a camera to
pages from localhost or over https (--ssl-certfile, --ssl-keyfile) only."""

import argparse
import socket
import ssl
from pathlib import Path

from ..parser import command_parser, refuse

EXAMPLES = """
  norton-det serve                                                        after make demo, then open the address
  norton-det serve --weights dense.xml --weights norton.xml --open
  norton-det serve --config-file norton_faster_rcnn.yaml --weights small=model_final.pth --weights dense=dense.pth
  norton-det serve --weights norton.xml --host 0.0.0.0 --ssl-certfile cert.pem --ssl-keyfile key.pem   for telephones
"""


def make_parser() -> argparse.ArgumentParser:
    parser = command_parser(__doc__, EXAMPLES)
    parser.add_argument("--weights", action="append", default=[], metavar="[NAME=]FILE", help="a detector; repeat")
    parser.add_argument("--config-file", "--config", metavar="FILE", help="of Detectron2 detectors in PyTorch")
    parser.add_argument("--precision", choices=("f32", "bf16"), help="of the engine; by default what the file says")
    parser.add_argument(
        "--min-size", type=int, metavar="S", help="short side of the input, of a detector in PyTorch; 0: no resizing"
    )
    parser.add_argument("--threads", type=int, help="of ONNX Runtime and OpenVINO; by default all cores")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0: the whole network")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="another name of this machine"
    )
    parser.add_argument("--ssl-certfile", metavar="FILE", help="certificate, for https")
    parser.add_argument("--ssl-keyfile", metavar="FILE", help="its key")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="changes to the config"
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """Refuse a certificate or an address that will not do; ``args.socket`` listens."""
    check_certificate(args.ssl_certfile, args.ssl_keyfile)
    args.socket = listen(args.host, args.port)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything is imported; refused where the address is taken or not of this machine."""
    if not 0 <= port <= 65535:
        refuse(f"--port: expected 0 to 65535, got {port}; 8000 is usual")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(64)
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        refuse(f"--host {host} --port {port}: cannot listen there ({reason}); give others")
    return listener


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
