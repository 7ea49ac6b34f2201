"""Serves a study over HTTP: any number of raters, each with one secret cookie and one question at a time.

Nothing that is sent names a variant: a video has an address of its own for each rater, question and place. Every
answer forbids scripts, styles and pictures from elsewhere; a form counts only from a page of this server, with the
rater's key.
"""

from __future__ import annotations

import re
import socket
import sqlite3
import sys
from collections.abc import Callable, Sequence
from hashlib import sha256
from hmac import compare_digest
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from socketserver import TCPServer
from urllib.parse import parse_qs, urlsplit

from dream4d.evaluate.study import page
from dream4d.evaluate.study.design import Study, Trial
from dream4d.evaluate.study.votes import ConflictError, Votes, code

LARGEST_FORM = 4096
"""Bytes."""
_ASSETS = {"/study.css": "text/css", "/study.js": "text/javascript", "/study.svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "media-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with no-referrer, browsers would not say where a form comes from
    "X-Content-Type-Options": "nosniff",
    "Connection": "close",
}


def serve(
    study: Study, votes: str | Path, *, host: str = "127.0.0.1", port: int = 8000, names: Sequence[str] = ()
) -> None:
    """Serve `study` until Ctrl-C. votes: their file. host, port, names: as in `StudyServer`.

    Raises ValueError for an address that cannot be used, and for votes on another study.
    """
    with StudyServer(study, Votes(votes, create=True), host, port, names) as server:
        for note in study.notes:
            print(f"note: {note}", file=sys.stderr)
        asked = ", ".join(f"{name} ({' / '.join(variants)})" for name, variants in study.comparisons.items())
        print(f"{len(study.trials(''))} questions for each rater: {asked}\nvotes go to {votes}\n"
              f"open {' or '.join(server.addresses())}, Ctrl-C ends", flush=True)  # fmt: skip
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print(f"\nstopped with {len(server.votes.all())} votes in {votes}; the same command goes on")


