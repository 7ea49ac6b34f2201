"""Whole jobs on random models of a few thousand weights: what they leave behind, and that they go on as if never
stopped."""

import json
from functools import partial
from types import SimpleNamespace

import av
import pytest
import torch
import trimesh
import yaml
from PIL import Image
from safetensors.torch import load_file
from tiny_models import save_deepfloyd, save_denoiser, save_image_model, save_zero123, unet_2d, unet_3d

from dream4d import loading, recipes
from dream4d.cli import main
from dream4d.film import Extent
from dream4d.occupancy import OccupancyGrid
from dream4d.presets import ablate, merge, preset
from dream4d.priors.lora import read_lora
from dream4d.priors.parts import Autoencoder
from dream4d.run import Run, read_config
from dream4d.scene import Scene

STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def coarse_occupancy():
    """64 times fewer densities to evaluate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipes, "OccupancyGrid", partial(OccupancyGrid, 8))
        yield


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    priors = tmp_path_factory.mktemp("priors")
    save_image_model(priors / "image")
    save_denoiser(priors / "multiview", unet_2d(multiview=True))
    save_denoiser(priors / "video", unet_3d())
    return merge(preset("builtin"), {
        "device": "cpu",
        "scene": {"log2_size": 10, "levels": 2, "plane_levels": 1, "plane_size": 8},
        "deformation": {"log2_size": 10, "levels": 2},
        "priors": {name: str(priors / name) for name in ("image", "multiview", "video")} | {"video_frames": 2},
        "static": {"steps": STEPS, "resolution": 8, "samples_per_ray": 16},
        "reconstruct": {"steps": STEPS, "rays": 64, "samples_per_ray": 16},
        "picture": {"steps": STEPS, "images": 2, "resolution": 8, "reference_resolution": 8, "samples_per_ray": 16},
        "dynamic": {"steps": STEPS, "height": 8, "width": 8, "samples_per_ray": 16, "levels": 2},
        "personalize": {
            "steps": STEPS, "photos": 1, "rank": 2, "class_images": 5, "sampling_steps": 1, "samples": 2,
            "text_encoder": True,
        },
        "output": {"checkpoint_seconds": 0, "preview_every": 3, "log_every": 1, "size": 16, "frames": 2},
    })


@pytest.fixture(scope="module")
def finished(settings, coarse_occupancy, tmp_path_factory):
    """A run of both stages, from start to end."""
    folder = tmp_path_factory.mktemp("finished")
    recipes.text_to_4d("a cat", settings, folder)
    return folder


def test_the_priors_of_the_static_stage_share_their_latent_space(settings, tmp_path, monkeypatch):
    seen = []

    def spy(state, *, image_prior, multiview_prior, **_):
        seen.extend((image_prior, multiview_prior))
        raise InterruptedError

    monkeypatch.setattr(recipes, "fit_static", spy)
    with pytest.raises(InterruptedError):
        recipes.static_scene("a cat", settings, tmp_path)
    assert seen[0].latent_space == seen[1].latent_space


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_where_memory_runs_out_a_run_goes_on_with_less(settings, tmp_path, monkeypatch, capsys):
    encode, chunks = Autoencoder.encode, []

    def full(self, images):
        chunks.append(self.chunk)
        if len(chunks) < 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return encode(self, images)

    monkeypatch.setattr(Autoencoder, "encode", full)
    recipes.static_scene("a cat", settings, tmp_path)
    assert chunks[:3] == [None, 4, 4]
    assert len(chunks) > 3
    told = capsys.readouterr().err
    assert "out of memory at step 0 with memory plan paper; going on with balanced" in told
    assert "going on with lowmem" in told
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == STEPS


def test_a_run_leaves_what_it_should_and_nothing_else(finished):
    assert files_in(finished) == sorted([
        ".lock", "config.yaml", "metrics.jsonl", "static.safetensors", "scene.safetensors", "sheet.png", "video.mp4",
        "previews/static-000003.png", "previews/dynamic-000003.png",
        "checkpoints/static-000002.safetensors", "checkpoints/static-000003.safetensors",
        "checkpoints/dynamic-000002.safetensors", "checkpoints/dynamic-000003.safetensors",
    ])
    logged = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [(entry["stage"], entry["step"]) for entry in logged] == [
        (stage, step) for stage in ("static", "dynamic") for step in range(STEPS)
    ]
    with av.open(str(finished / "video.mp4")) as container:
        assert container.streams.video[0].frames == 2
        assert (container.streams.video[0].width, container.streams.video[0].height) == (4 * 16, 16)


@pytest.mark.parametrize("saved", [1, 4], ids=["static", "dynamic"])
def test_a_stopped_run_ends_where_an_unbroken_one_does(finished, settings, tmp_path, monkeypatch, saved):
    """Stopped by Ctrl-C after its first or fourth checkpoint, in one stage or the other."""
    save, count = Run.save_checkpoint, 0

    def save_then_stop(*arguments):
        nonlocal count
        save(*arguments)
        count += 1
        if count == saved:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            recipes.text_to_4d("a cat", settings, tmp_path)
    assert not (tmp_path / "scene.safetensors").exists()
    recipes.text_to_4d("a cat", settings, tmp_path)
    assert files_in(tmp_path) == files_in(finished)
    for name in ("static.safetensors", "scene.safetensors"):
        expected, resumed = load_file(finished / name), load_file(tmp_path / name)
        assert expected.keys() == resumed.keys()
        assert all(expected[key].equal(resumed[key]) for key in expected)
    assert (tmp_path / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()


def test_a_finished_run_is_not_done_again(finished, settings, monkeypatch):
    monkeypatch.setattr(recipes, "_train", None)
    assert recipes.text_to_4d("a cat", settings, finished) == finished / "video.mp4"


def test_the_config_of_a_run_repeats_it(finished, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "_train", None)
    own = ["--out", str(finished), "--config", str(finished / "config.yaml")]
    assert main(["generate", *own]) == 0
    assert capsys.readouterr().out.strip() == str(finished / "video.mp4")


def test_the_dynamic_stage_keeps_the_static_scene(finished):
    static, scene = load_file(finished / "static.safetensors"), load_file(finished / "scene.safetensors")
    assert static.keys() < scene.keys()
    assert all(static[name].equal(scene[name]) for name in static)


@pytest.fixture(scope="module")
def pictured(settings, tmp_path_factory):
    """Settings of a job from a picture, with the paper's kinds of models, and the picture."""
    folder = tmp_path_factory.mktemp("pictured")
    save_zero123(folder / "novel")
    save_deepfloyd(folder / "picture")
    image = Image.new("RGB", (40, 30), "white")
    image.paste("red", (10, 5, 20, 25))
    image.save(folder / "toy.png")
    priors = {name: str(folder / name) for name in ("novel", "picture")}
    return merge(settings, {"priors": priors, "picture": {"weight_entropy": 1.0}}), folder / "toy.png"


