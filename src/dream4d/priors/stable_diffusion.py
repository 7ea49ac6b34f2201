"""Stable Diffusion 2.1 and image models of its layout, ``UNet2DConditionModel`` (paper Sec. 3.1, its ref. [29])."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.priors.parts import Condition, Parts, load_parts, resize


class StableDiffusion:
    """An image `distill.Prior`: an item is an image; where a camera stands is told by the words of the prompt only.

    resolution: height and width of its images; by default what the UNet was made for.
    """

    def __init__(self, parts: Parts, resolution: tuple[int, int] | None = None):
        self.parts = parts
        self.resolution = resolution or parts.resolution
        self.alpha_bar = parts.alpha_bar

    @classmethod
    def load(
        cls, folder: str | Path, base: str | Path | None = None, *, resolution: tuple[int, int] | None = None,
        device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, chunk: int | None = None,
    ) -> StableDiffusion:
        """From a local folder in diffusers layout; parts that it lacks come from `base`. Raises ValueError, see
        `parts.load_parts`, and where the UNet asks for more than text."""
        parts = load_parts(folder, base, device=device, dtype=dtype, chunk=chunk)
        if (extra := parts.unet.config.class_embed_type) is not None:
            raise ValueError(f"{folder}: this is not an image model: unet/config.json has class_embed_type {extra}")
        return cls(parts, resolution)

    def condition(self, prompts: Sequence[str], negative: str, cameras: Cameras) -> Condition:
        return self.parts.condition(prompts, negative)

    def resize(self, images: Tensor) -> Tensor:
        return resize(images, *self.resolution)

    def encode(self, images: Tensor) -> Tensor:
        return self.parts.autoencoder.encode(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.parts.autoencoder.decode(latents)

    def predict_noise(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        return self.parts.predict_noise(noisy, timestep, condition)
