"""A local web page that shows detectors at work on the visitor's camera or files.

The page sends JPEG frames over a WebSocket, one at a time, and draws what comes back over the frame that it sent; the
server keeps nothing. Messages:

    page -> server   text: {"models": [names], "threshold": 0..1}; before that, the first model with 0.5
                     bytes: 4 bytes, the number of the frame (big endian), then a JPEG or PNG
    server -> page   text: {"frame": number, "model": name, "ms": milliseconds, "objects": [...]}, one for each model
                     text: {"frame": number, "error": one line}, where it was not answered; the page may go on

Only pages of the same origin may connect, and only by the names the server is meant for (DNS rebinding).
"""

import asyncio
import contextlib
import ipaddress
import json
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.decode import UnreadableImage, read_image
from ..deploy.engines import require_module
from ..deploy.predictor import Detections
from ..utils.errors import InputError, first_line
from .answer import skeleton, to_answer

PAGE = Path(__file__).with_name("page")
LARGEST_FRAME = 8 << 20  # bytes of a message
LARGEST_PICTURE = 2_000_000  # pixels; the page sends less than half of it
VISITORS = 8  # at once
PATIENCE = 10.0  # seconds in which a connection has to ask for something
LOCAL = ("127.0.0.1", "localhost", "[::1]")
logger = logging.getLogger(__name__)
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


@dataclass
class Model:
    """A detector of the page.

    Attributes:
        name: unique.
        predict: picture (H, W, 3), RGB, uint8, and the least score -> ``Detections``.
        info: of the predictor (``DeployInfo``).
        engine: what it runs in.
    """

    name: str
    predict: Callable[[np.ndarray, float], Detections]
    info: Any
    engine: str

    def describe(self) -> dict[str, Any]:
        """For the page."""
        return {
            "name": self.name,
            "engine": self.engine,
            "precision": self.info.precision,
            "macs": self.info.macs,
            "params": self.info.params,
        }


@dataclass
class VisitorSettings:
    """What a visitor wants to see."""

    models: list[str]
    threshold: float = 0.5

    def update(self, text: str, known: Mapping[str, Model]) -> None:
        """Take a text message.

        Raises:
            InputError: it makes no sense.
        """
        try:
            content = json.loads(text)
            models, threshold = content["models"], content["threshold"]
            good = bool(models) and all(isinstance(name, str) for name in models)
            good = good and isinstance(threshold, int | float) and 0 <= threshold <= 1
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise InputError('settings: expected {"models": [names], "threshold": 0..1}, got something else; send such')
        if unknown := [name for name in models if name not in known]:
            raise InputError(f"settings: expected models of {', '.join(known)}, got {unknown[0][:80]!r}; choose one")
        self.models, self.threshold = list(dict.fromkeys(models)), float(threshold)


def decode(data: bytes) -> np.ndarray:
    """A picture (H, W, 3), RGB, of a JPEG or PNG in memory.

    Raises:
        InputError: it is neither, damaged, or too large.
    """
    try:
        return read_image(data, name="frame", formats=("JPEG", "PNG"), most_pixels=LARGEST_PICTURE)
    except UnreadableImage:
        raise InputError("frame: expected a picture (JPEG or PNG), got bytes that do not decode; send one") from None


