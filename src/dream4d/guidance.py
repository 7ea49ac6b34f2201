"""What leads the static stage: its losses, each a frozen value that is called with a step (paper Sec. 3.1 and 3.3).

`recipes` and `static` choose which there are; the loop knows none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dream4d.cameras import Cameras, view_words
from dream4d.distill import Prior, encode, reconstruction_loss, sds_loss
from dream4d.losses import colour_error, mask_error, sparsity
from dream4d.settings import PictureSettings, StaticSettings

Weighted = dict[str, tuple[float, Tensor]]
"""Weights and losses, scalars, by name."""


@dataclass(frozen=True)
class Images:
    """Rendered images [b, s, s, 3] and their opacities [b, s, s], from `cameras` [b]."""

    cameras: Cameras
    rgb: Tensor
    opacity: Tensor


@dataclass
class Step:
    """Step `number` of the stage and the images of its random cameras, from which the losses are taken.

    look: renders images of the given size from further cameras. background: the scene's own, at some places [n, 3].
    whole: latent spaces in which all images are wanted.
    """

    number: int
    images: Images
    generator: torch.Generator
    look: Callable[[Cameras, int], Images]
    background: Callable[[], Tensor]
    whole: frozenset[Hashable] = frozenset()
    _latents: dict[Hashable, Tensor] = field(default_factory=dict)

    def latents(self, prior: Prior, chosen: Tensor | None = None) -> Tensor:
        """Latents of all images, or of those of the indices `chosen`; differentiable. No image is encoded twice for
        the same latent space."""
        space = prior.latent_space
        if chosen is not None:
            chosen = chosen.to(self.images.rgb.device, non_blocking=True)
            if space not in self.whole:
                return encode(prior, self.images.rgb[chosen])
        if space not in self._latents:
            self._latents[space] = encode(prior, self.images.rgb)
        return self._latents[space] if chosen is None else self._latents[space][chosen]


class Guidance(Protocol):
    def __call__(self, step: Step) -> Weighted: ...


@dataclass(frozen=True)
class ImageGuidance:
    """L2D of Sec. 3.1: an image prior reads `prompt` and the words of the view; `negative` is its unconditional
    input."""

    prior: Prior
    prompt: str
    negative: str
    settings: StaticSettings

    def __call__(self, step: Step) -> Weighted:
        settings, cameras = self.settings, step.images.cameras
        chosen, share = _choose_images(cameras, settings, step.generator)
        prompts = [f"{self.prompt}, {words}" for words in view_words(cameras[chosen])]
        loss = share * sds_loss(
            self.prior, step.latents(self.prior, chosen),
            self.prior.condition(prompts, self.negative, cameras[chosen]),
            scale=settings.guidance_2d, timesteps=settings.timesteps_2d(step.number), generator=step.generator,
        )
        return {"2d": (settings.weight_2d, loss)}


@dataclass(frozen=True)
class MultiviewGuidance:
    """L3D of Sec. 3.1 from a multi-view prior, which reads `prompt` as it is."""

    prior: Prior
    prompt: str
    negative: str
    settings: StaticSettings

    def __call__(self, step: Step) -> Weighted:
        settings, cameras = self.settings, step.images.cameras
        loss = reconstruction_loss(
            self.prior, step.latents(self.prior),
            self.prior.condition([self.prompt] * len(cameras), self.negative, cameras),
            scale=settings.guidance_3d, timesteps=settings.timesteps_3d(step.number), views=settings.views,
            std_rescale=settings.std_rescale, generator=step.generator,
        )
        return {"3d": (settings.weight_3d(step.number), loss)}


@dataclass(frozen=True)
class NovelGuidance:
    """L3D of Sec. 3.3 from a prior that sees the picture, and each view on its own."""

    prior: Prior
    settings: StaticSettings

    def __call__(self, step: Step) -> Weighted:
        settings, cameras = self.settings, step.images.cameras
        loss = sds_loss(
            self.prior, step.latents(self.prior), self.prior.condition([""] * len(cameras), "", cameras),
            scale=settings.guidance_3d, timesteps=settings.timesteps_3d(step.number), generator=step.generator,
        )
        return {"3d": (settings.weight_3d(step.number), loss)}


@dataclass(frozen=True)
class ReferenceView:
    """The picture and its mask, as the one camera that sees them: colour and mask errors of that view (Sec. 3.3).

    at: rgb [s, s, 3] before white and mask [s, s], at the size s.
    """

    at: Callable[[int], tuple[Tensor, Tensor]]
    camera: Cameras
    settings: PictureSettings

    def __call__(self, step: Step) -> Weighted:
        settings = self.settings
        size = settings.reference_resolution(step.number)
        seen = step.look(self.camera, size)
        rgb, mask = (part.to(seen.rgb.device, non_blocking=True) for part in self.at(size))
        return {
            "picture": (settings.weight_picture, colour_error(seen.rgb[0], rgb)),
            "mask": (settings.weight_mask, mask_error(seen.opacity[0], mask)),
        }


@dataclass(frozen=True)
class Surroundings:
    """Empty space around the object, by the sparsity of the random views, and one colour behind it, by the error of the
    scene's own background: before that it stands in the dynamic stage."""

    settings: PictureSettings

    def __call__(self, step: Step) -> Weighted:
        behind = step.background()
        return {
            "sparsity": (self.settings.weight_sparsity, sparsity(step.images.opacity)),
            "background": (1.0, colour_error(behind, behind.new_tensor(self.settings.background).expand_as(behind))),
        }


def whole_spaces(guidance: Sequence[Guidance]) -> frozenset[Hashable]:
    """Latent spaces in which some guidance wants all images."""
    return frozenset(
        each.prior.latent_space for each in guidance if isinstance(each, MultiviewGuidance | NovelGuidance)
    )


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
