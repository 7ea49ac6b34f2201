"""The static stage: a 3D scene from a multi-view and an image diffusion model (paper Sec. 3.1, supplement 3.1)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dream4d.cameras import Cameras, sample_multiview, view_words
from dream4d.distill import Prior, encode, reconstruction_loss, sds_loss
from dream4d.losses import opacity_entropy
from dream4d.occupancy import OccupancyGrid
from dream4d.render import BUDGET, render
from dream4d.scene import Scene
from dream4d.settings import StaticSettings
from dream4d.state import State, StepReport, start

_PAPER = StaticSettings()


def start_static(scene: Scene, *, seed: int, occupancy: OccupancyGrid | None = None) -> State:
    """The state before the first step, of a scene on the device that it shall be trained on.

    occupancy: see `state.start`.
    """
    return start(scene, seed=seed, occupancy=occupancy)


def fit_static(
    state: State, *, image_prior: Prior | None, multiview_prior: Prior | None, prompt: str, negative: str = "",
    multiview_prompt: str | None = None, settings: StaticSettings = _PAPER, budget: int = BUDGET,
) -> Iterator[StepReport]:
    """Train `state.scene` in place until step `settings.steps`; yields after each step, when `state` may be saved.

    A prior that is None has no loss (the paper's ablations). The image prior reads `prompt` and the words of the view,
    the multi-view prior `multiview_prompt` (by default `prompt`) as it is. `negative`: the unconditional input of both.
    budget: see `render.render`; it changes memory and time, not the step.

    Raises ValueError for settings that contradict each other and where both priors are None.
    """
    _check(settings, image_prior, multiview_prior)
    scene, generator = state.scene, state.generator
    encode_once = (
        image_prior is not None and multiview_prior is not None
        and image_prior.latent_space == multiview_prior.latent_space
    )
    while (step := state.step) < settings.steps:
        state.set_learning_rates(grid=settings.learning_rate_grid(step), mlp=settings.learning_rate_mlp(step))
        if step % settings.occupancy_every == 0:
            state.occupancy.update(scene.canonical.density, generator)
        cameras = sample_multiview(
            settings.images(step) // settings.views, generator, views=settings.views, elevation=settings.elevation,
            fov_y=settings.fov_y,
        )
        images, opacity = _render_images(state, cameras, settings.resolution(step), settings, budget)

        losses: dict[str, Tensor] = {}
        if multiview_prior is not None:
            latents = encode(multiview_prior, images)
        if image_prior is not None:
            chosen, share = _choose_images(cameras, settings, generator)
            seen = chosen.to(images.device, non_blocking=True)
            prompts = [f"{prompt}, {words}" for words in view_words(cameras[chosen])]
            losses["2d"] = share * sds_loss(
                image_prior, latents[seen] if encode_once else encode(image_prior, images[seen]),
                image_prior.condition(prompts, negative, cameras[chosen]),
                scale=settings.guidance_2d, timesteps=settings.timesteps_2d(step), generator=generator,
            )
        if multiview_prior is not None:
            prompts = [multiview_prompt or prompt] * len(cameras)
            losses["3d"] = reconstruction_loss(
                multiview_prior, latents, multiview_prior.condition(prompts, negative, cameras),
                scale=settings.guidance_3d, timesteps=settings.timesteps_3d(step), views=settings.views,
                std_rescale=settings.std_rescale, generator=generator,
            )
        if settings.weight_entropy(step):
            losses["entropy"] = opacity_entropy(opacity)
        weights = {"2d": settings.weight_2d, "3d": settings.weight_3d(step), "entropy": settings.weight_entropy(step)}
        loss = torch.stack([weights[name] * value for name, value in losses.items()]).sum()  # L of Sec. 3.1

        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.step += 1
        yield StepReport(step, {name: value.detach() for name, value in losses.items()})


def _render_images(
    state: State, cameras: Cameras, size: int, settings: StaticSettings, budget: int
) -> tuple[Tensor, Tensor]:
    """[b, size, size, 3], before the scene's background or, with probability `flat_background`, one random colour; and
    opacities [b, size, size]."""
    colour = torch.rand(3, generator=state.generator)
    flat = torch.rand((), generator=state.generator) < settings.flat_background
    device = next(state.scene.parameters()).device
    rays = cameras.to(device).rays(size, size).flatten()
    rendered = render(
        state.scene, rays, occupancy=state.occupancy, samples_per_ray=settings.samples_per_ray,
        generator=state.generator, background=colour.to(device, non_blocking=True) if flat else None, budget=budget,
    )
    shape = (len(cameras), size, size)
    return rendered.rgb.reshape(*shape, 3), rendered.opacity.reshape(shape)


def _choose_images(cameras: Cameras, settings: StaticSettings, generator: torch.Generator) -> tuple[Tensor, float]:
    """Indices of the images that the image prior sees, and the share of images that it could have seen.

    The mean loss over the chosen times the share estimates the mean over all images, with nothing from those it may
    not see: neither setting changes the weight of the others.
    """
    allowed = torch.nonzero(cameras.azimuth.abs() <= settings.max_azimuth_2d).flatten()
    share = len(allowed) / len(cameras)
    if settings.images_2d is None or settings.images_2d >= len(allowed):
        return allowed, share
    return allowed[torch.randperm(len(allowed), generator=generator)[: settings.images_2d]], share


def _check(settings: StaticSettings, image_prior: Prior | None, multiview_prior: Prior | None) -> None:
    if image_prior is None and multiview_prior is None:
        raise ValueError("the static stage needs an image prior, a multi-view prior, or both")
    if settings.max_azimuth_2d < (widest := 180 / settings.views):
        raise ValueError(f"max_azimuth_2d is {settings.max_azimuth_2d}: below {widest} some steps have no image for it")
    for images in map(settings.images, (0, settings.steps - 1)):
        if images % settings.views:
            raise ValueError(f"images is {images}, which is not a multiple of views, {settings.views}")
