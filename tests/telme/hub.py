"""A model hub on loopback that serves folders, in as much of Hugging Face's HTTP interface as downloads need."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(ThreadingHTTPServer):
    """Repositories by their ids."""

    def __init__(self, repositories: Mapping[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories

    def answer(self, path: str) -> bytes | None:
        """What lies under a path."""
        for hub_id, folder in self.repositories.items():
            files = sorted(folder.iterdir())
            if path.startswith(f"api/models/{hub_id}/tree/"):
                return json.dumps([_entry(file) for file in files]).encode()
            if path.startswith(f"api/models/{hub_id}"):
                siblings = [{"rfilename": file.name} for file in files]
                return json.dumps({"_id": "0", "id": hub_id, "sha": COMMIT, "siblings": siblings}).encode()
            if path.startswith(f"{hub_id}/resolve/"):
                return (folder / path.rpartition("/")[2]).read_bytes()
        return None


class _Handler(BaseHTTPRequestHandler):
    server: _Hub

    def do_GET(self) -> None:
        self._reply(with_body=True)

    def do_HEAD(self) -> None:
        self._reply(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # named so in the base class
        """Say nothing."""

    def _reply(self, with_body: bool) -> None:
        found = self.server.answer(unquote(urlsplit(self.path).path).strip("/"))
        content = b"" if found is None else found
        self.send_response(404 if found is None else 200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        if found is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        if with_body:
            self.wfile.write(content)


@contextmanager
def serve(repositories: Mapping[str, Path]) -> Iterator[str]:
    """Serve repositories until the block ends; gives the address."""
    hub = _Hub(repositories)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{hub.server_port}"
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


def _entry(file: Path) -> dict[str, object]:
    content = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
