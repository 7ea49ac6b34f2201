import json
import re
from html.parser import HTMLParser

import pytest
import yaml
from tiny_scene import tiny_scene

from dream4d.evaluate import report as module
from dream4d.evaluate.report import report

PROMPT = 'a <script>alert("cat")</script> & co'
ROW = {"run": "", "prompt": PROMPT, "metrics": {"faces": 1.0, "jitter": 0.004}, "exact": {"faces": 0.98}, "read": {}}


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measured", lambda folder, device: ROW)
    return make(tmp_path / "run")


def make(folder):
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump({"prompt": PROMPT, "seed": 3}))
    tiny_scene().save(folder / "scene.safetensors")
    (folder / "video.mp4").write_bytes(b"a video")
    (folder / "sheet.png").write_bytes(b"a sheet")
    lines = [{"stage": "static", "step": step, "2d": 10.0 - step} for step in range(3)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


class Tags(HTMLParser):
    """Every tag with its attributes; complains about ones that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.open = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "polyline"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, tag):
        return [attributes for name, attributes in self.seen if name == tag]


def test_a_page_holds_all_of_a_run_and_asks_for_nothing_else(run, tmp_path):
    text = report([run], tmp_path / "page.html").read_text()
    tags = Tags(text)
    assert tags.of("script") == [], "a prompt is text"
    assert [video["src"] for video in tags.of("video")] == ["data:video/mp4;base64,YSB2aWRlbw=="]
    assert [image["src"] for image in tags.of("img")] == ["data:image/png;base64,YSBzaGVldA=="]
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert all(source.startswith("data:") for source in sources)
    assert "seed: 3" in text
    assert "<td>faces</td><td>1.00</td><td></td><td>0.98</td>" in text
    (curve,) = tags.of("polyline")
    assert curve["points"] == "0.0,0.0 120.0,24.0 240.0,48.0"


def test_several_runs_have_means_first(run, tmp_path):
    text = report([run, make(tmp_path / "other")], tmp_path / "page.html").read_text()
    assert len(Tags(text).of("section")) == 3
    assert "2 runs" in text
    assert "<td>faces</td><td>1.00</td><td>1.00 to 1.00</td>" in text


def test_a_run_without_pictures_still_has_a_page(run, tmp_path):
    for name in ("video.mp4", "sheet.png", "metrics.jsonl"):
        (run / name).unlink()
    tags = Tags(report([run], tmp_path / "page.html").read_text())
    assert tags.of("video") == tags.of("img") == tags.of("svg") == []


def test_nothing_is_written_for_what_is_no_run(run, tmp_path):
    page = tmp_path / "page.html"
    wrong = (([], "which runs"), ([run, tmp_path], "not a run"), ([run / "scene.safetensors"], "folder"))
    for sources, message in wrong:
        with pytest.raises(ValueError, match=message):
            report(sources, page)
    assert not page.exists()
