from dataclasses import replace

import pytest
import torch
from gaussian_prior import GaussianPrior
from tiny_models import save_denoiser, save_image_model, unet_2d
from tiny_scene import tiny_scene

from dream4d.cameras import orbit
from dream4d.picture import Picture
from dream4d.priors.mvdream import MVDream
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.render import render, render_image
from dream4d.schedules import Constant, Interval, Switch
from dream4d.settings import PictureSettings, StaticSettings
from dream4d.static import fit_picture, fit_static, reference_camera, start_static

PURPLE = torch.tensor([0.7, 0.2, 0.9])
SETTINGS = StaticSettings(
    steps=6, images=Constant(4), resolution=Constant(8), samples_per_ray=32, guidance_2d=1, guidance_3d=1,
    timesteps_2d=Interval(Constant(0.3), Constant(0.6)), timesteps_3d=Interval(Constant(0.3), Constant(0.6)),
    std_rescale=0.0, occupancy_every=4,
)


def fit(state, settings=SETTINGS, *, image=True, multiview=True):
    prior = GaussianPrior(PURPLE)
    return fit_static(
        state, image_prior=prior if image else None, multiview_prior=prior if multiview else None, prompt="a cat",
        settings=settings,
    )


@pytest.mark.parametrize(
    ("image", "multiview", "field"),
    [(True, True, "grid"), (True, False, "grid"), (False, True, "grid"), (True, True, "hexplane")],
)
def test_every_combination_of_priors_pulls_the_scene_to_their_mean(image, multiview, field):
    """Every picture of the world is one flat colour (its data), so every pixel of the scene goes there."""
    state = start_static(tiny_scene(field=field), seed=0)
    fast = Constant(0.03)
    settings = replace(
        SETTINGS, steps=80, flat_background=0.0, learning_rate_grid=fast, learning_rate_mlp=fast
    )
    camera = orbit(torch.tensor([40.0]), torch.tensor([10.0]), torch.tensor([2.5]), torch.tensor([40.0]))

    def distance() -> float:
        with torch.no_grad():
            seen = render(state.scene, camera.rays(8, 8).flatten(), occupancy=state.occupancy, samples_per_ray=32)
        return (seen.rgb - PURPLE).square().mean().sqrt().item()

    before = distance()
    reports = list(fit(state, settings, image=image, multiview=multiview))
    assert distance() < before / 3
    assert set(reports[0].losses) == {name for name, on in (("2d", image), ("3d", multiview)) if on}
    assert [report.step for report in reports] == list(range(80))


def test_going_on_from_a_saved_state_equals_an_uninterrupted_run():
    whole = start_static(tiny_scene(), seed=1)
    losses = [report.floats() for report in fit(whole)]
    first = start_static(tiny_scene(), seed=1)
    steps = fit(first)
    for _ in range(3):
        next(steps)
    second = start_static(tiny_scene(seed=5), seed=99)
    second.load_tensors(first.to_tensors())
    assert [report.floats() for report in fit(second)] == losses[3:]
    rest = second.to_tensors()
    for name, value in whole.to_tensors().items():
        assert torch.equal(value, rest[name]), name


def test_no_priors_and_odd_batches_are_refused():
    state = start_static(tiny_scene(), seed=0)
    with pytest.raises(ValueError, match="an image prior, a multi-view prior, or both"):
        next(fit(state, image=False, multiview=False))
    with pytest.raises(ValueError, match="not a multiple of views"):
        next(fit(state, replace(SETTINGS, images=Constant(6))))
    with pytest.raises(ValueError, match="max_azimuth_2d is 30"):
        next(fit(state, replace(SETTINGS, max_azimuth_2d=30)))


def test_only_the_image_prior_is_told_the_view():
    image, multiview = GaussianPrior(PURPLE), GaussianPrior(PURPLE)
    reports = fit_static(
        start_static(tiny_scene(), seed=0), image_prior=image, multiview_prior=multiview, prompt="a sks cat",
        multiview_prompt="a cat", settings=replace(SETTINGS, steps=1),
    )
    next(reports)
    words = {prompt.removeprefix("a sks cat, ") for prompt in image.prompts}
    assert words <= {"front view", "side view", "back view"}
    assert multiview.prompts == ["a cat"] * 4


