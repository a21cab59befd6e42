"""Clients of the demo's server that behave badly: those that go, and those that send what they should not.

Each is a function of the port that returns when it is done; one that expects an answer raises ``AssertionError`` where
it gets another.
"""

import base64
import json
import os
import random
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

import cv2
import numpy as np
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

Stalling = Callable[[int, Callable[[], bool]], None]
TEXT, BINARY, CLOSE, RESERVED = 1, 2, 8, 3  # opcodes
LARGEST, VISITORS = 8 << 20, 8  # bytes of a message and visitors that the server takes
HEAD = (
    "GET /frames HTTP/1.1\r\nHost: localhost:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n"
)


def picture(height: int = 96, width: int = 128) -> bytes:
    """A JPEG."""
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", noise)[1].tobytes()


PICTURE = picture()


def message(number: int, data: bytes = PICTURE) -> bytes:
    """A frame as the page sends it."""
    return number.to_bytes(4, "big") + data


def masked(opcode: int, payload: bytes, declared: int | None = None, first: int = 0x80) -> bytes:
    """A client's WebSocket frame; ``first``: its bits for the end and for extensions."""
    length, mask = len(payload) if declared is None else declared, os.urandom(4)
    size = bytes([0x80 | length]) if length < 126 else bytes([0x80 | 127]) + struct.pack(">Q", length)
    scrambled = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))
    return bytes([first | opcode]) + size + mask + scrambled


