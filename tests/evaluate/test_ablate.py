"""Runs that cost nothing: `recipes.text_to_4d` and `runs.evaluate` are replaced where workers are threads."""

import json
import os
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest

from dream4d import recipes
from dream4d.evaluate import ablate, runs
from dream4d.evaluate.ablate import ablation, figure, jobs, measured, run_all, same_static_stage, values_of
from dream4d.presets import ABLATIONS, BUILTIN
from dream4d.presets import ablate as without

SETTINGS = replace(BUILTIN, device="cpu")
DIED = "died"


class Here:
    """A pool without processes. A job whose function says so takes the pool with it."""

    def __init__(self, *_):
        self.broken = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, job):
        future = Future()
        self.broken = self.broken or (result := function(job)) is DIED
        if self.broken:
            future.set_exception(BrokenProcessPool())
        else:
            future.set_result(result)
        return future


@pytest.fixture
def made(monkeypatch):
    """What was made, in order; every run has a scene afterwards and scores 1, with seed 1 it scores 0."""
    calls = []

    def text_to_4d(prompt, settings, out, *, static=None):
        calls.append((out.parent.name, prompt, settings.seed, static is not None and static.is_file()))
        if prompt == "a broken cat":
            raise ValueError("the static stage diverged\nat step 3")
        out.mkdir(parents=True, exist_ok=True)
        for name in ("static", "scene"):
            (out / f"{name}.safetensors").touch()

    def evaluate(sources, *, device):
        (source,) = sources
        return {"rows": [{"metrics": {"aligned": float(not source.name.endswith("-1"))}, "exact": {}, "read": {}}]}

    monkeypatch.setattr(ablate, "_pool", Here)
    monkeypatch.setattr(recipes, "text_to_4d", text_to_4d)
    monkeypatch.setattr(runs, "evaluate", evaluate)
    return calls


def test_every_sentence_is_made_by_every_variant_with_every_seed(tmp_path):
    todo = jobs(["a cat", "a dog"], SETTINGS, tmp_path, seeds=2)
    assert len({job.folder for job in todo}) == len(todo) == 6 * 2 * 2
    assert {(job.variant, job.prompt, job.seed) for job in todo} == {
        (variant, prompt, seed) for variant in ("ours", *ABLATIONS) for prompt in ("a cat", "a dog") for seed in (0, 1)
    }
    assert all(job.settings == replace(without(SETTINGS, job.variant), seed=job.seed)
               for job in todo if job.variant != "ours")  # fmt: skip
    assert todo[0].folder == tmp_path / "ours" / "a-cat-0"


def test_variants_of_the_motion_take_the_static_scene_of_ours():
    assert [name for name in ABLATIONS if same_static_stage(SETTINGS, without(SETTINGS, name))] == ["no-grid", "no-tv"]
    todo = jobs(["a cat"], SETTINGS, "out", seeds=1)
    assert [job.variant for job in todo][-2:] == ["no-grid", "no-tv"], "after the runs that they wait for"
    assert {job.variant for job in todo if job.static} == {"no-grid", "no-tv"}
    assert not any(job.static for job in jobs(["a cat"], SETTINGS, "out", variants=["no-tv"], seeds=1))


@pytest.mark.parametrize(("wrong", "message"), [
    ({"prompts": []}, "0 sentences"), ({"seeds": 0}, "0 seeds"), ({"variants": ["no-2D"]}, "did you mean no-2d"),
])
def test_what_cannot_be_compared_is_refused(wrong, message):
    arguments = {"prompts": ["a cat"], "settings": SETTINGS, "out": "out"} | wrong
    with pytest.raises(ValueError, match=message):
        jobs(**arguments)


def test_failed_runs_stand_beside_the_others(made, tmp_path, capsys):
    done, failed = ablation(["a cat", "a broken cat"], SETTINGS, tmp_path, variants=["ours", "no-tv"], seeds=2)
    assert values_of(done) == {
        name: {("a cat", 0): {"aligned": 1.0}, ("a cat", 1): {"aligned": 0.0}} for name in ("ours", "no-tv")
    }
    assert [shared for variant, prompt, _, shared in made if prompt == "a cat" and variant == "no-tv"] == [True, True]
    assert failed[0].job.variant == "ours"
    assert failed[0].error == "the static stage diverged at step 3"
    assert len(failed) == 4
    assert "the static stage diverged" in failed[0].job.log.read_text(), "with its traceback"
    assert str(failed[0].job.folder) in capsys.readouterr().err


