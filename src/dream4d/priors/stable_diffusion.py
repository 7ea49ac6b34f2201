"""Stable Diffusion 2.1 and image models of its layout, ``UNet2DConditionModel`` (paper Sec. 3.1, its ref. [29])."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from dream4d.cameras import Cameras
from dream4d.priors.parts import Condition, ImagePrior, Shared, load_parts


class StableDiffusion(ImagePrior):
    """An image `distill.Prior`: an item is an image; where a camera stands is told by the words of the prompt only."""

    @classmethod
    def load(
        cls, folder: str | Path, base: str | Path | None = None, *, resolution: tuple[int, int] | None = None,
        device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, chunk: int | None = None,
        shared: Shared | None = None, quick: bool = True,
    ) -> StableDiffusion:
        """From a local folder in diffusers layout; parts that it lacks come from `base`. shared: see `parts.Shared`.
        quick: see `parts.load_parts`.

        Raises ValueError, see `parts.load_parts`, and where the UNet asks for more than text.
        """
        parts = load_parts(folder, base, device=device, dtype=dtype, chunk=chunk, shared=shared, quick=quick)
        if (extra := parts.unet.config.class_embed_type) is not None:
            raise ValueError(f"{folder}: this is not an image model: unet/config.json has class_embed_type {extra}")
        return cls(parts, resolution)

    def condition(self, prompts: Sequence[str], negative: str, cameras: Cameras) -> Condition:
        return self.parts.condition(prompts, negative)
