"""A real browser for tests: headless Chromium, driven through chromedriver by the W3C WebDriver protocol."""

import json
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from tempfile import TemporaryDirectory

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
)  # fmt: skip


@contextmanager
def chromedriver():
    """The port of a driver, from which any number of browsers start."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([CHROMEDRIVER, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait(lambda: socket.create_connection(("127.0.0.1", port)).close() is None, OSError)
        yield port
    finally:
        process.terminate()
        process.wait()


@contextmanager
def browser(port):
    """A browser with a profile of its own."""
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        made = _call(port, "POST", "/session", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        session = Browser(port, f"/session/{made['sessionId']}")
        try:
            yield session
        finally:
            session("DELETE", "")


class Browser:
    def __init__(self, port, session):
        self.port, self.session = port, session

    def __call__(self, method, path, body=None):
        return _call(self.port, method, self.session + path, body)

    def open(self, address):
        self("POST", "/url", {"url": address})

    def reload(self):
        self("POST", "/refresh", {})

    def back(self):
        self("POST", "/back", {})

    def run(self, script, *arguments):
        """What the body of a JavaScript function returns, in the page."""
        return self("POST", "/execute/sync", {"script": script, "args": arguments})

    def click(self, selector):
        """As a person would: the element is scrolled to the middle, and must not be covered."""
        self.find(selector)
        self.run("document.querySelector(arguments[0]).scrollIntoView({block: 'center'})", selector)
        self("POST", f"/element/{self.find(selector)}/click", {})

    def type(self, selector, keys):
        self("POST", f"/element/{self.find(selector)}/value", {"text": keys})

    def text(self, selector):
        return self("GET", f"/element/{self.find(selector)}/text")

    def find(self, selector):
        found = wait(lambda: self("POST", "/element", {"using": "css selector", "value": selector}), WebDriverError)
        return next(iter(found.values()))

    def devtools(self, command, **parameters):
        return self("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})


class WebDriverError(Exception):
    pass


def wait(condition, *errors, seconds=10.0):
    """The first true value of `condition`, or its last error."""
    end = time.monotonic() + seconds
    while True:
        try:
            if value := condition():
                return value
        except errors:
            if time.monotonic() > end:
                raise
        if time.monotonic() > end:
            raise TimeoutError(f"not true within {seconds} s")
        time.sleep(0.05)


def _call(port, method, path, body=None):
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())["value"]
    connection.close()
    if isinstance(answer, dict) and "error" in answer:
        raise WebDriverError(f"{answer['error']}: {answer['message'].splitlines()[0]}")
    return answer