def test_a_run_whose_process_dies_is_started_again(made, tmp_path, monkeypatch):
    starts, work = [], ablate._work

    def dying(job):
        starts.append(job.prompt)
        dies = job.prompt == "a heavy cat" or (job.prompt == "a shaky cat" and starts.count("a shaky cat") == 1)
        return DIED if dies else work(job)

    monkeypatch.setattr(ablate, "_work", dying)
    todo = jobs(["a cat", "a shaky cat", "a heavy cat"], SETTINGS, tmp_path, variants=["ours"], seeds=1)
    outcomes = {outcome.job.prompt: outcome for outcome in run_all(todo)}
    assert outcomes["a cat"].row
    assert outcomes["a shaky cat"].row
    assert starts.count("a cat") == 1
    assert outcomes["a heavy cat"].error.startswith("its process died; see ")
    assert starts.count("a heavy cat") == ablate.TRIES


def test_measurements_are_kept_as_long_as_the_scene_is(made, tmp_path, monkeypatch):
    (job,) = jobs(["a cat"], SETTINGS, tmp_path, variants=["ours"], seeds=1)
    (outcome,) = run_all([job])
    assert json.loads((job.folder / "evaluation.json").read_text()) == outcome.row
    asked = []
    monkeypatch.setattr(runs, "evaluate", lambda sources, device: asked.append(sources) or {"rows": [outcome.row]})
    assert measured(job.folder, "cpu") == outcome.row
    assert asked == []
    newer = (job.folder / "evaluation.json").stat().st_mtime + 10
    os.utime(job.folder / "scene.safetensors", (newer, newer))
    measured(job.folder, "cpu")
    assert len(asked) == 1


def test_the_figure_has_the_variants_of_a_sentence_below_each_other(made, tmp_path):
    from PIL import Image
    from tiny_scene import tiny_scene

    done, _ = ablation(["a cat", "a dog"], SETTINGS, tmp_path, variants=["ours", "no-tv"], seeds=1)
    for outcome in done:
        tiny_scene(moving=True).save(outcome.job.folder / "scene.safetensors")
    one, two = (Image.open(figure(done, tmp_path / "figure.png", sentences=n, size=8)).size for n in (1, 2))
    assert one == (two[0], two[1] / 2)
    assert one[1] == 16 + 14 + 2 * (8 + 2) + 2


@pytest.mark.slow
def test_processes_share_the_work_and_go_on_where_they_stopped(tmp_path):
    from tiny_models import save_denoiser, save_image_model, unet_2d, unet_3d

    from dream4d.presets import merge

    save_image_model(tmp_path / "image")
    save_denoiser(tmp_path / "multiview", unet_2d(multiview=True))
    save_denoiser(tmp_path / "video", unet_3d())
    settings = merge(SETTINGS, {
        "scene": {"log2_size": 10, "levels": 2, "plane_levels": 1, "plane_size": 8, "blob_radius": 0.15},
        "deformation": {"log2_size": 10, "levels": 2},
        "priors": {name: str(tmp_path / name) for name in ("image", "multiview", "video")} | {"video_frames": 2},
        "static": {  # what is small stays small, and is measured quickly
            "steps": 2, "resolution": 8, "samples_per_ray": 16, "learning_rate_grid": 0, "learning_rate_mlp": 0,
        },
        "dynamic": {"steps": 2, "height": 8, "width": 8, "samples_per_ray": 16, "levels": 2},
        "output": {"preview_every": 0, "size": 16, "frames": 2},
    })
    out = tmp_path / "out"
    done, failed = ablation(["a cat"], settings, out, variants=["ours", "no-tv", "hexplane"], seeds=1, workers=2)
    assert failed == []
    assert {outcome.job.variant for outcome in done} == {"ours", "no-tv", "hexplane"}
    values = values_of(done)
    assert all("jitter" in values[name]["a cat", 0] for name in ("ours", "no-tv"))
    assert values["ours"]["a cat", 0]["rest_psnr"] == 100
    scenes = {file: file.stat().st_mtime_ns for file in out.glob("*/*/scene.safetensors")}
    again, _ = ablation(["a cat"], settings, out, variants=["ours", "no-tv", "hexplane"], seeds=1)
    assert values_of(again) == values
    assert scenes == {file: file.stat().st_mtime_ns for file in out.glob("*/*/scene.safetensors")}