class StudyServer(ThreadingHTTPServer):
    """The study on `host` and `port`, 0 for any that is free.

    names: further names that browsers may call this machine by, e.g. behind a proxy. A site elsewhere could make a name
    of its own mean this machine; requests by such names are refused.
    """

    daemon_threads = True

    def __init__(
        self, study: Study, votes: Votes, host: str = "127.0.0.1", port: int = 8000, names: Sequence[str] = ()
    ):
        votes.belong_to(study.fingerprint)
        self.study, self.votes = study, votes
        self.cookie = f"study-{study.fingerprint[:8]}"  # browsers do not tell ports apart
        own = socket.gethostname().lower()
        self.names = {"localhost", own, f"{own}.local", host.lower(), *(name.lower() for name in names)}
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            super().__init__((host, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ValueError(f"cannot serve on {host}, port {port}: {error}; choose another --host or --port") from None

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's asks a name server who this is

    def addresses(self) -> list[str]:
        """Where a browser finds it; that of the network too where it listens to all."""
        host, port = str(self.server_address[0]), self.server_address[1]
        hosts = [host] if not ip_address(host).is_unspecified else ["localhost", *_network_address(":" in host)]
        return [f"http://{f'[{each}]' if ':' in each else each}:{port}/" for each in hosts]

    def is_called(self, host: str) -> bool:
        """Whether `host`, a request's, is a name or an address of this server."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.names or bool(ip_address(name))
        except ValueError:
            return False

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is no news; all else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _RefusedError(Exception):
    """status: of HTTP. text: one line for whoever sent the request."""

    def __init__(self, status: HTTPStatus, text: str):
        self.status, self.text = status, text


class _Handler(BaseHTTPRequestHandler):
    server: StudyServer
    protocol_version = "HTTP/1.1"
    timeout = 30  # seconds that a request may take to arrive

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, make: Callable[[], None]) -> None:
        try:
            self._check_host()
            make()
        except _RefusedError as refusal:
            self._send_page(page.notice(refusal.text), refusal.status)
        except sqlite3.Error as error:
            print(f"error: {self.server.votes.file}: {error}", file=sys.stderr)
            self._send_page(page.notice("Nothing can be stored now; try again."), HTTPStatus.SERVICE_UNAVAILABLE)

    def _get(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/":
            self._send_page(self._current_page())
        elif path in _ASSETS:
            asset = (files(__package__) / path[1:]).read_bytes()
            self._send(HTTPStatus.OK, asset, _ASSETS[path], {"Cache-Control": "no-cache"})
        elif path.startswith("/video/"):
            self._send_video(self._find_video(path))
        else:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _post(self) -> None:
        self._check_origin()
        form = self._form()
        if self.path == "/start":
            self._start()
        elif self.path == "/vote":
            self._vote(form)
        else:
            raise _RefusedError(HTTPStatus.NOT_FOUND, "There is no such page.")

    def _start(self) -> None:
        """A new rater, unless this one has not finished."""
        rater = self._rater()
        trials = self.server.study.trials(rater or "")
        if rater and self.server.votes.count(rater) < len(trials):
            return self._redirect()
        secret = self.server.votes.add_rater(len(trials))
        return self._redirect({
            "Set-Cookie": f"{self.server.cookie}={secret}; HttpOnly; SameSite=Strict; Path=/; Max-Age={30 * 24 * 3600}"
        })

    def _vote(self, form: dict[str, str]) -> None:
        rater = self._rater()
        if rater is None or not compare_digest(form.get("key", "").encode(), _key(self._secret()).encode()):
            raise _RefusedError(HTTPStatus.FORBIDDEN, "This form is not yours, or your browser keeps no cookies.")
        if set(form) != {"key", "number", "place"}:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "A vote has a number and a place.")
        trials = self.server.study.trials(rater)
        number = _index(form["number"], len(trials))
        trial = trials[number]
        place = _index(form["place"], len(trial.videos))
        try:
            self.server.votes.add(rater, number, trial, place)
        except ConflictError as conflict:
            raise _RefusedError(HTTPStatus.CONFLICT, str(conflict)) from None
        self._redirect()

    def _current_page(self) -> str:
        rater = self._rater()
        trials = self.server.study.trials(rater or "")
        if rater is None:
            return page.welcome(len(trials))
        number = self.server.votes.count(rater)
        if number >= len(trials):
            return page.thanks(rater)
        return page.question(trials[number], number, len(trials), _key(self._secret()), self._addresses(number, trials))

    def _addresses(self, number: int, trials: Sequence[Trial]) -> list[str]:
        """Of the videos of trial `number`: only this rater can know them, and no two are the same."""
        marks = (f"video {self._secret()} {number} {place}" for place in range(len(trials[number].videos)))
        return [f"/video/{sha256(mark.encode()).hexdigest()[:24]}.mp4" for mark in marks]

    def _find_video(self, path: str) -> bytes:
        """A video of the rater's current trial."""
        rater = self._rater()
        if rater is not None:
            trials, number = self.server.study.trials(rater), self.server.votes.count(rater)
            if number < len(trials) and path in (addresses := self._addresses(number, trials)):
                return self.server.study.files[trials[number].videos[addresses.index(path)]].read_bytes()
        raise _RefusedError(HTTPStatus.NOT_FOUND, "There is no such video in this question.")

    def _send_video(self, video: bytes) -> None:
        """All of it, or the range that is asked for, without which phones do not play."""
        headers = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600"}
        part = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", self.headers.get("Range", ""))
        if part is None or not any(part.groups()):
            return self._send(HTTPStatus.OK, video, "video/mp4", headers)
        first, last = part.groups()
        start = int(first) if first else max(0, len(video) - int(last))
        stop = min(int(last) + 1, len(video)) if first and last else len(video)
        if start >= stop:
            headers["Content-Range"] = f"bytes */{len(video)}"
            return self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", "video/mp4", headers)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(video)}"
        return self._send(HTTPStatus.PARTIAL_CONTENT, video[start:stop], "video/mp4", headers)

    def _secret(self) -> str:
        """What the rater's cookie says, unchecked; "" without one."""
        found = re.search(rf"(?:^|;\s*){self.server.cookie}=([\w-]{{43}})(?:;|$)", self.headers.get("Cookie", ""))
        return found[1] if found else ""

    def _rater(self) -> str | None:
        rater = code(self._secret())
        return rater if self.server.votes.knows(rater) else None

    def _check_host(self) -> None:
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.is_called(hosts[0]):
            raise _RefusedError(HTTPStatus.MISDIRECTED_REQUEST, "This server has another name; see --names.")

    def _check_origin(self) -> None:
        origin = urlsplit(self.headers.get("Origin", ""))
        if origin.scheme not in ("http", "https") or origin.netloc != self.headers["Host"]:
            raise _RefusedError(HTTPStatus.FORBIDDEN, "This form comes from another site.")

    def _form(self) -> dict[str, str]:
        """The fields of the request's form, each of which is there once."""
        if self.headers.get("Content-Type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise _RefusedError(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send a form.")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,18}", length) or "Transfer-Encoding" in self.headers:
            raise _RefusedError(HTTPStatus.LENGTH_REQUIRED, "Say how long the form is.")
        if int(length) > LARGEST_FORM:
            raise _RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The form is too long.")
        try:
            body = self.rfile.read(int(length)).decode("ascii")
            fields = parse_qs(body, True, strict_parsing=bool(body), errors="strict", max_num_fields=8)
        except ValueError:
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "The form cannot be read.") from None
        if any(len(values) > 1 for values in fields.values()):
            raise _RefusedError(HTTPStatus.BAD_REQUEST, "The form has a field twice.")
        return {name: values[0] for name, values in fields.items()}

    def _redirect(self, headers: dict[str, str] | None = None) -> None:
        headers = {"Location": "/", "Cache-Control": "no-store"} | (headers or {})
        self._send(HTTPStatus.SEE_OTHER, b"", "text/plain", headers)

    def _send_page(self, html: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(status, html.encode(), "text/html; charset=utf-8", {"Cache-Control": "no-store"})

    def _send(self, status: HTTPStatus, body: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class refuses, such as broken requests, as the other refusals."""
        self._send_page(page.notice(f"{HTTPStatus(code).phrase}."), HTTPStatus(code))

    def version_string(self) -> str:
        return "dream4d"

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is logged: an address would name a rater."""


def _key(secret: str) -> str:
    """What a form of the rater with `secret` carries; nobody else can know it."""
    return sha256(f"form {secret}".encode()).hexdigest()


def _index(text: str, below: int) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text) or int(text) >= below:
        raise _RefusedError(HTTPStatus.BAD_REQUEST, "There is no such question or video.")
    return int(text)


def _network_address(v6: bool) -> list[str]:
    """This machine's address in its network, if it has one; nothing is sent."""
    with socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("2001:db8::1" if v6 else "192.0.2.1", 9))
        except OSError:
            return []
        return [str(probe.getsockname()[0])]
