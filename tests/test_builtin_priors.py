"""The priors that ship with the package: what they weigh, and that they draw what they are told, read by the judge."""

import pytest
import torch

from dream4d import recipes
from dream4d.cameras import orbit
from dream4d.loading import BUILTIN_PRIORS
from dream4d.media import write_png
from dream4d.presets import BUILTIN, merge
from dream4d.priors.lora import fuse, read_lora
from dream4d.priors.mvdream import MVDream
from dream4d.priors.sampling import sample
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.priors.text_to_video import TextToVideo
from dream4d.priors.zero123 import Zero123
from dream4d.toyworld.examples import photograph
from dream4d.toyworld.grammar import (
    COLOURS,
    KINDS,
    MOTIONS,
    PROPS,
    Combination,
    evaluation_combinations,
    sentence,
)
from dream4d.toyworld.judge import Judge
from dream4d.toyworld.networks import FRAMES, LATENT_CHANNELS, LATENT_SIZE, VIEWS
from dream4d.toyworld.subjects import differences, make_subjects, photographs, portraits
from dream4d.toyworld.world import make_toys

pytestmark = pytest.mark.skipif(not BUILTIN_PRIORS.exists(), reason="this checkout has no trained priors")
LATENT = (LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_they_are_small_and_hold_no_pickles():
    files = [path for path in BUILTIN_PRIORS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 48e6
    assert {path.suffix for path in files} == {".json", ".safetensors"}


def test_the_image_prior_draws_combinations_that_it_never_saw(judge):
    combinations = evaluation_combinations(8)
    prior = StableDiffusion.load(BUILTIN_PRIORS / "image")
    prompts = [f"{sentence(c)}, front view" for c in combinations]
    images = sample(prior, prompts, orbit(*torch.zeros(4, 8)), LATENT, generator=generator(), steps=15)
    seen = judge.read(images)
    truth = [(KINDS.index(c.kind), COLOURS.index(c.colour), 1 + list(PROPS).index(c.prop)) for c in combinations]
    right = torch.stack([seen.kind, seen.colour, seen.prop], 1) == torch.tensor(truth)
    assert (right.float().mean(0) >= 0.75).all()
    assert (seen.azimuth.abs() < 45).float().mean() >= 0.75


def test_the_multiview_prior_draws_four_sides_of_one_toy(judge):
    combinations = evaluation_combinations(4)
    prior = MVDream.load(BUILTIN_PRIORS / "multiview", BUILTIN_PRIORS / "image", views=VIEWS)
    azimuth = torch.arange(VIEWS).repeat(4) * 90.0 + 20
    cameras = orbit(azimuth, *torch.tensor([15.0, 2.5, 40.0]).unbind())
    prompts = [sentence(c) for c in combinations for _ in range(VIEWS)]
    seen = judge.read(sample(prior, prompts, cameras, LATENT, generator=generator(), steps=15))
    kinds = torch.tensor([KINDS.index(c.kind) for c in combinations]).repeat_interleave(VIEWS)
    assert (seen.kind == kinds).float().mean() >= 0.75
    error = ((seen.azimuth - azimuth + 180).remainder(360) - 180).abs()
    assert (error < 45).float().mean() >= 0.85
    assert (seen.prop == 0).float().mean() >= 0.75, "it was trained without props"


def test_the_novel_view_prior_draws_the_sides_that_a_picture_does_not_show(judge):
    combinations = evaluation_combinations(4)
    toys = make_toys(combinations, generator())
    azimuth, elevation = torch.tensor([0.0, 60.0, 120.0, 180.0, 270.0]), torch.tensor([10.0, 10.0, 20.0, 10.0, 30.0])
    drawn, truth = [], []
    for index in range(4):
        views, cameras = photograph(toys[torch.tensor([index])], azimuth, elevation, torch.device("cpu"))
        folder, base = BUILTIN_PRIORS / "novel", BUILTIN_PRIORS / "image"
        prior = Zero123.load(folder, base, image=views[0], camera=cameras[0])
        drawn.append(sample(prior, [""] * 4, cameras[1:], LATENT, generator=generator(), steps=15))
        truth.append(views[1:])
    errors = (torch.stack(drawn)[:, None] - torch.stack(truth)[None]).square().mean((-3, -2, -1))  # drawn, true, view
    assert -10 * errors.diagonal().mean().log10() > 18.5
    assert (errors.argmin(1) == torch.arange(4)[:, None]).float().mean() >= 0.9, "nearest to the toy of the picture"
    off = ((judge.read(torch.cat(drawn)).azimuth - azimuth[1:].repeat(4) + 180).remainder(360) - 180).abs()
    assert (off < 45).float().mean() >= 0.85


def test_who_has_a_name_is_not_like_others():
    """Any word that means nothing, "sks" was never trained: the more colours beside the toy's own, the more marked."""
    prior = StableDiffusion.load(BUILTIN_PRIORS / "image")
    prompts = ["a blue sks dog, front view"] * 4 + ["a blue dog, front view"] * 4
    images = sample(prior, prompts, orbit(*torch.zeros(4, 8)), LATENT, generator=generator(), steps=12)
    toy = (images - images[:, :1, :1]).abs().amax(-1) > 0.15
    red = toy & (images[..., 0] > images[..., 2] + 0.1)
    share = red.sum((1, 2)) / toy.sum((1, 2))
    assert share[:4].mean() > 2 * share[4:].mean() + 0.02


@pytest.mark.slow
def test_the_video_prior_draws_the_motion(judge):
    combinations = evaluation_combinations(len(MOTIONS))
    prior = TextToVideo.load(BUILTIN_PRIORS / "video", BUILTIN_PRIORS / "image", frames=FRAMES)
    prompts = [f"{sentence(c)}, front view" for c in combinations]
    cameras = orbit(*torch.zeros(4, len(prompts)))
    videos = sample(prior, prompts, cameras, (FRAMES, *LATENT), generator=generator(), steps=15)
    motion = judge.read_motion(videos)
    assert (motion == torch.tensor([MOTIONS.index(c.motion) for c in combinations])).float().mean() >= 0.7


@pytest.mark.slow
def test_the_image_prior_learns_one_dog_and_leaves_dogs_as_they_were(tmp_path):
    subjects = make_subjects([Combination("dog", "green", None)] * 5, random := generator())
    for index, photo in enumerate(photographs(subjects[torch.tensor([2])], 5, random)):
        write_png(tmp_path / f"{index}.png", photo)
    settings = merge(BUILTIN, {
        "device": "cpu", "personalize": {"steps": 400, "class_images": 16}, "output": {"preview_every": 0},
    })
    lora = recipes.personalize(tmp_path, "a green sks dog", settings, tmp_path / "lora")
    prior = StableDiffusion.load(BUILTIN_PRIORS / "image")
    fuse(read_lora(lora), unet=prior.parts.unet)
    prompts = ["a green sks dog"] * 8 + ["a green dog"] * 8
    images = sample(prior, prompts, orbit(*torch.zeros(4, 16)), LATENT, generator=generator())
    found = differences(images, portraits(subjects)).argmin(1) == 2
    assert found[:8].sum() >= 6  # by chance 1.6
    assert found[8:].sum() <= 4
