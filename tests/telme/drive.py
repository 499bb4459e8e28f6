"""Google Drive on loopback, behind a proxy that ends TLS itself: clients need nothing but the usual environment.

    with serve("FILE_ID", content, folder) as drive:
        subprocess.run(command, env={**os.environ, **drive.environment})

`HTTPS_PROXY` sends every https address here, and `REQUESTS_CA_BUNDLE` makes this server's certificate believed. It
answers as Google does to a large file: first a page that warns of an unscanned file, then the file from another host,
with ranges.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal, TypeAlias
from urllib.parse import parse_qs, urlsplit

import pytest

# `stalling`: half of the file, then silence. `cut`: half of it each time, then the end of the connection.
Mood: TypeAlias = Literal["willing", "stalling", "cut", "cut once", "quota", "private", "broken"]

MODIFIED = "Tue, 05 Mar 2024 10:00:00 GMT"
_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")
_WARNING = (
    "<html><head><title>Google Drive - Virus scan warning</title></head><body>\n"
    '<p class="uc-warning-caption">Google Drive can\'t scan this file for viruses.</p>\n'
    '<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">'
    '<input type="submit" id="uc-download-link" value="Download anyway"/>'
    '<input type="hidden" name="id" value="{id}"><input type="hidden" name="export" value="download">'
    '<input type="hidden" name="confirm" value="t"><input type="hidden" name="uuid" value="1234"></form>\n'
    "</body></html>"
)
_QUOTA = (
    "<html><head><title>Google Drive - Quota exceeded</title></head><body>\n"
    '<p class="uc-error-caption">Sorry, you can&#39;t view or download this file at this time.</p>\n'
    '<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try accessing '
    "the file again later.</p>\n</body></html>"
)
_SIGN_IN = "<html><head><title>Google Drive: Sign-in</title></head><body>Sign in</body></html>"


@dataclass
class Drive:
    """A running Drive.

    Attributes:
        environment: Variables that lead a client here.
        mood: How it answers from now on.
        ranges: The Range header of each request for the file itself, None where there was none.
        stopping: Set at the end.
    """

    file_id: str
    content: bytes
    environment: dict[str, str]
    mood: Mood = "willing"
    ranges: list[str | None] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, certificate: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.tls.load_cert_chain(certificate)
        self.drive: Drive


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def do_CONNECT(self) -> None:
        """What a proxy is asked for before TLS; this one is the far end too."""
        if self.path.partition(":")[0] not in _HOSTS:
            self.send_error(502, "no such host here")
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        try:
            self.connection = self.server.tls.wrap_socket(self.connection, server_side=True)
        except OSError:
            self.close_connection = True
            return
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def finish(self) -> None:
        """The server closes the socket that it accepted, which TLS has detached."""
        super().finish()
        self.connection.close()

    def do_GET(self) -> None:
        drive = self.server.drive
        url = urlsplit(self.path)
        asked = parse_qs(url.query)
        if asked.get("id") != [drive.file_id]:
            self._page(404, "<html>not found</html>")
        elif drive.mood == "broken":
            self._page(503, "<html>Service unavailable</html>")
        elif drive.mood in ("quota", "private"):
            self._page(200, _QUOTA if drive.mood == "quota" else _SIGN_IN)
        elif asked.get("confirm") != ["t"]:
            self._page(200, _WARNING.format(id=drive.file_id))
        else:
            with suppress(OSError):  # the client went away
                self._file(drive)

    def _page(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def _file(self, drive: Drive) -> None:
        wanted = self.headers.get("Range")
        drive.ranges.append(wanted)
        first = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        whole = len(drive.content)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Disposition", 'attachment; filename="model.tar.gz"')
        self.send_header("Content-Length", str(whole - first))
        self.send_header("Last-Modified", MODIFIED)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{whole - 1}/{whole}")
        self.end_headers()
        mood = drive.mood
        if mood == "willing" or (mood == "cut once" and first):
            self.wfile.write(drive.content[first:])
            return
        self.wfile.write(drive.content[first : first + (whole - first) // 2])
        if mood == "stalling":
            drive.stopping.wait()
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # named so in the base class
        """Say nothing."""


@contextmanager
def serve(file_id: str, content: bytes, folder: Path) -> Iterator[Drive]:
    """A Drive with one shared file, until the block ends.

    Args:
        file_id: Under which the file is shared.
        content: The file.
        folder: For the certificate.
    """
    certificate = _certificate(folder)
    with _Server(certificate) as server:
        proxy = f"http://127.0.0.1:{server.server_port}"
        drive = Drive(
            file_id, content, {"HTTPS_PROXY": proxy, "https_proxy": proxy, "REQUESTS_CA_BUNDLE": str(certificate)}
        )
        server.drive = drive
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield drive
        finally:
            drive.stopping.set()
            server.shutdown()
            thread.join()


def _certificate(folder: Path) -> Path:
    """A certificate of Google's hosts, signed by itself, and its key in one file."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the openssl command, to make a certificate for Google Drive on loopback")
    path = folder / "drive.pem"
    names = ",".join(f"DNS:{host}" for host in _HOSTS)
    request = [openssl, "req", "-x509", "-nodes", "-days", "2", "-newkey", "ec", "-pkeyopt"]
    request += ["ec_paramgen_curve:prime256v1", "-subj", "/CN=Drive on loopback", "-addext", f"subjectAltName={names}"]
    subprocess.run([*request, "-keyout", path, "-out", folder / "cert.pem"], check=True, capture_output=True)
    with path.open("ab") as file:
        file.write((folder / "cert.pem").read_bytes())
    return path
