"""A hub on this machine: the few answers of the Hugging Face hub's HTTP interface that a download needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SHA = "0123456789abcdef0123456789abcdef01234567"
OLD = "fedcba9876543210fedcba9876543210fedcba98"
REPO = "acme/tiny-model"


@dataclass
class Hub:
    """What the server has, how it behaves, and what it was asked."""

    folder: Path
    """Files of REPO at its main branch and at the tag "v1"."""
    gated: bool = False
    """Whether files want a login; names and sizes are public, as on the hub."""
    private: bool = False
    status: int = 0
    """HTTP status of every answer; 0: the right ones."""
    page: bytes = b""
    """What is sent in place of every answer."""
    breaks: str = ""
    """A file whose download is cut in the middle."""
    asked: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    url: str = ""

    def downloads(self) -> list[str]:
        """Names of files that were sent."""
        return [line.rpartition("/")[2] for line in self.asked if line.startswith("GET") and "/resolve/" in line]


@contextmanager
def serve(folder: Path) -> Iterator[Hub]:
    """Run the hub while the block runs."""
    hub = Hub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.hub.asked.append(f"{self.command} {path}")
        if token := self.headers.get("Authorization"):
            self.hub.tokens.add(token)
        if self.hub.status or self.hub.page:
            self._send(self.hub.status or 200, self.hub.page or b"{}", {}, body)
        elif match := re.fullmatch(rf"/api/models/{REPO}(?:/(revision|tree)/([^/]+))?", path):
            self._api(match[1] or "revision", match[2] or "main", body)
        elif match := re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], body)
        else:
            self._fail(404, "RepoNotFound", body)

    def _api(self, what: str, revision: str, body: bool) -> None:
        if self.hub.private:
            self._fail(401, "RepoNotFound", body)
            return
        if (sha := _commit(revision)) is None:
            self._fail(404, "RevisionNotFound", body)
            return
        files = sorted(path for path in self.hub.folder.rglob("*") if path.is_file())
        names = {path.relative_to(self.hub.folder).as_posix(): path.read_bytes() for path in files}
        answer: Any = [
            {"type": "file", "path": name, "size": len(data), "oid": _oid(data)} for name, data in names.items()
        ]
        if what == "revision":
            siblings = [{"rfilename": n, "size": len(d), "blobId": _oid(d)} for n, d in names.items()]
            answer = {"id": REPO, "sha": sha, "private": False, "gated": "manual" if self.hub.gated else False,
                      "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)

    def _file(self, revision: str, name: str, body: bool) -> None:
        if self.hub.gated and self.headers.get("Authorization") != "Bearer hf_accepted":
            self._fail(403, "GatedRepo", body)
            return
        path, sha = self.hub.folder / name, _commit(revision)
        if sha is None or not path.is_file():
            self._fail(404, "EntryNotFound", body)
            return
        data = path.read_bytes()
        headers = {"ETag": f'"{_oid(data)}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        self._send(200, data, headers, body, cut=name == self.hub.breaks)

    def _fail(self, status: int, code: str, body: bool) -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


def _commit(revision: str) -> str | None:
    return {"main": SHA, "v1": SHA, SHA: SHA}.get(revision)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
