"""The dynamic stage: motion for a finished 3D scene from a video diffusion model (paper Sec. 3.2, supplement)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dream4d.cameras import Cameras, Rays, sample_clip, view_words
from dream4d.distill import VideoPrior, video_reconstruction_loss
from dream4d.losses import plane_variation, total_variation
from dream4d.occupancy import OccupancyGrid
from dream4d.render import BUDGET, render
from dream4d.scene import Scene
from dream4d.settings import DynamicSettings
from dream4d.state import State, StepReport, start

_PAPER = DynamicSettings()


def start_dynamic(scene: Scene, *, seed: int, occupancy: OccupancyGrid | None = None) -> State:
    """The state before the first step; all that is not the scene's motion is frozen here.

    occupancy: see `state.start`.

    Raises ValueError where nothing can move in the scene (`Scene.add_motion` changes that).
    """
    if not scene.moves:
        raise ValueError("the scene has no deformation field: call scene.add_motion() before the dynamic stage")
    scene.freeze_canonical()
    return start(scene, seed=seed, occupancy=occupancy)


def fit_dynamic(
    state: State, *, video_prior: VideoPrior, prompt: str, negative: str = "", settings: DynamicSettings = _PAPER,
    density: float = 1.0, budget: int = BUDGET,
) -> Iterator[StepReport]:
    """Train the motion of `state.scene` until step `settings.steps`; yields after each step, when `state` may be
    saved. The prior reads `prompt` and the words of the view; `negative` is its unconditional input.
    density: a factor of the scene's, in the videos that the prior sees. budget: see `render.render`; it changes memory
    and time, not the step."""
    scene, generator = state.scene, state.generator
    trained = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in scene.motion()}, "only the motion is trained"
    while (step := state.step) < settings.steps:
        scene.active_levels = settings.levels(step)
        rate = settings.learning_rate(step) if scene.hexplane is None else settings.learning_rate_fields(step)
        state.set_learning_rates(grid=rate, mlp=rate, time=settings.learning_rate_time(step))
        if step % settings.occupancy_every == 0:
            state.occupancy.update(scene.density, generator, times=settings.occupancy_times)
        cameras = sample_clip(
            settings.clips, generator, azimuth=settings.azimuth, elevation=settings.elevation, fov_y=settings.fov_y
        )
        times = sample_times(settings.clips, video_prior.frames, settings.clip_length, generator)
        scene.thinned = density
        videos, displacement = _render_videos(state, cameras, times, settings, budget)

        prompts = [f"{prompt}, {words}" for words in view_words(cameras)]
        losses = {
            "video": video_reconstruction_loss(
                video_prior, videos, video_prior.condition(prompts, negative, cameras), scale=settings.guidance,
                timesteps=settings.timesteps(step), pixel_weight=settings.weight_pixels,
                pixel_frames=settings.frames_pixels, generator=generator,
                kept_mean=settings.kept_mean,
            ),
        }
        loss = settings.weight_video * losses["video"]  # L of Sec. 3.2
        if scene.hexplane is None:
            losses["tv"] = total_variation(displacement / 2)  # our cube has side 2, that of lambda_TV side 1
            loss = loss + settings.weight_tv * losses["tv"]
        else:
            losses["planes"] = plane_variation(scene.hexplane.parameters())
            loss = loss + settings.weight_planes * losses["planes"]

        state.optimizer.zero_grad()
        loss.backward()  # which may render again
        scene.thinned = 1.0
        state.optimizer.step()
        state.step += 1
        yield StepReport(step, {name: value.detach() for name, value in losses.items()})


def sample_times(clips: int, frames: int, length: tuple[float, float], generator: torch.Generator) -> Tensor:
    """[clips, frames] evenly spaced times in [0, 1]: a random length, then a random start (paper Sec. 3.2)."""
    shortest, longest = length
    lengths = shortest + (longest - shortest) * torch.rand(clips, 1, generator=generator)
    starts = (1 - lengths) * torch.rand(clips, 1, generator=generator)
    return starts + lengths * torch.linspace(0, 1, frames)


def _render_videos(
    state: State, cameras: Cameras, times: Tensor, settings: DynamicSettings, budget: int
) -> tuple[Tensor, Tensor]:
    """RGB and composited displacement, both [b, t, h, w, 3], before the scene's own background."""
    height, width = settings.height(state.step), settings.width(state.step)
    shape = (*times.shape, height, width, 3)
    device = next(state.scene.parameters()).device
    rays = cameras.to(device).rays(height, width)
    every_frame = Rays(rays.origins[:, None].expand(shape), rays.directions[:, None].expand(shape))
    rendered = render(
        state.scene, every_frame.flatten(), times.to(device)[..., None, None].expand(shape[:-1]).reshape(-1),
        occupancy=state.occupancy, samples_per_ray=settings.samples_per_ray, generator=state.generator,
        budget=budget,
    )
    return rendered.rgb.reshape(shape), rendered.displacement.reshape(shape)
