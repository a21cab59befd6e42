"""Numbered pictures, videos of them, and a server on loopback that gives them."""

import http.server
import threading
import time
from pathlib import Path

import cv2
import numpy as np

from norton_det.live import Frame
from norton_det.live.video import VideoSink


def picture(number: int, height: int = 96, width: int = 128) -> np.ndarray:
    """BGR; its brightness tells its number, and its top left corner is blue."""
    image = np.full((height, width, 3), 10 * (number % 25), np.uint8)
    image[: height // 3, : width // 3] = (255, 0, 0)
    return image


def video(path: Path, frames: int = 12, height: int = 96, width: int = 128) -> Path:
    sink = VideoSink(path, 10.0)
    for number in range(frames):
        sink.write(picture(number, height, width), Frame(picture(number), number, number / 10))
    sink.close()
    return path


def number_of(image: np.ndarray) -> int:
    return round(float(image[image.shape[0] // 2 :, image.shape[1] // 2 :].mean()) / 10)


class Server:
    """Loopback: files by name, and ``/live``, a motion JPEG of numbered pictures that ends after ``frames``."""

    def __init__(self, folder: Path, frames: int = 20, pause: float = 0.01) -> None:
        outer = self
        self.connections = 0

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args) -> None:
                super().__init__(*args, directory=str(folder))

            def log_message(self, *_args) -> None:
                pass

            def do_GET(self) -> None:
                if self.path != "/live":
                    return super().do_GET()
                outer.connections += 1
                if outer.connections > outer.lives:
                    return self.send_error(404)
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                for number in range(frames):
                    body = cv2.imencode(".jpg", picture(number))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
                    try:
                        self.wfile.write(head.encode() + body + b"\r\n")
                    except OSError:
                        return None
                    time.sleep(pause)
                return None

        self.lives = 2**31
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