def make_app(models: Sequence[Model], hosts: Sequence[str] = LOCAL) -> Any:
    """The page and its WebSocket (FastAPI).

    Args:
        models: at least one; the page begins with the first two side by side.
        hosts: names that the server may be called by, in lower case; ``"*"`` stands for any address in numbers.

    Raises:
        InputError: FastAPI is not installed.
    """
    require_module("fastapi")
    from fastapi import FastAPI, Request, WebSocket
    from fastapi.responses import FileResponse, PlainTextResponse
    from fastapi.staticfiles import StaticFiles

    known = {model.name: model for model in models}
    if not known or len(known) < len(models):
        raise InputError("models: expected one or more of names that differ, got others; rename them")
    visitors: set[Any] = set()
    lock = asyncio.Lock()  # one frame at a time: times are those of a detector that has the machine to itself
    app = FastAPI(title="norton_det", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guard(request: Request, follow: Any) -> Any:
        if not is_host(request.headers.get("host", ""), hosts):
            return PlainTextResponse(f"expected to be called by one of {', '.join(hosts)}", 421)
        answer = await follow(request)
        answer.headers.update(HEADERS)
        return answer

    @app.get("/")
    async def page() -> Any:
        return FileResponse(PAGE / "index.html")

    @app.get("/models")
    async def list_models() -> Any:
        return {"models": [model.describe() for model in models], "skeleton": skeleton()}

    app.mount("/page", StaticFiles(directory=PAGE))

    @app.websocket("/frames")
    async def frames(socket: WebSocket) -> None:
        host, origin = socket.headers.get("host", ""), socket.headers.get("origin")
        if not is_host(host, hosts) or (origin is not None and origin.partition("://")[2] != host):
            await socket.close(1008, "another origin")
            return
        if len(visitors) >= VISITORS:
            await socket.accept()
            await socket.close(1013, "too many visitors; try again later")
            return
        await socket.accept()
        visitors.add(socket)
        try:
            await _serve(socket, known, lock)
        finally:
            visitors.discard(socket)

    return app


async def _serve(socket: Any, known: Mapping[str, Model], lock: asyncio.Lock) -> None:
    """Answer one visitor until it goes."""
    from fastapi import WebSocketDisconnect

    settings = VisitorSettings([next(iter(known))])
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        text, data = message.get("text"), message.get("bytes") or b""
        number = int.from_bytes(data[:4], "big") if data else None
        answers: list[dict[str, Any]] = []
        try:
            if text is not None:
                settings.update(text, known)
                continue
            if len(data) < 4:
                raise InputError("frame: expected a number of 4 bytes and a picture, got less; send both")
            picture = await asyncio.to_thread(decode, data[4:])
            for name in settings.models:
                async with lock:
                    answers.append(await asyncio.to_thread(detect, known[name], picture, settings.threshold))
        except InputError as error:
            answers = [{"error": str(error)}]
        except Exception as error:  # whatever an engine raises: out of memory, say
            logger.exception("A frame was not answered")
            answers = [{"error": f"the detector failed ({first_line(error)}); see the server's output"}]
        try:
            for answer in answers:
                await socket.send_text(json.dumps({"frame": number} | answer))
        except (WebSocketDisconnect, RuntimeError):  # gone while it was being answered
            return


def detect(model: Model, picture: np.ndarray, threshold: float) -> dict[str, Any]:
    """What a model finds in a picture (H, W, 3), RGB, uint8, as the page takes it."""
    started = time.perf_counter()
    detections = model.predict(picture, threshold)
    milliseconds = 1000 * (time.perf_counter() - started)
    objects = to_answer(detections, picture.shape[0], picture.shape[1], model.info.classes)
    return {"model": model.name, "ms": round(milliseconds, 2), "objects": objects}


def is_host(header: str, hosts: Sequence[str]) -> bool:
    """Whether a Host header, with or without its port, is one of these names."""
    name = re.sub(r":\d+$", "", header.strip().lower())
    if name in hosts:
        return True
    with contextlib.suppress(ValueError):
        return "*" in hosts and bool(ipaddress.ip_address(name.strip("[]")))
    return False


def make_protocol() -> Any:
    """uvicorn's HTTP that lets go of those who connect and do not ask for anything within ``PATIENCE``.

    Raises:
        InputError: uvicorn is not installed.
    """
    require_module("uvicorn")
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.loop.call_later(PATIENCE, self._end_silence)

        def _end_silence(self) -> None:
            if self.cycle is None and self.transport.get_protocol() is self:  # no request, and no WebSocket
                self.transport.close()

    return Protocol


class OneLine(logging.Filter):
    """What clients send is no reason for a traceback: uvicorn's of text that is not UTF-8 is left at its first line."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError):
            record.exc_info = None
        return True
