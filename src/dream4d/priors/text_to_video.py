"""Zeroscope, ModelScope and every text-to-video model of their layout (paper Sec. 3.2): ``UNet3DConditionModel``.

Videos are [b, t, h, w, 3] and latents [b, t, c, h', w']; the UNet's [b, c, t, h', w'] stays inside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.priors.parts import Autoencoder, Condition, Parts, Shared, load_parts, resize


class TextToVideo:
    """A video `distill.Prior`: an item is a clip of `frames` frames, the number that the model was trained with.

    resolution: height and width of its frames; by default what the UNet's configuration says, which for Zeroscope is
    not what it was trained with: (320, 576).
    """

    def __init__(self, parts: Parts, frames: int, resolution: tuple[int, int] | None = None):
        self.parts = parts
        self.frames = frames
        self.resolution = resolution or parts.resolution
        self.alpha_bar = parts.alpha_bar

    @classmethod
    def load(
        cls, folder: str | Path, base: str | Path | None = None, *, frames: int = 24,
        resolution: tuple[int, int] | None = None, device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32, chunk: int | None = None, shared: Shared | None = None,
    ) -> TextToVideo:
        """From a local folder in diffusers layout; parts that it lacks come from `base`. chunk: frames that the
        autoencoder takes at a time. shared: see `parts.Shared`. Raises ValueError, see `parts.load_parts`."""
        parts = load_parts(
            folder, base, unet="UNet3DConditionModel", kind="a text-to-video model", device=device, dtype=dtype,
            chunk=chunk, shared=shared,
        )
        return cls(parts, frames, resolution)

    @property
    def latent_space(self) -> tuple[Autoencoder, tuple[int, int]]:
        """Equal for priors that share one `Autoencoder` object and one resolution."""
        return self.parts.autoencoder, self.resolution

    def condition(self, prompts: Sequence[str], negative: str, cameras: Cameras) -> Condition:
        return self.parts.condition(prompts, negative)

    def resize(self, images: Tensor) -> Tensor:
        return _per_frame(lambda frames: resize(frames, *self.resolution), images)

    def encode(self, images: Tensor) -> Tensor:
        return _per_frame(self.parts.autoencoder.encode, images)

    def decode(self, latents: Tensor) -> Tensor:
        return _per_frame(self.parts.autoencoder.decode, latents)

    def limit(self, *, images: int | None, split: bool) -> None:
        """See `Parts.limit`; `images`: frames that the autoencoder takes at a time, all if None."""
        self.parts.limit(images=images, split=split)

    def predict_noise(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> tuple[Tensor, Tensor]:
        channels_first = noisy.transpose(1, 2)
        unconditional, conditional = self.parts.predict_noise(channels_first, timestep, condition)
        return unconditional.transpose(1, 2), conditional.transpose(1, 2)


def _per_frame(function: Callable[[Tensor], Tensor], videos: Tensor) -> Tensor:
    """[n, ...] -> [n, ...] applied to [b, t, ...]."""
    results = function(videos.flatten(0, 1))
    return results.reshape(*videos.shape[:2], *results.shape[1:])
