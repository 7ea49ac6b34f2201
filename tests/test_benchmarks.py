"""The benchmark scripts on random models of a few thousand weights, so that no typo waits for a long run."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from gaussian_prior import GaussianPrior
from PIL import Image
from tiny_models import save_denoiser, save_image_model, unet_2d, unet_3d
from tiny_scene import tiny_scene

from dream4d import recipes, static
from dream4d.distill import remove_noise
from dream4d.evaluate.toy import PROP_PIXELS
from dream4d.occupancy import OccupancyGrid
from dream4d.presets import BUILTIN
from dream4d.schedules import Constant
from dream4d.toyworld.grammar import COLOURS, KINDS, MOTIONS, PROPS, Combination, evaluation_combinations, sentence

FOLDER = Path(__file__).parents[1] / "benchmarks"
COMBINATION = Combination("cat", "blue", "top hat", "waving")


@pytest.fixture(scope="module", autouse=True)
def importable():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield
        for name in ("builtin_quality", "field", "guidance", "motion_signal", "networks", "step", "steps", "report"):
            sys.modules.pop(name, None)


@pytest.fixture
def quality():
    import builtin_quality

    return builtin_quality


class Oracle:
    """Reads what it was told is there, and a wrong prop in every second view."""

    def __init__(self, quality, combination):
        self.azimuths = torch.tensor([azimuth for _, azimuth in quality.STILLS])
        self.combination = combination

    def read(self, images):
        assert images.shape == (48, 64, 64, 3)
        assert images.min() >= 0
        assert images.max() <= 1
        c, n = self.combination, len(images)
        prop = [None, *PROPS].index(c.prop)
        return SimpleNamespace(
            kind=torch.full((n,), KINDS.index(c.kind)), colour=torch.full((n,), COLOURS.index(c.colour)),
            prop=torch.where(torch.arange(n) % 2 == 0, prop, 0), azimuth=self.azimuths - 350.0,
        )  # fmt: skip

    def read_motion(self, clips):
        assert clips.shape == (5, 16, 64, 64, 3)
        right = MOTIONS.index(self.combination.motion)
        return torch.tensor([right, right, right, right + 1, right + 1])


def test_a_score_counts_what_it_says(quality):
    stills, clips = (torch.rand(len(shots), 64, 64, 3) for shots in (quality.STILLS, quality.CLIPS))
    visible = torch.zeros(48, dtype=torch.long)
    visible[:3] = PROP_PIXELS
    found = quality.score(Oracle(quality, COMBINATION), COMBINATION, stills, clips, visible)
    assert found["kind"] == found["colour"] == found["azimuth"] == (48, 48)
    assert found["prop"] == (2, 3)
    assert found["clips"] == (3, 5)
    assert found["motion"] == found["scene"] == (1, 1)
    assert found["read"] == {"kind": "cat", "colour": "blue", "prop": "top hat", "motion": "waving"}
    other = quality.score(
        Oracle(quality, COMBINATION), Combination("dog", "red", "cape", "bowing"), stills, clips, visible
    )
    assert other["kind"] == other["colour"] == (0, 48)
    assert other["scene"] == (0, 1)
    assert quality.add([found, other])["kind"] == (48, 96)


def test_an_azimuth_may_be_45_degrees_off_and_no_more(quality):
    oracle = Oracle(quality, COMBINATION)
    stills, clips = (torch.rand(len(shots), 64, 64, 3) for shots in (quality.STILLS, quality.CLIPS))
    for error, right in ((44.0, 48), (-44.0, 48), (46.0, 0), (-46.0, 0), (180.0, 0)):
        oracle.azimuths = torch.tensor([azimuth for _, azimuth in quality.STILLS]) + 350.0 + error
        assert quality.score(oracle, COMBINATION, stills, clips, torch.zeros(48))["azimuth"] == (right, 48)


class Clairvoyant:
    """A video prior whose latents are pixels and whose estimate is the clip that it was told to expect."""

    alpha_bar = torch.linspace(0.99, 0.01, 1000)

    def __init__(self, estimate):
        self.estimate = estimate

    def encode(self, videos):
        return videos

    def condition(self, prompts, negative, cameras):
        return None

    def predict_noise(self, noisy, timestep, condition):
        noise = remove_noise(noisy, self.estimate, 1 - self.alpha_bar[timestep])  # the roles of z and eps exchanged
        return noise, noise


def test_the_signal_of_a_motion_is_1_for_the_truth_and_0_for_what_it_has_nothing_of():
    import motion_signal

    options = SimpleNamespace(timesteps=[900, 300], repeats=1, guidance=5.0)
    jump = replace(COMBINATION, motion="jumping")
    truth = motion_signal.clip(jump, torch.linspace(0.05, 0.95, 16), torch.device("cpu"))
    assert motion_signal.signal(Clairvoyant(truth), jump, options) == pytest.approx([1, 1], abs=1e-3)
    assert max(motion_signal.signal(Clairvoyant(truth), COMBINATION, options)) < 0.5, "a jump is no waving"
    assert motion_signal.signal(Clairvoyant(truth[:, :1].expand_as(truth)), jump, options)[1] < 0.2, "it stands"


def test_a_step_is_timed_by_its_parts(monkeypatch):
    import steps

    settings = BUILTIN.static
    state = static.start_static(tiny_scene(), seed=0, occupancy=OccupancyGrid(8))
    small = replace(settings, resolution=Constant(8), samples_per_ray=16, steps=2)
    reports = static.fit_static(
        state, image_prior=GaussianPrior(torch.tensor([0.7, 0.2, 0.9])), multiview_prior=None, prompt="", settings=small
    )
    original = static.render
    with steps.stopwatches(state, static, "cpu") as spent:
        steps.take(reports, 2)
    assert spent.keys() == set(steps.PARTS) - {"rest"}
    assert min(spent.values()) > 0
    assert static.render is original
    assert steps.memory("cpu")["peak_gib"] > 0.1


def test_grids_fields_and_render_steps_are_timed(tmp_path, monkeypatch, capsys):
    import field

    few = {"levels": 2, "log2_size": 10}
    monkeypatch.setattr(field, "FRAMES", 3)
    monkeypatch.setattr(field, "BLOBS", {name: replace(shape, **few) for name, shape in field.BLOBS.items()})
    monkeypatch.setattr(field, "DeformationShape", partial(field.DeformationShape, **few))
    names = ["grid3d_rays_2p20_fwdbwd", "grid4d_rays_2p20_points", "static_8x64_opaque", "dynamic_24x144x80_soft"]
    numbers = tmp_path / "field.json"
    arguments = ["--device", "cpu", "--scale", "256", "--repeats", "1", "--out", str(numbers)]
    assert field.main([*arguments, "--cases", "grid3d_rays*_fwdbwd", *names[1:]]) == 0, "half tables end in _half"
    rows = {row["case"]: row for row in json.loads(numbers.read_text())}
    assert rows.keys() == {*names}
    for row in rows.values():
        assert row.keys() >= {"case", "ms", "peak_gib", "points", "device", "torch", "commit", "date", "scale", "share"}
        assert row["points"] > 0
        assert row["ms"] > 0
    assert rows[names[0]]["points"] == 2**20 // 256
    assert rows[names[0]]["differ"] == 0
    assert 0 < rows[names[2]]["visible"] < rows[names[2]]["points"]
    assert rows[names[2]]["occupied"] == pytest.approx(12.9, abs=0.05)
    assert rows[names[3]]["displacement"] > 0
    field.print_profile(field.cases()[names[0]](torch.device("cpu"), 256), torch.device("cpu"), repeats=1)
    assert "4096 points" in capsys.readouterr().out


def test_a_case_that_fails_stops_no_other_and_refused_half_tables_are_no_failure(tmp_path, monkeypatch, capsys):
    import field

    def build(error):
        def step():
            if error:
                raise error
            return []

        return lambda device, scale: field.Work(step, 1, 1.0)

    works = {"one": build(RuntimeError("broken")), "two": build(None), "three_half": build(ValueError("no fp16"))}
    monkeypatch.setattr(field, "cases", lambda: works)
    monkeypatch.setattr(field, "measure_ceilings", lambda device: (1.0, 1.0))
    arguments = ["--device", "cpu", "--repeats", "1", "--out", str(tmp_path / "field.json"), "--cases"]
    assert field.main([*arguments, "*"]) == 1
    assert field.main([*arguments, "two", "three*"]) == 0
    assert "three_half: skipped: ValueError('no fp16')" in capsys.readouterr().out
    assert [row["case"] for row in json.loads((tmp_path / "field.json").read_text())] == ["two"]


@pytest.mark.slow
def test_random_priors_have_the_shapes_of_the_built_in_ones(tmp_path):
    import steps

    assert not steps.has_priors(tmp_path)
    steps.save_random_priors(tmp_path)
    assert steps.has_priors(tmp_path)
    numbers = tmp_path / "steps.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps.loading, "BUILTIN_PRIORS", tmp_path)
        steps.main(["--device", "cpu", "--steps", "1", "--cases", "static_32", "--out", str(numbers)])
    (row,) = json.loads(numbers.read_text())
    assert row["case"] == "static_32"
    assert row["ms"] > 0
    assert set(row["parts_ms"]) == set(steps.PARTS)


@pytest.fixture
def tiny(tmp_path):
    """Settings of a run of seconds, as the file of --config."""
    priors = tmp_path / "priors"
    save_image_model(priors / "image")
    save_denoiser(priors / "multiview", unet_2d(multiview=True))
    save_denoiser(priors / "video", unet_3d())
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump({
        "scene": {"log2_size": 10, "levels": 2}, "deformation": {"log2_size": 10, "levels": 2},
        "priors": {name: str(priors / name) for name in ("image", "multiview", "video")} | {"video_frames": 2},
        "static": {"steps": 1, "resolution": 8, "samples_per_ray": 8},
        "dynamic": {"steps": 1, "height": 8, "width": 8, "samples_per_ray": 8, "levels": 2},
        "output": {"size": 8, "frames": 1},
    }))  # fmt: skip
    return file


@pytest.mark.slow
def test_quality_from_runs_to_table_with_failures_in_it(quality, tiny, tmp_path, capsys, monkeypatch):
    """The second of two runs crashes, its folder being a foreign one."""
    first, second = evaluation_combinations(2)
    judge = SimpleNamespace(Judge=SimpleNamespace(load=lambda folder, device: Oracle(quality, first)))
    monkeypatch.setitem(sys.modules, "dream4d.toyworld.judge", judge)
    monkeypatch.setattr(recipes, "OccupancyGrid", partial(OccupancyGrid, 8))
    monkeypatch.setattr(quality, "drawing", lambda combination, shots, *_: torch.rand(len(shots), 64, 64, 3))
    out, numbers = tmp_path / "out", tmp_path / "q.json"
    foreign = quality.folder_of(out, second) / "letters.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("dear")
    arguments = ["--out", str(out), "--json", str(numbers), "--scenes", "2", "--device", "cpu", "--threads", "1"]
    arguments += ["--workers", "2", "--variations", "1"]
    assert quality.main([*arguments, "--", "--config", str(tiny)]) == 1
    printed = capsys.readouterr().out
    assert f"{sentence(second)}: failed: error: " in printed
    assert "the judge on exact drawings" in printed
    found = json.loads(numbers.read_text())
    assert (found["scored"], found["of"]) == (1, 2)
    assert found["total"]["kind"] == [48, 48]
    assert found["rows"][0]["seconds"] > 0
    assert found["rows"][1]["status"].startswith("failed: ")
    assert found["drawn"]["kind"][1] == 96
    sheet = Image.open(out / f"{quality.folder_of(out, first).name}.png")
    assert sheet.width > 8 * 64
    assert Image.open(out / "overview.png").height > 2 * 64
    starts = (out / "runs.jsonl").read_text()
    assert quality.main([*arguments, "--time-limit", "0"]) == 1, "a run is missing"
    assert (out / "runs.jsonl").read_text() == starts, "nothing was started again"


def test_guidance_is_timed_in_every_mode(tmp_path, monkeypatch, capsys):
    import guidance

    monkeypatch.setattr(guidance, "measure_ceilings", lambda device: (1e9, 1e9))
    out = tmp_path / "guidance.json"
    arguments = ["--tiny", "--device", "cpu", "--repeats", "1", "--out", str(out)]
    modes = ["fp32", "fp32+fused", "fp32+graph"]
    assert guidance.main([*arguments, "--cases", "*unet", "encode_8x256", "decode*", "--modes", *modes]) == 0
    rows = json.loads(out.read_text())
    assert [row["mode"] for row in rows] == 7 * modes
    assert all(row["finite"] and row["ms"] > 0 and row["tflop"] >= 0 and row["limit_ms"] > 0 for row in rows)
    assert guidance.main([*arguments, "--cases", "encode_clip", "--modes", "fp32", "fp32+magic"]) == 1
    assert "unknown in a mode: {'magic'}" in capsys.readouterr().out
    assert "ms" in json.loads(out.read_text())[0], "a mode that fails stops no other"


def test_steps_are_timed_by_every_plan(tmp_path):
    import step

    out = tmp_path / "step.json"
    arguments = ["--tiny", "--device", "cpu", "--dtype", "fp32", "--steps", "1", "--warm-up", "1", "--parts"]
    cases = "step_static_64*", "step_dynamic*", "step_picture_64*"
    assert step.main([*arguments, "--cases", *cases, "--out", str(out)]) == 0
    rows = {row["case"]: row for row in json.loads(out.read_text())}
    plans = ("", "_balanced", "_lowmem", "_minimal")
    assert list(rows) == [f"step_{stage}{plan}" for stage in ("static_64", "dynamic", "picture_64") for plan in plans]
    for stage in ("static_64", "dynamic"):
        row, small = rows[f"step_{stage}"], rows[f"step_{stage}_lowmem"]
        assert small["losses"] == pytest.approx(row["losses"], rel=0.05), "the same steps"
        assert (row["images"], small["images"], small["goal_gib"]) == (None, 4, 8 if stage == "static_64" else 10)
        assert row["parts_ms"]["render"] > 0


def test_the_networks_are_as_large_as_the_papers():
    import networks

    where = torch.device("meta"), torch.float16
    unets = networks.image_unet(*where), networks.image_unet(*where, multiview=True), networks.video_unet(*where)
    nets = *unets, networks.autoencoder(*where)
    sizes = [round(sum(p.numel() for p in net.parameters()) / 1e6) for net in nets]
    assert sizes == [866, 868, 1411, 84]
    pictures = networks.reference_unet(*where), networks.pixel_unet(*where)
    assert [round(sum(p.numel() for p in net.parameters()) / 1e6) for net in pictures] == [860, 4305]