@pytest.mark.parametrize("picture", ["deepfloyd", "image model"])
def test_a_picture_goes_through_both_stages(pictured, tmp_path, capsys, picture):
    settings, image = pictured
    if picture == "image model":
        settings = merge(settings, {"priors": {"picture": None}})
    recipes.image_to_4d("a cat", image, settings, tmp_path / "run", elevation=5.0)
    assert "found by the colour of its border" in capsys.readouterr().err
    assert {"picture.png", "cutout.png", "static.safetensors", "scene.safetensors", "video.mp4"} <= {
        *files_in(tmp_path / "run")
    }
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"2d", "3d", "picture", "mask", "sparsity", "entropy"} < set(first)
    with Image.open(tmp_path / "run" / "cutout.png") as cutout:
        assert cutout.mode == "RGBA"
        assert cutout.getpixel((0, 0))[3] == 0


def test_a_stopped_run_from_a_picture_goes_on_without_the_file(pictured, tmp_path, monkeypatch):
    settings, image = pictured
    own = tmp_path / "mine.png"
    own.write_bytes(image.read_bytes())
    recipes.image_to_4d("a cat", own, settings, tmp_path / "whole")
    save = Run.save_checkpoint

    def save_then_stop(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            recipes.image_to_4d("a cat", own, settings, tmp_path / "stopped")
    own.unlink()
    recipes.image_to_4d("a cat", own, settings, tmp_path / "stopped")
    for name in ("static.safetensors", "scene.safetensors"):
        expected, resumed = load_file(tmp_path / "whole" / name), load_file(tmp_path / "stopped" / name)
        assert all(expected[key].equal(resumed[key]) for key in expected)
    with pytest.raises(ValueError, match="there is no picture"):
        recipes.image_to_4d("a cat", own, settings, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_priors_of_a_picture_stand_for_those_of_a_text(pictured, tmp_path, monkeypatch):
    settings, _ = pictured
    cpu = torch.device("cpu")
    without = merge(settings, {"priors": {"image": "none", "multiview": "none", "base": settings.priors.image}})
    assert loading.picture_prior("a cat", without, cpu) is None
    assert loading.novel_prior(None, 0.0, without, cpu) is None
    monkeypatch.setattr(loading, "BUILTIN_PRIORS", tmp_path)
    with pytest.raises(ValueError, match=r"lacks the built-in novel prior .* or go without: --priors\.novel none"):
        loading.novel_prior(None, 0.0, merge(settings, {"priors": {"novel": "builtin"}}), cpu)


def test_a_picture_from_nowhere_is_refused(pictured, tmp_path):
    settings, image = pictured
    with pytest.raises(ValueError, match="elevation is 90: expected degrees"):
        recipes.image_to_4d("a cat", image, settings, tmp_path / "run", elevation=90)


def test_static_then_animate_then_render(settings, tmp_path):
    recipes.static_scene("a cat", settings, tmp_path / "still")
    recipes.animate(tmp_path / "still", "a cat is waving", settings, tmp_path / "moving")
    assert recipes.prompt_of(tmp_path / "moving") == "a cat is waving"
    out = tmp_path / "look.mp4"
    channels = ("rgb", "depth", "displacement")
    recipes.render_video(tmp_path / "moving", out, views=("orbit",), channels=channels, size=10, frames=3)
    with av.open(str(out)) as container:
        assert container.streams.video[0].frames == 3
        assert (container.streams.video[0].width, container.streams.video[0].height) == (10, 30)
    sheet = recipes.render_sheet(tmp_path / "moving", tmp_path / "sheet.png", size=8, background="white")
    still = recipes.render_sheet(tmp_path / "still", tmp_path / "still.png", size=8)
    with Image.open(sheet) as moving, Image.open(still) as standing:
        assert moving.width == standing.width > 8 * 8
        assert moving.height - standing.height == 5 * (8 + 2)
    with pytest.raises(ValueError, match="no colour"):
        recipes.render_sheet(tmp_path / "moving", tmp_path / "other.png", background="purplish")
    with pytest.raises(ValueError, match="choose another --out"):
        recipes.animate(tmp_path / "still", "a cat is waving", settings, tmp_path / "still")


def test_a_mesh_takes_the_place_of_the_first_stage(settings, tmp_path, capsys):
    file = tmp_path / "box.ply"
    trimesh.creation.box().export(file)
    without = merge(settings, {
        "priors": {"image": "none", "multiview": "none", "base": settings.priors.image}
    })
    recipes.mesh_to_4d("a cat", file, without, tmp_path / "run", turn=30)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[0]) == {"stage", "step", "rgb", "opacity", "depth", "empty", "background"}
    assert set(lines[STEPS]) == {"stage", "step", "psnr"}
    assert set(lines[-1]) == {"stage", "step", "video", "tv"}
    assert f"like the model to {lines[STEPS]['psnr']:.1f} dB" in capsys.readouterr().err
    still, moving = (Scene.load(tmp_path / "run" / f"{name}.safetensors") for name in ("static", "scene"))
    assert moving.moves
    assert moving.deformation_shape.at_rest
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(
        still.canonical.parameters(), moving.canonical.parameters(), strict=True
    ))
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert (config["command"], config["mesh"], config["mesh_turn"]) == ("generate", str(file), 30)
    with pytest.raises(ValueError, match="there is no mesh"):
        recipes.mesh_to_4d("a cat", tmp_path / "absent.ply", settings, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("ablation", "losses"), [("hexplane", {"video", "planes"}), ("no-grid", {"video", "tv"})])
