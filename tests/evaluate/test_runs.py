"""Runs whose scenes are exact toys, and one with a field in it."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import save_clip
from tiny_scene import tiny_scene

import dream4d
from dream4d.evaluate import runs, toy
from dream4d.evaluate.runs import METRICS, evaluate, summary, table
from dream4d.film import Extent
from dream4d.render import Render
from dream4d.toyworld.grammar import parse

PROMPT = "a green dog wearing a top hat is jumping"
BUILTIN = {"image": "builtin", "multiview": "none", "video": "builtin"}


def make_run(folder, prompt=PROMPT, *, priors=BUILTIN, static=True, **config):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"prompt": prompt, "priors": priors, **config}))
    tiny_scene(moving=True).save(folder / "scene.safetensors")
    if static:
        tiny_scene().save(folder / "static.safetensors")
    return folder


@pytest.fixture
def exact(monkeypatch):
    """Cameras see the toy of PROMPT whatever the scene, at rest where it has no deformation. It is drawn quickly: flat,
    and displaced as a whole."""
    def draw(combination, shots, device, generator=None):
        rgb = toy.drawing(combination, shots, device)
        opacity = ((rgb - 0.5).abs().amax(-1) > 0.02).float()
        times = torch.tensor([time for time, _ in shots])[:, None, None, None]
        return Render(rgb, opacity, 2.9 * opacity, opacity[..., None] * times * torch.ones(3), rgb)

    def photograph(scene, shots, **_):
        return draw(parse(PROMPT), [(0.0 if scene.deformation is None else time, side) for time, side in shots], "cpu")

    monkeypatch.setattr(runs, "photograph", photograph)
    monkeypatch.setattr(toy, "exact", draw)
    monkeypatch.setattr(runs, "Extent", lambda scene: None)


def test_a_run_that_is_the_exact_toy_has_its_numbers(exact, tmp_path):
    document = evaluate([make_run(tmp_path / "run")])
    (row,) = document["rows"]
    assert row["run"] == str(tmp_path / "run")
    assert row["prompt"] == PROMPT
    assert row["read"] == {"kind": "dog", "colour": "green", "prop": "top hat", "motion": "jumping"}
    assert row["metrics"].pop("static_psnr") == row["metrics"].pop("rest_psnr") == 100
    assert row["metrics"] == row["exact"]
    assert list(row["metrics"]) == [name for name in METRICS if name in row["metrics"]]
    assert document["mean"]["kind"] == {"mean": row["metrics"]["kind"], "runs": 1}
    assert document["units"]["jitter"] == "scene units / frame^2"
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_several_runs_have_means_and_intervals(exact, tmp_path):
    right = make_run(tmp_path / "right")
    wrong = make_run(tmp_path / "wrong", "a green dog wearing a scarf is bowing", static=False)
    document = evaluate([right, wrong])
    one, two = (row["metrics"]["prop"] for row in document["rows"])
    assert one > 0.9
    assert two == 0
    found = document["mean"]["prop"]
    assert found["mean"] == pytest.approx(one / 2)
    assert (found["low"], found["high"], found["runs"]) == (0, one, 2)
    assert document["mean"]["static_psnr"]["runs"] == 1
    shown = table(document)
    assert f"2 {wrong}: a green dog wearing a scarf is bowing; the judge reads green dog, top hat, jumping" in shown
    (line,) = (line for line in shown.splitlines() if line.startswith("  prop"))
    assert line.split()[:4] == ["prop", f"{one:.2f}", "0.00", f"{one / 2:.2f}"]


@pytest.mark.parametrize(
    ("prompt", "priors"),
    [("a squirrel riding a motorcycle", BUILTIN), ("a toy", BUILTIN), (PROMPT, BUILTIN | {"image": "sd21"})],
)
def test_the_judge_is_silent_of_what_is_not_its_world(exact, tmp_path, prompt, priors):
    (row,) = evaluate([make_run(tmp_path / "run", prompt, priors=priors)])["rows"]
    assert row["exact"] == row["read"] == {}
    assert row["metrics"].keys() == {name for name, metric in METRICS.items() if metric.claim == "motion"} - {
        "motion_right", "motion_agreement", "clip_frames"
    } | {"depth_agreement", "colour_agreement", "static_psnr", "rest_psnr"}  # fmt: skip


def test_a_judge_of_ones_own_reads_runs_of_other_priors(exact, tmp_path):
    run = make_run(tmp_path / "run", priors=BUILTIN | {"image": "mine"})
    assert "kind" in evaluate([run], judge=Path(dream4d.__file__).parent / "data" / "judge")["rows"][0]["metrics"]
    with pytest.raises(ValueError, match="there is no judge"):
        evaluate([run], judge=tmp_path)


def test_clip_adds_its_scores(exact, tmp_path):
    run = make_run(tmp_path / "run", "a squirrel")
    (row,) = evaluate([run], clip=str(save_clip(tmp_path / "clip")))["rows"]
    assert -1 <= row["metrics"]["clip_text"] < 1
    assert 0.5 < row["metrics"]["clip_frames"] <= 1
    with pytest.raises(ValueError, match="--clip nowhere"):
        evaluate([run], clip="nowhere")


def test_an_animated_run_is_compared_with_what_it_came_from(exact, tmp_path):
    source = make_run(tmp_path / "source")
    run = make_run(tmp_path / "run", static=False, command="animate", source=str(source))
    assert evaluate([run])["rows"][0]["metrics"]["static_psnr"] == 100
    (source / "scene.safetensors").unlink()
    assert "static_psnr" not in evaluate([run])["rows"][0]["metrics"]


def test_a_lone_scene_file_has_numbers_of_motion(exact, tmp_path):
    scene = make_run(tmp_path / "run") / "scene.safetensors"
    (row,) = evaluate([scene])["rows"]
    assert row["prompt"] == ""
    assert row["metrics"]["amount"] > 0
    assert "no prompt" in table(evaluate([scene]))


def test_what_is_no_finished_run_is_refused_before_any_work(exact, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "footage", None)
    good, unfinished = make_run(tmp_path / "good"), make_run(tmp_path / "unfinished")
    (unfinished / "scene.safetensors").unlink()
    for bad, message in (
        ([], "say which runs"), ([good, unfinished], "that run is not finished"), ([tmp_path], "not a run folder"),
        ([tmp_path / "nowhere"], "there is no run and no scene file"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(bad)


def test_metrics_that_few_runs_have_are_averaged_over_those():
    found = summary([{"kind": 1.0, "prop": 0.5}, {"kind": 0.0}])
    assert found["prop"] == {"mean": 0.5, "runs": 1}
    assert (found["kind"]["mean"], found["kind"]["runs"]) == (0.5, 2)
    assert found.keys() == {"kind", "prop"}


def test_a_field_is_rendered_and_measured(tmp_path, monkeypatch):
    """A blob that hardly moves is kept, and is no dog that jumps."""
    monkeypatch.setattr(runs, "photograph", partial(runs.photograph, samples_per_ray=16, size=16))
    monkeypatch.setattr(runs, "Extent", partial(Extent, resolution=16, moments=2))
    (row,) = evaluate([make_run(tmp_path / "run")], device="cpu")["rows"]
    assert row["metrics"].keys() == row["exact"].keys() | {"static_psnr", "rest_psnr"}
    assert row["metrics"]["depth_agreement"] > 0.9
    assert row["metrics"]["static_psnr"] > 40
    assert row["metrics"]["amount"] < 0.01
    assert row["metrics"]["motion_right"] == 0