def test_back_views_and_surplus_images_stay_away_from_the_image_prior():
    seen = GaussianPrior(PURPLE)
    settings = replace(SETTINGS, images=Constant(8), steps=8, max_azimuth_2d=100.0, images_2d=2)
    state = start_static(tiny_scene(), seed=0)
    list(fit_static(state, image_prior=seen, multiview_prior=None, prompt="a cat", settings=settings))
    assert len(seen.prompts) == 2 * 8
    assert not any("back" in prompt for prompt in seen.prompts)


@pytest.mark.parametrize(("image", "multiview", "encoded"), [
    ("pixels", "pixels", [4]), ("pixels", "other", [2, 4]), ("pixels", None, [2]), (None, "pixels", [4]),
])
def test_no_image_is_encoded_twice_or_in_vain(image, multiview, encoded):
    calls = []

    class Recorder(GaussianPrior):
        def encode(self, images):
            calls.append(len(images))
            return images * 1.0

    priors = (space and Recorder(PURPLE, latent_space=space) for space in (image, multiview))
    reports = fit_static(
        start_static(tiny_scene(), seed=0), **dict(zip(("image_prior", "multiview_prior"), priors, strict=True)),
        prompt="a cat", settings=replace(SETTINGS, steps=1, images_2d=2),
    )
    next(reports)
    assert sorted(calls) == encoded


def test_encoding_once_for_both_priors_changes_no_gradient(tmp_path):
    base = save_image_model(tmp_path / "image")
    folder = save_denoiser(tmp_path / "multiview", unet_2d(multiview=True))

    def step(*shared):
        """How often each autoencoder is run, the losses, and the gradients of the scene."""
        first, last = shared
        image, multiview = StableDiffusion.load(base, shared=first), MVDream.load(folder, base, shared=last)
        calls = []
        for vae in {image.parts.autoencoder.vae, multiview.parts.autoencoder.vae}:
            vae.encoder.register_forward_hook(lambda *_: calls.append(1))
        state = start_static(tiny_scene(), seed=0)
        report = next(fit_static(
            state, image_prior=image, multiview_prior=multiview, prompt="a cat",
            settings=replace(SETTINGS, images_2d=3),
        ))
        return len(calls), report.floats(), [p.grad for p in state.scene.parameters() if p.grad is not None]

    shared = {}
    once, losses, gradients = step(shared, shared)
    twice, losses_apart, gradients_apart = step({}, {})
    assert (once, twice) == (1, 2)
    assert losses == pytest.approx(losses_apart, rel=1e-4)
    for together, apart in zip(gradients, gradients_apart, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-5 * apart.abs().max().item())


def test_a_step_in_parts_has_the_gradients_of_the_whole_step(tmp_path):
    """Both priors, with latent spaces of their own, and the entropy of opacities; the smallest parts there are."""
    base = save_image_model(tmp_path / "image")
    folder = save_denoiser(tmp_path / "multiview", unet_2d(multiview=True))
    settings = replace(SETTINGS, weight_entropy=Constant(3.0), std_rescale=0.5, images_2d=3)

    def step(budget, **limits):
        image, multiview = StableDiffusion.load(base), MVDream.load(folder, base)
        for prior in (image, multiview):
            prior.limit(**limits)
        state = start_static(tiny_scene(), seed=0)
        report = next(fit_static(
            state, image_prior=image, multiview_prior=multiview, prompt="a cat", settings=settings, budget=budget
        ))
        return report.floats(), [p.grad for p in state.scene.parameters() if p.grad is not None]

    losses, gradients = step(2**30, images=None, split=False)
    losses_in_parts, in_parts = step(100, images=1, split=True)
    assert set(losses) == {"2d", "3d", "entropy"}
    assert losses_in_parts == pytest.approx(losses, rel=1e-5)
    for part, whole in zip(in_parts, gradients, strict=True):
        assert (part - whole).norm() <= 1e-4 * whole.norm()


def test_resolution_and_batch_follow_their_schedules():
    shapes = []

    class Recorder(GaussianPrior):
        def encode(self, images):
            shapes.append(tuple(images.shape))
            return images * 1.0

    settings = replace(SETTINGS, steps=2, images=Switch(8, 4, at=1), resolution=Switch(4, 8, at=1))
    state = start_static(tiny_scene(), seed=0)
    list(fit_static(state, image_prior=None, multiview_prior=Recorder(PURPLE), prompt="", settings=settings))
    assert shapes == [(8, 4, 4, 3), (4, 8, 8, 3)]