def test_other_fields_go_through_the_same_stages(settings, tmp_path, ablation, losses):
    recipes.text_to_4d("a cat", ablate(settings, ablation), tmp_path / "run")
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(last) == {"stage", "step"} | losses
    assert not Scene.load(tmp_path / "run" / "static.safetensors").moves
    assert Scene.load(tmp_path / "run" / "scene.safetensors").moves
    if ablation == "hexplane":
        with pytest.raises(ValueError, match="can only be animated with --scene"):
            recipes.animate(tmp_path / "run", "a cat", settings, tmp_path / "again")


def test_an_ablation_needs_no_prior_of_its_own(settings, tmp_path):
    without = merge(settings, {"priors": {"image": "none", "base": settings.priors.image}})
    recipes.static_scene("a cat", without, tmp_path)
    assert set(json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])) == {"stage", "step", "3d"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "abacus"}, "device 'abacus' is unknown"),
        ({"priors": {"image": "absent"}}, r"--priors\.image absent: there is no such folder"),
        ({"priors": {"video": "none"}}, r"--priors\.video none: there is no such folder"),
    ],
)
def test_what_cannot_work_is_refused_before_any_file(settings, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        recipes.text_to_4d("a cat", merge(settings, changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_builtin_prior_is_one_line(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "BUILTIN_PRIORS", tmp_path)
    with pytest.raises(ValueError, match="lacks the built-in image prior"):
        recipes.text_to_4d("a cat", merge(settings, {"priors": {"image": "builtin"}}), tmp_path / "run")


def test_sources_that_are_no_scene(tmp_path):
    with pytest.raises(ValueError, match="there is no run and no scene file"):
        recipes.find_scene(tmp_path / "absent")
    with pytest.raises(ValueError, match="is not a run folder"):
        recipes.find_scene(tmp_path)
    (tmp_path / "config.yaml").write_text("prompt: a cat\n")
    with pytest.raises(ValueError, match="that run is not finished"):
        recipes.find_scene(tmp_path)


class Rod(torch.nn.Module):
    """A straight rod, as thin as the string of a balloon, that turns about z by half a turn if it moves."""

    def __init__(self, *, moves, deforms):
        super().__init__()
        self.anything = torch.nn.Parameter(torch.zeros(1))
        self.moves = moves
        self.deformation = torch.nn.Identity() if deforms else None
        self.canonical = SimpleNamespace(density=self.density)
        self.axis = torch.tensor([0.8, 0.3, 0.4]) / 0.89**0.5

    def density(self, points, time=0.0):
        points = self.warp(points, time)
        along = points @ self.axis
        return 100.0 * (((points - along[:, None] * self.axis).norm(dim=-1) < 0.014) & (along.abs() < 0.8))

    def warp(self, points, time):
        angle = torch.tensor(-torch.pi * time)
        x, y, z = points.unbind(-1)
        return torch.stack([x * angle.cos() - y * angle.sin(), x * angle.sin() + y * angle.cos(), z], dim=-1)


@pytest.mark.parametrize(
    ("moves", "deforms", "moments"), [(False, False, 1), (True, True, 101), (True, False, 3)],
    ids=["still", "deformed", "changing"],
)
def test_thin_parts_of_a_finished_scene_have_no_holes(moves, deforms, moments):
    rod = Rod(moves=moves, deforms=deforms)
    extent = Extent(rod)
    on_axis = torch.linspace(-0.8, 0.8, 500)[:, None] * rod.axis
    for time in torch.linspace(0, 1, moments).tolist():
        grid = extent.at(time)
        assert grid.at(rod.warp(on_axis, -time)).all(), f"a hole at time {time}"
        assert grid.occupied.float().mean() < 0.01


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for index, colour in enumerate(("red", "green", "navy")):
        Image.new("RGB", (20, 16), colour).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def learned(settings, photos, coarse_occupancy, tmp_path_factory):
    return recipes.personalize(photos, "a sks cat", settings, tmp_path_factory.mktemp("learned"))


def test_personalising_leaves_a_lora_sheets_and_a_log(learned):
    assert files_in(learned.parent) == sorted([
        ".lock", "config.yaml", "metrics.jsonl", "pytorch_lora_weights.safetensors", "previews/personalize-000003.png",
        "checkpoints/class-000005.safetensors",
        "checkpoints/personalize-000002.safetensors", "checkpoints/personalize-000003.safetensors",
    ])
    logged = [json.loads(line) for line in (learned.parent / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in logged] == [*range(STEPS)]
    assert set(logged[0]) == {"stage", "step", "subject", "class"}
    assert len(read_lora(learned).text_encoder) == 4


def test_stopped_personalising_goes_on_as_if_it_had_not(learned, settings, photos, tmp_path, monkeypatch):
    save = Run.save_checkpoint

    def save_then_stop(run, stage, step, tensors):
        save(run, stage, step, tensors)
        if (stage, step) == ("personalize", 1):
            raise KeyboardInterrupt

    file = tmp_path / "mine.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_checkpoint", save_then_stop)
        with pytest.raises(KeyboardInterrupt):
            recipes.personalize(photos, "a sks cat", settings, file)
    assert not file.exists()
    assert recipes.personalize(photos, "a sks cat", settings, file) == file
    expected, found = load_file(learned), load_file(file)
    assert expected.keys() == found.keys()
    assert all(expected[name].equal(found[name]) for name in expected)
    monkeypatch.setattr(recipes, "_personal_stage", None)
    assert recipes.personalize(photos, "a sks cat", settings, file) == file


def stages_of(prompt, subject, settings, out, monkeypatch):
    """What the stages of a personalised scene are called with, the dynamic stage last."""
    seen = {}

    def spy(state, **options):
        seen.update(options)
        raise InterruptedError

    for stage in ("fit_static", "fit_dynamic"):
        with monkeypatch.context() as patch:
            patch.setattr(recipes, stage, spy)
            with pytest.raises(InterruptedError):
                recipes.subject_to_4d(prompt, subject, settings, out)
    return seen


def test_only_the_image_model_hears_of_the_subject(learned, settings, tmp_path, monkeypatch):
    settings = merge(settings, {"personalize": {"multiview": "class", "video": "class"}})
    seen = stages_of("a sks cat is waving", learned, settings, tmp_path, monkeypatch)
    image, multiview = seen["image_prior"], seen["multiview_prior"]
    assert image.latent_space == multiview.latent_space
    prompt = ["a sks cat is waving"]
    assert not image.parts.text(prompt).equal(multiview.parts.text([seen["multiview_prompt"]]))
    plain = loading.image_prior(settings, torch.device("cpu"))
    assert multiview.parts.text(["a cat is waving"]).equal(plain.parts.text(["a cat is waving"]))
    assert not image.parts.text(prompt).equal(plain.parts.text(prompt)), "the text encoder's LoRA is in"
    weights = zip(image.parts.unet.parameters(), plain.parts.unet.parameters(), strict=True)
    assert any(not ours.equal(theirs) for ours, theirs in weights)
    assert (seen["multiview_prompt"], seen["prompt"]) == ("a cat is waving", "a cat is waving")
    assert (seen["image_negative"], seen["negative"]) == ("a cat", settings.negative)


@pytest.mark.parametrize("multiview", ["word", "lora"])
def test_models_that_know_such_words_hear_it_too(learned, settings, tmp_path, monkeypatch, multiview):
    settings = merge(settings, {"personalize": {"multiview": multiview, "video": "word"}})
    seen = stages_of("a sks cat is waving", learned, settings, tmp_path, monkeypatch)
    assert (seen["multiview_prompt"], seen["prompt"]) == (None, "a sks cat is waving")
    assert seen["image_prior"].latent_space == seen["multiview_prior"].latent_space
    plain, ours = loading.multiview_prior(settings, torch.device("cpu")).parts, seen["multiview_prior"].parts
    same = [a.equal(b) for a, b in zip(ours.unet.parameters(), plain.unet.parameters(), strict=True)]
    assert all(same) == (multiview == "word")
    said = ["a sks cat is waving"]
    assert ours.text(said).equal(plain.text(said)) == (multiview == "word")


def test_a_subject_can_stand_still(learned, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "_dynamic_stage", None)
    video = recipes.subject_to_4d("a red sks cat", learned, settings, tmp_path, moves=False)
    assert video.is_file()
    assert not Scene.load(recipes.find_scene(tmp_path)).moves
    config = read_config(tmp_path)
    assert (config["command"], config["subject_prompt"]) == ("static", "a red sks cat")


def test_photos_become_a_moving_scene(learned, settings, photos, tmp_path):
    video = recipes.subject_to_4d("a sks cat is waving", photos, settings, tmp_path)
    assert video == tmp_path / "video.mp4"
    assert load_file(tmp_path / "subject" / learned.name).keys() == load_file(learned).keys()
    assert read_config(tmp_path)["subject_prompt"] == read_config(tmp_path / "subject")["prompt"] == "a sks cat"
    assert recipes.prompt_of(tmp_path) == "a cat is waving"


def test_subjects_that_cannot_work_are_refused_before_any_file(learned, settings, photos, tmp_path, capsys):
    out = tmp_path / "run"
    for changes, prompt, subject, message in [
        ({}, "a cat", photos, "does not say 'sks'"),
        ({}, "a sks cat", tmp_path, "has no photos"),
        ({}, "a sks cat", tmp_path / "absent.safetensors", "no LoRA at"),
        ({"personalize": {"photos": 0}}, "a sks cat", photos, r"--personalize\.photos is 0, expected at least 1"),
        ({"priors": {"image": "none"}}, "a sks cat", photos, r"--priors\.image is none"),
        ({"priors": {"image": "none"}}, "a sks cat", learned, r"--priors\.image is none"),
    ]:
        with pytest.raises(ValueError, match=message):
            recipes.subject_to_4d(prompt, subject, merge(settings, changes), out)
        assert not out.exists()
    Image.new("RGB", (20, 16)).save(tmp_path / "only.png")
    recipes._check_subject(tmp_path, "a sks cat", settings)
    assert "has a single photo" in capsys.readouterr().err


def test_builtin_models_share_their_own_parts_whatever_the_image_prior_is(tmp_path, monkeypatch):
    save_image_model(tmp_path / "image")
    save_denoiser(tmp_path / "multiview", unet_2d(multiview=True))
    save_denoiser(tmp_path / "video", unet_3d())
    monkeypatch.setattr(loading, "BUILTIN_PRIORS", tmp_path)
    for image in ("none", "builtin", str(tmp_path / "elsewhere")):
        settings = merge(preset("builtin"), {"priors": {"image": image, "video_frames": 2}, "device": "cpu"})
        assert loading.multiview_prior(settings, torch.device("cpu")).parts.text is not None
        assert loading.video_prior(settings, torch.device("cpu")).parts.text is not None
