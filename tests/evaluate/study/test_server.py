import re
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from http.client import HTTPConnection
from threading import Thread
from urllib.parse import urlencode

import pytest

from dream4d.evaluate.study.design import read_study
from dream4d.evaluate.study.server import StudyServer
from dream4d.evaluate.study.votes import Votes

from .conftest import VARIANTS

FORM = "application/x-www-form-urlencoded"


@pytest.fixture
def server(runs, tmp_path):
    with StudyServer(read_study(runs), Votes(tmp_path / "votes.db", create=True), port=0) as server:
        Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


class Rater:
    """Someone's browser: keeps the cookie, and remembers all that it got but the videos."""

    def __init__(self, server):
        self.port, self.cookie, self.seen = server.server_address[1], "", ""
        self.host = f"127.0.0.1:{self.port}"

    def send(self, method, path, body=None, **headers):
        sent = {"Host": self.host, "Cookie": self.cookie, "Origin": f"http://{self.host}", "Content-Type": FORM}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, body, {name: value for name, value in sent.items() if value is not None})
        answer = connection.getresponse()
        answer.body = answer.read()
        connection.close()
        self.seen += f"{answer.headers}\n" + ("" if path.startswith("/video/") else answer.body.decode())
        if cookie := answer.getheader("Set-Cookie"):
            self.cookie = cookie.partition(";")[0]
        return answer

    def start(self):
        assert self.send("POST", "/start", "").status == 303
        return self

    def page(self):
        return self.send("GET", "/").body.decode()

    def form(self, place=0):
        page = self.page()
        hidden = {name: re.search(rf'name="{name}" value="(\w+)"', page)[1] for name in ("key", "number")}
        return hidden | {"place": place}

    def vote(self, form, **headers):
        return self.send("POST", "/vote", urlencode(form), **headers)

    def videos(self):
        return re.findall(r'src="(/video/[^"]+)"', self.page())


@pytest.fixture
def rater(server):
    return Rater(server).start()


def test_a_study_to_its_last_vote(server, rater):
    total, addresses = len(server.study.trials("")), []
    for number in range(total):
        page = rater.page()
        assert f"<title>Question {number + 1} of {total}</title>" in page
        videos = rater.videos()
        addresses += videos
        trial = server.study.trials(next(iter(server.votes.raters())))[number]
        for video, shown in zip(videos, trial.videos, strict=True):
            assert rater.send("GET", video).body == f"{shown.variant}: {shown.case.prompt}".encode()
        assert unescape(re.search('<p class="prompt">(.*)</p>', page)[1]) == trial.case.prompt
        assert rater.vote(rater.form(number % 2)).status == 303
    assert "Thank you!" in rater.page()
    assert [vote.place for vote in server.votes.all()] == [number % 2 for number in range(total)]
    assert len(set(addresses)) == len(addresses)
    for word in (*VARIANTS, str(server.votes.file.parent), "<b>bold"):
        assert not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", rater.seen), word


def test_a_second_rater_has_other_addresses_and_may_use_the_same_device(server, rater):
    first = rater.cookie, rater.videos()
    assert rater.start().cookie == first[0]  # not finished
    assert not set(Rater(server).start().videos()) & set(first[1])
    for _ in server.study.trials(""):
        rater.vote(rater.form())
    assert rater.start().cookie != first[0]
    assert "Question <b>1</b>" in rater.page()


def test_a_vote_again_changes_nothing(server, rater):
    form = rater.form(1)
    assert [rater.vote(form).status for _ in range(3)] == [303] * 3
    changed = rater.vote(form | {"place": 0})
    assert changed.status == 409
    assert b"the first answer stands" in changed.body
    assert [vote.place for vote in server.votes.all()] == [1]
    assert rater.form()["number"] == "1"


def test_votes_at_once_are_one(server, rater):
    form = rater.form()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda place: rater.vote(form | {"place": place}).status, [0, 1] * 4))
    assert sorted(answers) == [303] * 4 + [409] * 4
    assert len(server.votes.all()) == 1


def test_another_server_goes_on(server, rater, runs):
    rater.vote(rater.form())
    with StudyServer(read_study(runs), Votes(server.votes.file), port=0) as again:
        Thread(target=again.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        rater.port, rater.host = again.server_address[1], f"127.0.0.1:{again.server_address[1]}"
        assert rater.form()["number"] == "1"
        again.shutdown()
    next(runs.glob("ours/*/video.mp4")).write_bytes(b"rendered again")
    with pytest.raises(ValueError, match="votes on other videos"):
        StudyServer(read_study(runs), Votes(server.votes.file), port=0)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"number": "999"}, 400),
        ({"number": "-1"}, 400),
        ({"number": "0; DROP TABLE votes"}, 400),
        ({"number": "\u0663"}, 400),  # a digit, but not ours
        ({"number": "1"}, 409),  # not asked yet
        ({"place": "7"}, 400),
        ({"place": "ours"}, 400),
        ({"place": "0' OR '1'='1"}, 400),
        ({"place": ""}, 400),
        ({"place": None}, 400),
        ({"variant": "ours"}, 400),
        ({"key": "0" * 64}, 403),
        ({"key": "\u00e9"}, 403),
        ({"key": None}, 403),
    ],
)
def test_hostile_fields_store_nothing(server, rater, change, status):
    form = {name: value for name, value in (rater.form() | change).items() if value is not None}
    assert rater.vote(form).status == status
    assert server.votes.all() == []
    assert rater.form()["number"] == "0"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Host": "evil.example"}, 421),  # a name of theirs that means this machine
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Cookie": ""}, 403),
        ({"Content_Type": "application/json"}, 415),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Length": "1000000000"}, 413),
        ({"Content_Length": "-1"}, 411),
        ({"Content_Length": "many"}, 411),
        ({"Transfer_Encoding": "chunked", "Content_Length": "10"}, 411),
    ],
)
def test_hostile_headers_store_nothing(server, rater, headers, status):
    assert rater.vote(rater.form(), **headers).status == status
    assert server.votes.all() == []


