"""A stream that fails and comes back with pictures of other sizes, and a process that watches it, slowly at times.

Each picture tells its number by sixteen black or white fields, above and below; so the watcher sees whether frames come
in order, whole and in their size. It writes what it saw as JSON.
"""

import contextlib
import http.server
import json
import os
import socket
import struct
import sys
import threading
import time
from typing import Any

import cv2
import numpy as np

from tests.process import resident

BITS, QUIET = 16, 0.02  # fields of a number; seconds between frames
SIZES = ((240, 320), (480, 640), (360, 480), (120, 160))
PER_SIZE = 10  # frames before the size changes


def numbered(number: int) -> np.ndarray:
    """(H, W, 3), uint8, in the size that this number has."""
    height, width = SIZES[number // PER_SIZE % len(SIZES)]
    fields = np.array([255 * (number >> bit & 1) for bit in range(BITS)], np.uint8)
    row = np.repeat(fields, width // BITS)
    image = np.full((height, width, 3), 128, np.uint8)
    image[: height // 3] = image[-(height // 3) :] = row[None, :, None]
    return image


def number_of(image: np.ndarray) -> int:
    """Of a picture; -1 for one that is damaged, or of a size that none has.

    OpenCV brings the frames of a connection to the size of its first one.
    """
    height, width = image.shape[:2]
    read = []
    for line in (height // 6, height - height // 6):
        fields = image[line].mean(axis=1).reshape(BITS, width // BITS).mean(axis=1)
        read.append(sum(1 << bit for bit, value in enumerate(fields) if value > 128))
    return read[0] if read[0] == read[1] and (height, width) in SIZES else -1


class Stream:
    """Motion JPEG on loopback at ``url``, in so many lives of so many seconds, which end in ways that differ.

    A life is over at once when ``unplugged`` is set.
    """

    def __init__(self, lives: int, seconds: float) -> None:
        self.lives, self.begun, self.number, self.unplugged = lives, 0, 0, False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                if outer.begun >= outer.lives:
                    self.send_error(404)
                    return
                outer.begun += 1
                with contextlib.suppress(OSError):
                    self.send_response(200)
                    self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                    self.end_headers()
                    outer.give(self.wfile, time.monotonic() + seconds)
                    outer.fail(self.wfile, self.connection)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/live"

    def give(self, out: Any, until: float) -> None:
        """Frames, each with the next number."""
        while time.monotonic() < until and not self.unplugged:
            out.write(self.part())
            time.sleep(QUIET)

    def part(self) -> bytes:
        body = cv2.imencode(".jpg", numbered(self.number % (1 << BITS)))[1].tobytes()
        self.number += 1
        return f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body + b"\r\n"

    def fail(self, out: Any, line: socket.socket) -> None:
        """End at a frame, within one, by a reset, or with noise."""
        kind = self.begun % 4
        if kind == 1:
            out.write(self.part()[:-2000])
        elif kind == 2:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            line.close()
        elif kind == 3:
            out.write(os.urandom(5000))

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def watch(url: str) -> dict[str, Any]:
    """See a stream until it is lost for good."""
    from norton_det.live import SourceLost
    from norton_det.live.camera import Camera

    before = threading.active_count()
    source, seen, wrong, last, memory, pauses = Camera(url, back_off=(0.05, 0.1, 0.2, 0.4)), 0, [], -1, [], []
    ended, moment = "", time.monotonic()
    try:
        for frame in source:
            pauses.append(time.monotonic() - moment)
            number = number_of(frame.image)
            ahead = (number - last) % (1 << BITS)
            if number < 0 or not 0 < ahead < 1 << (BITS - 1):
                wrong.append(f"{number} {frame.image.shape[:2]} after {last}")
            seen, last = seen + 1, number if number >= 0 else last
            memory.append((time.monotonic(), resident()))
            time.sleep((0, 0, 0.01, 0.1, 0.3)[seen % 5])  # a consumer that is slow at times
            moment = time.monotonic()
    except SourceLost as lost:
        ended = str(lost)
    source.close()
    return {
        "frames": seen,
        "wrong": wrong[:5],
        "wrongs": len(wrong),
        "reopened": source.reopened,
        "ended": ended,
        "memory": memory,
        "threads": [before, threading.active_count()],
        "longest": max(pauses, default=0.0),
    }


if __name__ == "__main__":
    print(json.dumps(watch(sys.argv[1])))
