"""The static stage: a 3D scene from diffusion models, of a text (paper Sec. 3.1, supplement 3.1) or of a picture (Sec.
3.3). One loop; what differs is by what it is led, see `guidance`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dream4d.cameras import Cameras, orbit, sample_multiview
from dream4d.distill import Prior
from dream4d.guidance import (
    Guidance,
    ImageGuidance,
    Images,
    MultiviewGuidance,
    NovelGuidance,
    ReferenceView,
    Step,
    Surroundings,
    whole_spaces,
)
from dream4d.losses import opacity_entropy
from dream4d.occupancy import OccupancyGrid
from dream4d.picture import Picture
from dream4d.render import BUDGET, render
from dream4d.scene import Scene
from dream4d.settings import PictureSettings, StaticSettings
from dream4d.state import State, StepReport, start

_PAPER = StaticSettings()
_PAPER_PICTURE = PictureSettings()


def start_static(scene: Scene, *, seed: int, occupancy: OccupancyGrid | None = None) -> State:
    """The state before the first step, of a scene on the device that it shall be trained on.

    occupancy: see `state.start`.
    """
    return start(scene, seed=seed, occupancy=occupancy)


def fit_static(
    state: State, *, image_prior: Prior | None, multiview_prior: Prior | None, prompt: str, negative: str = "",
    image_negative: str | None = None, multiview_prompt: str | None = None, settings: StaticSettings = _PAPER,
    budget: int = BUDGET,
) -> Iterator[StepReport]:
    """Train `state.scene` in place until step `settings.steps`; yields after each step, when `state` may be saved.

    A prior that is None has no loss (the paper's ablations). The image prior reads `prompt` and the words of the view,
    the multi-view prior `multiview_prompt` (by default `prompt`) as it is. `negative`: the unconditional input of both,
    or of the latter where the image prior has `image_negative`.
    budget: see `render.render`; it changes memory and time, not the step.

    Raises ValueError for settings that contradict each other and where both priors are None.
    """
    if image_prior is None and multiview_prior is None:
        raise ValueError("the static stage needs an image prior, a multi-view prior, or both")
    guidance: list[Guidance] = []
    if image_prior is not None:
        guidance.append(ImageGuidance(image_prior, prompt, image_negative or negative, settings))
    if multiview_prior is not None:
        guidance.append(MultiviewGuidance(multiview_prior, multiview_prompt or prompt, negative, settings))
    return fit_guided(state, guidance, settings=settings, budget=budget)


def fit_picture(
    state: State, *, picture: Picture, elevation: float, image_prior: Prior | None, novel_prior: Prior | None,
    prompt: str, negative: str = "", settings: PictureSettings = _PAPER_PICTURE, budget: int = BUDGET,
) -> Iterator[StepReport]:
    """`fit_static` from a picture that was taken from the front at `elevation`, in degrees, above the horizon (paper
    Sec. 3.3).

    The novel-view prior takes the place of the multi-view prior. One that is None has no loss; without any, only the
    front becomes like the picture. All is before white, the scene's own background becomes white.

    Raises ValueError for settings that contradict each other.
    """
    camera = reference_camera(elevation, settings)
    guidance: list[Guidance] = [ReferenceView(picture.at, camera, settings), Surroundings(settings)]
    if image_prior is not None:
        guidance.append(ImageGuidance(image_prior, prompt, negative, settings))
    if novel_prior is not None:
        guidance.append(NovelGuidance(novel_prior, settings))
    white = torch.ones(3, device=next(state.scene.parameters()).device)
    return fit_guided(
        state, guidance, settings=settings, distance=settings.distance, background=white, budget=budget
    )


def reference_camera(elevation: float, settings: PictureSettings = _PAPER_PICTURE) -> Cameras:
    """The camera of the picture: before the front."""
    values = (0.0, elevation, settings.distance, settings.reference_fov_y)
    return orbit(*(torch.tensor([value]) for value in values))


def fit_guided(
    state: State, guidance: Sequence[Guidance], *, settings: StaticSettings, distance: float | None = None,
    background: Tensor | None = None, budget: int = BUDGET,
) -> Iterator[StepReport]:
    """The loop of `fit_static` and `fit_picture`: the sum of the weighted losses of `guidance` on images from random
    cameras.

    distance: of the cameras; by default, that at which an object of radius .8 to 1 fills the image. background: a
    colour [3] behind the scene; by default its own, or a random one with probability `settings.flat_background`.
    """
    _check(settings)
    scene, generator = state.scene, state.generator
    whole = whole_spaces(guidance)
    while (number := state.step) < settings.steps:
        state.set_learning_rates(grid=settings.learning_rate_grid(number), mlp=settings.learning_rate_mlp(number))
        if number % settings.occupancy_every == 0:
            state.occupancy.update(scene.canonical.density, generator)
        cameras = sample_multiview(
            settings.images(number) // settings.views, generator, views=settings.views, elevation=settings.elevation,
            fov_y=settings.fov_y, distance=distance,
        )
        step = _look(state, cameras, settings, background, budget, whole)

        terms = {name: term for each in guidance for name, term in each(step).items()}
        if weight := settings.weight_entropy(number):
            terms["entropy"] = weight, opacity_entropy(step.images.opacity)
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()  # L of Sec. 3.1

        state.optimizer.zero_grad()
        loss.backward()
        state.optimizer.step()
        state.step += 1
        yield StepReport(number, {name: value.detach() for name, (_, value) in terms.items()})


def _look(
    state: State, cameras: Cameras, settings: StaticSettings, background: Tensor | None, budget: int,
    whole: frozenset[object],
) -> Step:
    """The images of a step, all before one background."""
    device = next(state.scene.parameters()).device
    if background is None:
        colour = torch.rand(3, generator=state.generator)
        flat = torch.rand((), generator=state.generator) < settings.flat_background
        background = colour.to(device, non_blocking=True) if flat else None

    def look(cameras: Cameras, size: int) -> Images:
        rendered = render(
            state.scene, cameras.to(device).rays(size, size).flatten(), occupancy=state.occupancy,
            samples_per_ray=settings.samples_per_ray, generator=state.generator, background=background, budget=budget,
        )
        shape = (len(cameras), size, size)
        return Images(cameras, rendered.rgb.reshape(*shape, 3), rendered.opacity.reshape(shape))

    def behind() -> Tensor:
        rgb: Tensor = state.scene.background(cameras.to(device).rays(4, 4).flatten().directions)
        return rgb

    images = look(cameras, settings.resolution(state.step))
    return Step(state.step, images, state.generator, look, behind, whole)


def _check(settings: StaticSettings) -> None:
    if settings.max_azimuth_2d < (widest := 180 / settings.views):
        raise ValueError(f"max_azimuth_2d is {settings.max_azimuth_2d}: below {widest} some steps have no image for it")
    for images in map(settings.images, (0, settings.steps - 1)):
        if images % settings.views:
            raise ValueError(f"images is {images}, which is not a multiple of views, {settings.views}")
