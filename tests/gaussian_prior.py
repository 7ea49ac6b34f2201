"""A prior that is mathematically true: data are Gaussian, so the best denoiser has a closed form (no network)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dream4d.cameras import Cameras


@dataclass
class GaussianPrior:
    """Data are N(mean, deviation^2) in every channel, and N(0, 1) without a condition; latents are the pixels."""

    mean: Tensor
    deviation: float = 0.1
    frames: int = 3
    alpha_bar: Tensor = field(default_factory=lambda: torch.linspace(0.999, 0.001, 1000))
    prompts: list[str] = field(default_factory=list)
    latent_space: str = "pixels"

    def condition(self, prompts: Sequence[str], negative: str, cameras: Cameras) -> Tensor:
        assert len(prompts) == len(cameras)
        self.prompts += prompts
        return self.mean

    def resize(self, images: Tensor) -> Tensor:
        return images

    def encode(self, images: Tensor) -> Tensor:
        return images * 1.0

    def decode(self, latents: Tensor) -> Tensor:
        return latents.detach().clamp(0, 1)

    def predict_noise(self, noisy: Tensor, timestep: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        a = self.alpha_bar[timestep].reshape(-1, *[1] * (noisy.ndim - 1)).to(noisy.dtype)

        def expected_noise(mean: Tensor | float, deviation: float) -> Tensor:
            return (1 - a).sqrt() * (noisy - a.sqrt() * mean) / (a * deviation**2 + 1 - a)

        return expected_noise(0.0, 1.0), expected_noise(condition, self.deviation)