@pytest.mark.parametrize("body", ["key", "key=%ff", "&" * 99, b"\xff\x00", "a=1&" * 9 + "a=1"])
def test_broken_forms_are_refused(server, rater, body):
    answer = rater.send("POST", "/vote", body)
    assert 400 <= answer.status < 500
    assert server.votes.all() == []


def test_a_field_twice_is_refused(server, rater):
    assert rater.send("POST", "/vote", f"{urlencode(rater.form(0))}&place=1").status == 400
    assert server.votes.all() == []


def test_a_form_of_another_rater_is_refused(server, rater):
    stranger = Rater(server).start()
    assert rater.vote(rater.form() | {"key": stranger.form()["key"]}).status == 403
    assert server.votes.all() == []


@pytest.mark.parametrize(
    "path",
    [
        "/video/../../votes.db", "/video/..%2f..%2fvotes.db", "/video/", "/video/0.mp4", "/votes.db", "/server.py",
        "//evil.example/", "/study.css/../page.py", "/video/%00", "/vote",
    ],
)  # fmt: skip
def test_nothing_else_is_served(rater, path):
    answer = rater.send("GET", path)
    assert answer.status == 404
    assert b"There is no such" in answer.body


def test_videos_are_for_their_rater_and_question(server, rater):
    videos = rater.videos()
    assert Rater(server).start().send("GET", videos[0]).status == 404
    assert Rater(server).send("GET", videos[0]).status == 404
    rater.vote(rater.form())
    assert rater.send("GET", videos[0]).status == 404


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-1", 206, slice(0, 2)), ("bytes=3-", 206, slice(3, None)), ("bytes=-4", 206, slice(-4, None)),
        ("bytes=2-9999", 206, slice(2, None)), ("bytes=-9999", 206, slice(None)), ("bytes=9999-", 416, slice(0)),
        ("bytes=5-2", 416, slice(0)), ("bytes=-0", 416, slice(0)), ("bytes=-", 200, slice(None)),
        ("bytes=0-1,4-5", 200, slice(None)), ("lines=0-1", 200, slice(None)),
    ],
)  # fmt: skip
def test_ranges_as_phones_ask_for_them(rater, asked, status, part):
    video = rater.videos()[0]
    whole = rater.send("GET", video).body
    answer = rater.send("GET", video, Range=asked)
    assert (answer.status, answer.body) == (status, whole[part])
    if status == 206:
        start = part.indices(len(whole))[0]
        assert answer.getheader("Content-Range") == f"bytes {start}-{start + len(answer.body) - 1}/{len(whole)}"


def test_what_every_answer_says(rater):
    for path in ("/", "/study.css", "/study.js", "/study.svg", rater.videos()[0], "/absent"):
        answer = rater.send("GET", path)
        policy = answer.getheader("Content-Security-Policy")
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy
        assert answer.getheader("X-Content-Type-Options") == "nosniff"
        assert not {"ETag", "Last-Modified"} & set(answer.headers)
        assert answer.getheader("Server") == "dream4d"
        assert rater.send("HEAD", path).body == b""
    assert not re.search(r"https?://|<style|\son\w+=|style=|<script>", rater.page())


def test_the_cookie_is_the_raters_alone(server):
    cookie = Rater(server).send("POST", "/start", "").getheader("Set-Cookie")
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
    for forged in ("study=" + "a" * 43, cookie.partition("=")[0] + "=" + "a" * 43, "\x01;;=", "a=b; " * 200):
        assert "I agree, start" in Rater(server).send("GET", "/", Cookie=forged).body.decode()


def test_names_of_this_machine(server):
    for host in ("localhost:1", "127.0.0.1", "192.168.7.7:8000", "[fe80::1]:80", "LOCALHOST"):
        assert server.is_called(host), host
    server.names.add("study.example")
    assert server.is_called("study.example")
    for host in ("", "evil.example", "localhost.evil.example", "user@evil.example", "1.2.3.4.5", "a\x00"):
        assert not server.is_called(host), host


def test_unknown_methods_and_broken_requests_are_one_line(server):
    assert Rater(server).send("DELETE", "/").status == 501
    assert Rater(server).send("GET", "/", None, **{f"X{n}": "1" for n in range(120)}).status == 431


def test_an_address_that_is_taken(server, runs, tmp_path):
    for port in (server.server_address[1], 70000):
        with pytest.raises(ValueError, match=rf"cannot serve on 127\.0\.0\.1, port {port}"):
            StudyServer(server.study, server.votes, port=port)
