from threading import Thread

import numpy as np
import pytest
from webdriver import CHROMEDRIVER, CHROMIUM, WebDriverError, browser, chromedriver, wait

from dream4d.evaluate.study.design import read_study
from dream4d.evaluate.study.server import StudyServer
from dream4d.evaluate.study.votes import Votes
from dream4d.media import write_video

from .conftest import add_run

pytestmark = pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="needs chromium and chromedriver")
PHONE = {"width": 375, "height": 700, "deviceScaleFactor": 2, "mobile": True}
TITLE = "return document.title"
PLAYING = "return [...document.querySelectorAll('video')].map((v) => [v.currentTime, v.readyState, v.paused])"


@pytest.fixture
def server(tmp_path):
    for variant, colour in (("ours", (1, 0, 0)), ("no-grid", (0, 1, 0)), ("no-tv", (0, 0, 1))):
        for seed, prompt in enumerate(("a cat is waving", "two dogs")):
            frames = np.linspace(0.2, 1, 16)[:, None, None, None] * np.ones((16, 32, 128, 3)) * colour
            write_video(add_run(tmp_path, variant, prompt, seed=seed) / "video.mp4", frames, fps=16)
    with StudyServer(read_study(tmp_path, checks=1), Votes(tmp_path / "votes.db", create=True), port=0) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def browsers():
    with chromedriver() as port, browser(port) as one, browser(port) as two:
        two.devtools("Emulation.setDeviceMetricsOverride", **PHONE)
        yield one, two


@pytest.fixture
def people(server, browsers):
    """Two people, the second on a phone, who have opened the page and agreed."""
    for each in browsers:
        each.open(server.addresses()[0])
        each.click("button.next")
        each.find("#vote")
    return browsers


def vote(page, place):
    before = page.run(TITLE)
    page.click(f".choice:nth-of-type({place + 1})")
    page.click("button.next")
    wait(lambda: page.run(TITLE) != before, WebDriverError)


def test_two_raters_to_the_last_vote_with_a_reload(server, people):
    one, two = people
    total = len(server.study.trials(""))
    for number in range(total):
        assert one.text("header b") == two.text("header b") == str(number + 1)
        if number == 1:
            for person in people:
                asked = person.run("return document.querySelector('main').innerText")
                person.reload()
                assert person.run("return document.querySelector('main').innerText") == asked
        vote(one, 0)
        vote(two, 1)
    assert one.text("h1") == two.text("h1") == "Thank you!"
    stored = server.votes.all()
    assert sorted(vote.place for vote in stored) == [0] * total + [1] * total
    assert sorted(vote.number for vote in stored) == sorted([*range(total), *range(total)])


def test_videos_play_in_step(people):
    for person in people:
        wait(lambda page=person: all(ready == 4 and at > 0.2 for at, ready, _ in page.run(PLAYING)))
        times = [at for at, _, _ in person.run(PLAYING)]
        assert len(times) > 1
        assert max(times) - min(times) < 1 / 16  # a frame
        wait(lambda page=person: all(at < 0.2 for at, _, _ in page.run(PLAYING)))  # all over again
        person.click("#pause")
        assert all(paused for _, _, paused in person.run(PLAYING))
        person.click("#replay")
        assert not any(paused for _, _, paused in person.run(PLAYING))


def test_keys_alone_are_enough(server, people):
    page = people[0]
    page.run("document.querySelector('input[type=radio]').focus()")
    page.type("input[type=radio]", "\ue015\ue007")  # down, enter
    wait(lambda: page.text("header b") == "2", WebDriverError)
    assert [vote.place for vote in server.votes.all()] == [1]


def test_nothing_is_sent_without_a_choice(server, people):
    people[0].click("button.next")
    assert people[0].text("header b") == "1"
    assert server.votes.all() == []


def test_back_and_another_choice_changes_nothing(server, people):
    page = people[0]
    page.run("window.open(location.href)")  # the same question in a second tab
    vote(page, 0)
    second = page("GET", "/window/handles")[1]
    page("POST", "/window", {"handle": second})
    page.click(".choice:nth-of-type(2)")
    page.click("button.next")
    wait(lambda: "the first answer stands" in page.text("h1"), WebDriverError)
    page.click("a")
    assert page.text("header b") == "2"
    page.back()
    page.back()
    assert page.text("header b") == "2"
    assert [vote.place for vote in server.votes.all()] == [0]


def test_it_fits_a_phone(people):
    phone = people[1]
    wide = "return document.documentElement.scrollWidth"
    assert phone.run(wide) == PHONE["width"]
    sizes = phone.run("return [...document.querySelectorAll('.choice, button')].map((e) => e.offsetHeight)")
    assert min(sizes) >= 44  # pixels, a fingertip


def test_nothing_comes_from_elsewhere(server, people):
    address = server.addresses()[0]
    for person in people:
        wait(lambda page=person: page.run("return document.readyState") == "complete")
        loaded = person.run("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert any(name.endswith(".mp4") for name in loaded)
        assert all(name.startswith(address) for name in loaded)
