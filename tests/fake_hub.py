"""A Hugging Face hub on 127.0.0.1 that serves folders as repositories and refuses as the real one does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """repos: folder by id. gated: ids whose list is open and whose files are not, as on the hub. bodies: what is sent
    of a file in place of its content. asked: the paths of all requests."""

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.bodies: dict[str, bytes] = {}
        self.status: int | None = None
        self.asked: list[str] = []
        self.endpoint = ""


@contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            hub.asked.append(path)
            if hub.status is not None:
                return self.refuse(hub.status)
            if path.startswith("api/models/"):
                repo, _, revision = path.removeprefix("api/models/").partition("/revision/")
                return self.listing(repo, revision)
            repo, _, rest = path.partition("/resolve/")
            revision, _, file = rest.partition("/")
            if repo not in hub.repos:
                return self.refuse(401, "RepoNotFound")
            if repo in hub.gated:
                return self.refuse(401, "GatedRepo")
            if not (hub.repos[repo] / file).is_file():
                return self.refuse(404, "EntryNotFound")
            content = (hub.repos[repo] / file).read_bytes()
            sent = hub.bodies.get(file, content)
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            if body:
                self.wfile.write(sent)
            return None

        def listing(self, repo: str, revision: str) -> None:
            if repo not in hub.repos:
                return self.refuse(401, "RepoNotFound")
            if revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            files = [file for file in sorted(hub.repos[repo].rglob("*")) if file.is_file()]
            answer = {"id": repo, "sha": COMMIT, "siblings": [
                {"rfilename": str(file.relative_to(hub.repos[repo])), "size": file.stat().st_size} for file in files
            ]}
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())
            return None

        def refuse(self, status: int, code: str | None = None) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
