"""A camera on the network that can fail on purpose: it serves pictures, garbage or nothing."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from contextlib import suppress
from threading import Event, Thread
from typing import Literal, TypeAlias

import numpy as np
import pytest
from PIL import Image

Mode: TypeAlias = Literal["pictures", "broken pictures", "noise", "nothing"]

_HEAD = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=ffmpeg\r\n\r\n"
_PICTURE_S = 0.04
_NOISE = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes()


class FaultyCamera:
    """MJPEG over HTTP.

    Attributes:
        url: Its address.
        mode: What it serves; a change takes effect with the next picture.
        colour: RGB of its pictures.
        served: Clients it has had.
    """

    def __init__(self) -> None:
        self.mode: Mode = "pictures"
        self.colour = (255, 0, 0)
        self.served = 0
        self._stopping = Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/camera.mjpg"
        self._servers: list[Thread] = []
        self._thread = Thread(target=self._main, name="faulty-camera", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        for server in self._servers:
            server.join()

    def _main(self) -> None:
        while not self._stopping.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.served += 1
            server = Thread(target=self._serve_one, args=(client,), name="faulty-camera-client", daemon=True)
            server.start()
            self._servers.append(server)

    def _serve_one(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        """Serve one client until it goes or the mode changes; one that is there when nothing is served is kept."""
        mode = self.mode
        if mode in ("pictures", "broken pictures"):
            client.sendall(_HEAD)
        while not self._stopping.wait(_PICTURE_S):
            if self.mode == "nothing":
                mode = "nothing"
            elif self.mode != mode:
                return
            else:
                client.sendall(_NOISE if mode == "noise" else self._part(mode == "broken pictures"))

    def _part(self, is_broken: bool) -> bytes:
        picture = io.BytesIO()
        Image.new("RGB", (320, 240), self.colour).save(picture, "JPEG")
        body = picture.getvalue()
        if is_broken:
            body = body[:20] + _NOISE[: len(body)]
        head = f"--ffmpeg\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
        return head.encode() + body + b"\r\n"


@pytest.fixture
def faulty_camera() -> Iterator[FaultyCamera]:
    """A camera that serves red pictures until it is told otherwise."""
    camera = FaultyCamera()
    yield camera
    camera.stop()