BALL = (torch.linspace(-1, 1, 16)[:, None] ** 2 + torch.linspace(-1, 1, 16) ** 2 < 0.5).float()
COLOURS = torch.linspace(0, 1, 16)[:, None, None] * torch.tensor([0.9, 0.1, 0.2]) + torch.tensor([0.0, 0.5, 0.1])
PICTURE = Picture(COLOURS * BALL[..., None] + 1 - BALL[..., None], BALL, "hand")
FROM_PICTURE = PictureSettings(
    steps=6, images=Constant(2), resolution=Constant(8), reference_resolution=Constant(16), samples_per_ray=48,
    guidance_2d=1, guidance_3d=1, occupancy_every=4, learning_rate_grid=Constant(0.03),
    learning_rate_mlp=Constant(0.01),
)


def fit_to_picture(state, settings=FROM_PICTURE, *, elevation=20.0, image=None, novel=None):
    return fit_picture(
        state, picture=PICTURE, elevation=elevation, image_prior=image, novel_prior=novel, prompt="a ball",
        settings=settings,
    )


def test_the_reference_view_becomes_the_picture_and_what_is_behind_it_white():
    state = start_static(tiny_scene(), seed=0)
    list(fit_to_picture(state, replace(FROM_PICTURE, steps=40)))

    def psnr(elevation, background):
        seen = render_image(
            state.scene, reference_camera(elevation), 16, 16, occupancy=state.occupancy, samples_per_ray=48,
            background=background,
        )
        return -10 * (seen.rgb - PICTURE.rgb).square().mean().log10().item()

    assert psnr(20.0, torch.ones(3)) > 25
    assert psnr(20.0, None) > 25
    assert psnr(-50.0, torch.ones(3)) < 20, "it is the view from there"


@pytest.mark.parametrize("colour", [(1.0, 1.0, 1.0), (0.1, 0.6, 0.8)])
def test_the_background_becomes_the_colour_that_is_wanted(colour):
    fast = replace(FROM_PICTURE, steps=60, learning_rate_mlp=Constant(0.02), background=colour)
    state = start_static(tiny_scene(), seed=0)
    list(fit_to_picture(state, fast))
    directions = torch.nn.functional.normalize(torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert (state.scene.background(directions) - torch.tensor(colour)).abs().mean() < 0.06


def test_the_terms_of_a_picture_and_their_priors():
    image, novel = GaussianPrior(PURPLE), GaussianPrior(PURPLE)
    own = {"picture", "mask", "sparsity", "background", "entropy"}
    for priors, more in (({}, set()), ({"image": image, "novel": novel}, {"2d", "3d"})):
        report = next(fit_to_picture(start_static(tiny_scene(), seed=0), **priors))
        assert set(report.losses) == own | more
    assert novel.prompts == ["", ""]
    assert all(prompt.startswith("a ball, ") for prompt in image.prompts)


def test_the_cameras_of_a_picture_stand_as_far_as_that_which_took_it():
    seen = []

    class Recorder(GaussianPrior):
        def condition(self, prompts, negative, cameras):
            seen.append(cameras)
            return super().condition(prompts, negative, cameras)

    list(fit_to_picture(start_static(tiny_scene(), seed=0), novel=Recorder(PURPLE)))
    for cameras in seen:
        assert len(cameras) == 2
        torch.testing.assert_close(cameras.position.norm(dim=-1), torch.full((2,), 3.8))
        torch.testing.assert_close(cameras.fov_y, torch.full((2,), 20.0))
        assert ((cameras.elevation > -10.1) & (cameras.elevation < 80.1)).all()


def test_going_on_from_a_saved_state_of_a_picture_equals_an_uninterrupted_run():
    prior = GaussianPrior(PURPLE)
    whole = start_static(tiny_scene(), seed=1)
    losses = [report.floats() for report in fit_to_picture(whole, image=prior, novel=prior)]
    first = start_static(tiny_scene(), seed=1)
    steps = fit_to_picture(first, image=prior, novel=prior)
    for _ in range(3):
        next(steps)
    second = start_static(tiny_scene(seed=5), seed=99)
    second.load_tensors(first.to_tensors())
    assert [report.floats() for report in fit_to_picture(second, image=prior, novel=prior)] == losses[3:]
