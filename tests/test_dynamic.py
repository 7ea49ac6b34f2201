from dataclasses import replace

import pytest
import torch
from gaussian_prior import GaussianPrior
from tiny_models import save_denoiser, save_image_model, unet_3d
from tiny_scene import tiny_scene

from dream4d import dynamic
from dream4d.dynamic import fit_dynamic, sample_times, start_dynamic
from dream4d.priors.text_to_video import TextToVideo
from dream4d.schedules import Constant, Interval, Levels, Milestones
from dream4d.settings import DynamicSettings

PURPLE = torch.tensor([0.7, 0.2, 0.9])
SETTINGS = DynamicSettings(
    steps=6, height=Constant(6), width=Constant(8), samples_per_ray=32, guidance=1, weight_tv=1.0, occupancy_every=4,
    timesteps=Interval(Constant(0.3), Constant(0.6)), levels=Levels(1, every=2, most=3),
    learning_rate=Milestones(1e-2, at=(4,)),
)


def fit(state, settings=SETTINGS, prior=None):
    return fit_dynamic(state, video_prior=prior or GaussianPrior(PURPLE), prompt="a cat waves", settings=settings)


@pytest.mark.parametrize("encoding", ["grid", "positional"])
def test_only_the_deformation_changes(encoding):
    state = start_dynamic(tiny_scene(moving=True, encoding=encoding), seed=0)
    before = {name: p.detach().clone() for name, p in state.scene.named_parameters()}
    list(fit(state))
    changed = {name for name, p in state.scene.named_parameters() if not torch.equal(p, before[name])}
    assert changed
    assert all(name.startswith("deformation.") for name in changed)


def test_a_hexplane_changes_everywhere_and_with_time():
    state = start_dynamic(tiny_scene(moving=True, field="hexplane"), seed=0)
    before = {name: p.detach().clone() for name, p in state.scene.named_parameters()}
    reports = list(fit(state))
    assert not [name for name, p in state.scene.named_parameters() if torch.equal(p, before[name])]
    assert set(reports[0].losses) == {"video", "planes"}
    points = torch.rand(50, 3) - 0.5
    assert not torch.equal(state.scene.density(points, 0.0), state.scene.density(points, 1.0))


def test_variation_of_planes_holds_motion_back():
    def roughness(weight: float) -> float:
        settings = replace(SETTINGS, steps=25, weight_planes=weight, learning_rate_time=Constant(1e-2))
        state = start_dynamic(tiny_scene(moving=True, field="hexplane"), seed=0)
        return list(fit(state, settings))[-1].floats()["planes"]

    assert roughness(1e5) < roughness(0.0) / 2


def test_levels_and_learning_rate_follow_their_schedules():
    state = start_dynamic(tiny_scene(moving=True), seed=0)
    seen = [(state.scene.active_levels, {g["lr"] for g in state.optimizer.param_groups}) for _ in fit(state)]
    assert [levels for levels, _ in seen] == [1, 1, 2, 2, 3, 3]
    assert [rates for _, rates in seen] == [{1e-2}] * 4 + [{5e-3}] * 2


@pytest.mark.parametrize("field", ["grid", "hexplane"])
def test_going_on_from_a_saved_state_equals_an_uninterrupted_run(field):
    whole = start_dynamic(tiny_scene(moving=True, field=field), seed=1)
    losses = [report.floats() for report in fit(whole)]
    first = start_dynamic(tiny_scene(moving=True, field=field), seed=1)
    steps = fit(first)
    for _ in range(3):
        next(steps)
    second = start_dynamic(tiny_scene(moving=True, field=field), seed=99)
    second.load_tensors(first.to_tensors())
    assert [report.floats() for report in fit(second)] == losses[3:]
    rest = second.to_tensors()
    for name, value in whole.to_tensors().items():
        assert torch.equal(value, rest[name]), name


def test_total_variation_holds_motion_back():
    def roughness(weight: float) -> float:
        settings = replace(SETTINGS, steps=25, weight_tv=weight, learning_rate=Constant(1e-2))
        return list(fit(start_dynamic(tiny_scene(moving=True), seed=0), settings))[-1].floats()["tv"]

    assert roughness(1000.0) < roughness(0.0) / 2


def test_a_step_shows_the_prior_clips_of_its_length_and_their_view():
    shapes = []

    class Recorder(GaussianPrior):
        def encode(self, images):
            shapes.append(tuple(images.shape))
            return images * 1.0

    prior = Recorder(PURPLE, frames=5)
    next(fit(start_dynamic(tiny_scene(moving=True), seed=0), replace(SETTINGS, clips=2), prior))
    assert shapes == [(2, 5, 6, 8, 3)]
    assert len(prior.prompts) == 2
    assert all(prompt.startswith("a cat waves, ") and prompt.endswith(" view") for prompt in prior.prompts)


def test_total_variation_is_that_of_a_cube_of_side_1(monkeypatch):
    rendered, rated = [], []
    render_videos, total_variation = dynamic._render_videos, dynamic.total_variation

    def recorded(*arguments):
        rendered.append(render_videos(*arguments)[1])
        return render_videos(*arguments)[0], rendered[-1]

    monkeypatch.setattr(dynamic, "_render_videos", recorded)
    monkeypatch.setattr(dynamic, "total_variation", lambda d: rated.append(d) or total_variation(d))
    report = next(fit(start_dynamic(tiny_scene(moving=True), seed=0)))
    assert rendered[0].abs().max() > 0
    assert torch.equal(2 * rated[0], rendered[0])
    torch.testing.assert_close(report.losses["tv"], total_variation(rendered[0]).detach() / 4)


@pytest.mark.parametrize("frames_pixels", [None, 2])
def test_a_step_in_parts_has_the_gradients_of_the_whole_step(tmp_path, frames_pixels):
    """Loss in latents and in decoded pixels, total variation; the smallest parts there are."""
    base = save_image_model(tmp_path / "image")
    prior = TextToVideo.load(save_denoiser(tmp_path / "video", unet_3d()), base, frames=3)
    settings = replace(SETTINGS, weight_pixels=0.5, weight_tv=100.0, frames_pixels=frames_pixels)

    def step(budget, **limits):
        prior.limit(**limits)
        state = start_dynamic(tiny_scene(moving=True), seed=0)
        report = next(fit_dynamic(
            state, video_prior=prior, prompt="a cat", settings=settings, budget=budget
        ))
        return report.floats(), [p.grad for p in state.scene.deformation.parameters()]

    losses, gradients = step(2**30, images=None, split=False)
    losses_in_parts, in_parts = step(100, images=1, split=True)
    assert losses_in_parts == pytest.approx(losses, rel=1e-5)
    for part, whole in zip(in_parts, gradients, strict=True):
        assert whole.abs().max() > 0
        assert (part - whole).norm() <= 1e-4 * whole.norm()


def test_times_are_even_and_inside_the_scene():
    times = sample_times(2000, 24, (0.8, 1.0), torch.Generator().manual_seed(0))
    steps = times.diff(dim=1)
    length = times[:, -1] - times[:, 0]
    torch.testing.assert_close(steps, steps.mean(dim=1, keepdim=True).expand_as(steps), rtol=0, atol=1e-5)
    assert times.min() >= 0
    assert times.max() <= 1 + 1e-6
    assert 0.8 - 1e-5 <= length.min() < 0.81
    assert 0.99 < length.max() <= 1 + 1e-5


def test_a_scene_without_deformation_is_refused():
    with pytest.raises(ValueError, match="add_motion"):
        start_dynamic(tiny_scene(), seed=0)
