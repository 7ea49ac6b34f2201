"""Drawing from a prior, to look at what it knows: deterministic DDIM (Song et al., 2021), classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.distill import Prior, add_noise, classifier_free_guidance, remove_noise


@torch.no_grad()
def sample(
    prior: Prior, prompts: Sequence[str], cameras: Cameras, shape: Sequence[int], *, generator: torch.Generator,
    negative: str = "", steps: int = 30, scale: float = 3.0,
) -> Tensor:
    """Images [b, h, w, 3] or videos [b, t, h, w, 3], one a prompt; shape: of a latent, without the batch."""
    return prior.decode(sample_latents(
        prior, prompts, cameras, shape, generator=generator, negative=negative, steps=steps, scale=scale
    ))


@torch.no_grad()
def sample_latents(
    prior: Prior, prompts: Sequence[str], cameras: Cameras, shape: Sequence[int], *, generator: torch.Generator,
    negative: str = "", steps: int = 30, scale: float = 3.0,
) -> Tensor:
    """`sample` before it is decoded, [b, *shape]."""
    device = prior.alpha_bar.device
    condition = prior.condition(prompts, negative, cameras)
    latents = torch.randn(len(prompts), *shape, generator=generator).to(device)
    timesteps = torch.linspace(len(prior.alpha_bar) - 1, 0, steps + 1).round().long().to(device)
    for now, after in pairwise(timesteps):
        everywhere = now.expand(len(prompts))
        noise = classifier_free_guidance(*prior.predict_noise(latents, everywhere, condition), scale)
        clean = remove_noise(latents, noise, prior.alpha_bar[everywhere])
        latents = add_noise(clean, noise, prior.alpha_bar[after.expand(len(prompts))])
    return latents