def upgraded(port: int) -> socket.socket:
    """A bare socket after the handshake."""
    found = socket.create_connection(("127.0.0.1", port), timeout=30)
    found.sendall(HEAD.format(port=port, key=base64.b64encode(os.urandom(16)).decode()).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        part = found.recv(1)
        assert part, "expected a handshake, the server closed"
        answer += part
    assert b" 101 " in answer, answer[:80]
    return found


def visit(port: int, **options: object) -> ClientConnection:
    return connect(f"ws://localhost:{port}/frames", max_size=LARGEST, open_timeout=60, **options)


def come_together(port: int) -> None:
    """As many visitors as the server takes, with large pictures, all at once: its threads are there afterwards."""
    large = message(1, picture(1200, 1600))
    with ExitStack() as stack:
        crowd = [stack.enter_context(visit(port)) for _ in range(VISITORS)]
        for _ in range(3):
            for client in crowd:
                client.send(large)
            for client in crowd:
                client.recv(timeout=60)


def reset(gone: socket.socket) -> None:
    """Close with a TCP reset."""
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.close()


# --- those that go ----------------------------------------------------------------------------------------------------


def close_in_a_message(port: int) -> None:
    with closing(upgraded(port)) as gone:
        gone.sendall(masked(BINARY, message(1)[:500], declared=100_000))


def reset_in_a_message(port: int) -> None:
    gone = upgraded(port)
    gone.sendall(masked(BINARY, message(1)[:500], declared=100_000))
    reset(gone)


def vanish_while_computing(port: int) -> None:
    with closing(upgraded(port)) as gone:
        gone.sendall(masked(BINARY, message(1)))


def reset_while_computing(port: int) -> None:
    gone = upgraded(port)
    gone.sendall(masked(BINARY, message(1)) * 3)
    time.sleep(0.01)
    reset(gone)


def close_while_computing(port: int) -> None:
    with closing(upgraded(port)) as gone:
        gone.sendall(masked(BINARY, message(1)) + masked(CLOSE, struct.pack(">H", 1001)))


def half_a_handshake(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as gone:
        gone.sendall(HEAD.format(port=port, key="AAAA")[:90].encode())
        time.sleep(0.5)


def reset_after_the_handshake_was_asked(port: int) -> None:
    gone = socket.create_connection(("127.0.0.1", port), timeout=30)
    gone.sendall(HEAD.format(port=port, key=base64.b64encode(os.urandom(16)).decode()).encode())
    reset(gone)


DISCONNECTS: tuple[Callable[[int], None], ...] = (
    close_in_a_message,
    reset_in_a_message,
    vanish_while_computing,
    reset_while_computing,
    close_while_computing,
    half_a_handshake,
    reset_after_the_handshake_was_asked,
)

# --- those that send what they should not -----------------------------------------------------------------------------


def told(port: int, sent: str | bytes, expected: str) -> None:
    """What is sent is answered by an error of one line, and the same client's next frame by what was found."""
    with visit(port) as client:
        client.send(sent)
        error = json.loads(client.recv(timeout=60)).get("error", "")
        assert expected in error and "\n" not in error, error
        client.send(message(5))
        assert json.loads(client.recv(timeout=60))["frame"] == 5


def closed(port: int, sent: bytes, code: int) -> None:
    """What is sent on a bare socket ends the connection with this code."""
    with closing(upgraded(port)) as client:
        client.sendall(sent)
        answer = b""
        while part := client.recv(1 << 16):
            answer += part
        assert struct.pack(">H", code) in answer[:8], answer[:40]


def bomb() -> bytes:
    """A JPEG of a few hundred bytes that declares 60000 x 60000 pixels."""
    content = bytearray(picture(16, 16))
    start = content.index(b"\xff\xc0") + 5  # of the frame: its length and precision come first
    content[start : start + 4] = struct.pack(">HH", 60_000, 60_000)
    return bytes(content)


def large_text(port: int) -> None:
    """More than a message may have, made small by compression."""
    with visit(port) as client:
        client.send("x" * (LARGEST + 1))
        try:
            answer = client.recv(timeout=60)
        except ConnectionClosed as end:
            assert end.rcvd is not None and end.rcvd.code == 1009, end
        else:
            raise AssertionError(f"expected a closed connection, got {answer[:80]!r}")


def large_bytes(port: int) -> None:
    closed(port, masked(BINARY, bytes(1000), declared=LARGEST + 1), 1009)


def no_http(port: int) -> None:
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as client:
        client.sendall(random.Random(0).randbytes(2000) + b"\r\n\r\n")
        while client.recv(1 << 16):
            pass


MALFORMED: dict[str, Callable[[int], None]] = {
    "text for a frame": lambda port: told(port, PICTURE.hex(), "settings: expected"),
    "bad JSON": lambda port: told(port, '{"models": [', "settings: expected"),
    "deep JSON": lambda port: told(port, "[" * 100_000, "settings: expected"),
    "random bytes": lambda port: told(port, message(1, random.Random(1).randbytes(5000)), "do not decode"),
    "less than a number": lambda port: told(port, b"\0\0", "expected a number of 4 bytes"),
    "a truncated JPEG": lambda port: told(port, message(1, PICTURE[: len(PICTURE) // 2]), "do not decode"),
    "a JPEG bomb": lambda port: told(port, message(1, bomb()), "frame: expected"),
    "an unknown opcode": lambda port: closed(port, masked(RESERVED, b"?"), 1002),
    "reserved bits": lambda port: closed(port, masked(BINARY, b"?", first=0xB0), 1002),
    "an unmasked frame": lambda port: closed(port, b"\x82\x01?", 1002),
    "text that is no UTF-8": lambda port: closed(port, masked(TEXT, b"\xff\xfe\xfd"), 1007),
    "no HTTP": no_http,
    "over the limit, compressed": large_text,
    "over the limit, bare": large_bytes,
}

# --- those that are slow ----------------------------------------------------------------------------------------------


def read_nothing(port: int, over: Callable[[], bool]) -> None:
    """Send frames and take no answer, until the server takes no more or the time is over."""
    with closing(upgraded(port)) as client:
        client.settimeout(0.2)
        stop = time.monotonic() + 10
        while not over() and time.monotonic() < stop:
            try:
                client.sendall(masked(BINARY, message(9)))
            except TimeoutError:
                return
            time.sleep(0.05)


def byte_by_byte(port: int, over: Callable[[], bool]) -> None:
    """A frame's message in single bytes, and then its answer."""
    with closing(upgraded(port)) as client:
        whole = masked(BINARY, message(3))
        for index in range(200):
            if over():
                return
            client.sendall(whole[index : index + 1])
            time.sleep(0.01)
        client.sendall(whole[200:])
        assert client.recv(2)[:1] == b"\x81"


def stay_in_the_handshake(port: int, over: Callable[[], bool]) -> None:
    """Half a request, and then nothing: the server ends it."""
    with closing(socket.create_connection(("127.0.0.1", port), timeout=30)) as client:
        client.sendall(HEAD.format(port=port, key="AAAA")[:90].encode())
        client.settimeout(0.5)
        stop = time.monotonic() + 30
        while not over():
            assert time.monotonic() < stop, "expected the server to close, it has not for 30 s"
            try:
                assert client.recv(1) == b""
                return
            except TimeoutError:
                continue


SLOW: tuple[Stalling, ...] = (read_nothing, byte_by_byte, stay_in_the_handshake)
