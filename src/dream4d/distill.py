"""Score distillation: gradients of rendered images from frozen diffusion models (paper Sec. 3.1 and 3.2).

Notation: z a latent, eps noise, alpha_bar the cumulative product of 1 - beta, so that
z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps. Losses are sums over a latent and means over the batch (of b items);
random numbers come from the generator that is passed. Timestep intervals are fractions of the number of timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from dream4d.cameras import Cameras


class Prior(Protocol):
    """A frozen diffusion model. An item of a batch is an image, [h, w, 3], or a video, [t, h, w, 3].

    Parametrisations other than epsilon, and memory layouts other than a leading batch (and time), end inside it.
    """

    @property
    def alpha_bar(self) -> Tensor:
        """[timesteps], fp32, on the prior's device."""
        ...

    @property
    def latent_space(self) -> Any:
        """Priors whose latent spaces are equal (==) resize and encode the same images to the same latents."""
        ...

    def condition(self, prompts: Sequence[str], negative: str, cameras: Cameras) -> Any:
        """What `predict_noise` is told: one prompt and one camera an item, one negative prompt for all."""
        ...

    def resize(self, images: Tensor) -> Tensor:
        """Images of any size to the prior's own, bilinearly; differentiable."""
        ...

    def encode(self, images: Tensor) -> Tensor:
        """Images of the prior's size in [0, 1] to latents, [b, ...] in fp32; differentiable."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images in [0, 1], without gradient."""
        ...

    def predict_noise(self, noisy: Tensor, timestep: Tensor, condition: Any) -> tuple[Tensor, Tensor]:
        """eps of the noisy latents at timestep [b], (for the negative prompt, for the prompt), without gradient."""
        ...


class VideoPrior(Prior, Protocol):
    """A `Prior` whose items are videos of `frames` frames."""

    @property
    def frames(self) -> int: ...


def classifier_free_guidance(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """The only convention in this project: scale 1 is the conditional prediction, 0 the unconditional one."""
    return unconditional + scale * (conditional - unconditional)


def add_noise(latents: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """z_t = sqrt(alpha_bar) z + sqrt(1 - alpha_bar) eps; alpha_bar [b]."""
    alpha_bar = _like(alpha_bar, latents)
    return alpha_bar.sqrt() * latents + (1 - alpha_bar).sqrt() * noise


def remove_noise(noisy: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """The inverse of `add_noise` in its first argument: the one-step estimate of z when `noise` is a prediction."""
    alpha_bar = _like(alpha_bar, noisy)
    return (noisy - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


def encode(prior: Prior, images: Tensor) -> Tensor:
    """Latents [b, ...] of images of any size; differentiable."""
    return prior.encode(prior.resize(images))


def sds_loss(
    prior: Prior, latents: Tensor, condition: Any, *, scale: float, timesteps: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Score distillation sampling (paper Sec. 3.1, L2D): dL/dz = (1 - alpha_bar) (eps_hat - eps) / b, z `latents`.

    Every item draws its own timestep. The value is 1/2 ||(1 - alpha_bar) (eps_hat - eps)||^2 / b.
    """
    timestep = sample_timesteps(len(latents), prior, timesteps, generator)
    alpha_bar = prior.alpha_bar[timestep]
    noise = _noise_like(latents, generator)
    unconditional, conditional = prior.predict_noise(add_noise(latents.detach(), noise, alpha_bar), timestep, condition)
    predicted = classifier_free_guidance(unconditional, conditional, scale)
    gradient = _like(1 - alpha_bar, latents) * (predicted - noise)
    # A zero whose derivative is one carries the gradient without the rounding of ||z - (z - gradient)||^2 / 2.
    return (gradient * (latents - latents.detach()) + gradient.square() / 2).sum() / len(latents)


def reconstruction_loss(
    prior: Prior, latents: Tensor, condition: Any, *, scale: float, timesteps: tuple[float, float],
    views: int, std_rescale: float, generator: torch.Generator,
) -> Tensor:
    """Multi-view SDS in its reconstruction form (paper Sec. 3.1, L3D, after its ref. [32]): ||z - z_hat||^2 / b.

    z are the `latents`, z_hat is the guided one-step estimate, held fixed. A large `scale` oversaturates it, so its
    standard deviation over the `views` consecutive images of a scene moves by the share `std_rescale` toward that of
    the estimate from the prompt alone. All items share one timestep.
    """
    timestep = sample_timesteps(1, prior, timesteps, generator).expand(len(latents))
    alpha_bar = prior.alpha_bar[timestep]
    noisy = add_noise(latents.detach(), _noise_like(latents, generator), alpha_bar)
    unconditional, conditional = prior.predict_noise(noisy, timestep, condition)
    estimate = remove_noise(noisy, classifier_free_guidance(unconditional, conditional, scale), alpha_bar)
    ratio = _scene_std(remove_noise(noisy, conditional, alpha_bar), views) / _scene_std(estimate, views)
    target = estimate * _like(1 + std_rescale * (ratio - 1), estimate)
    return (latents - target).square().sum() / len(latents)


def video_reconstruction_loss(
    prior: Prior, videos: Tensor, condition: Any, *, scale: float, timesteps: tuple[float, float],
    pixel_weight: float, generator: torch.Generator, pixel_frames: int | None = None, kept_mean: float = 0.0,
) -> Tensor:
    """Video guidance (paper Sec. 3.2): (1/2 ||z - z_hat||^2 + pixel_weight ||V - decode(z_hat)||^2) / b.

    z_hat is the guided one-step estimate, held fixed. V are the videos at the prior's size; RGB is in [0, 1].
    Every clip draws its own timestep. pixel_frames: at most so many frames, drawn anew for all clips, are decoded, and
    the sum over them stands for that over all; all are if None. kept_mean: the share, 0 to 1,
    by which the means over time of z_hat and its decoding move to those of z and V: at 1 only changes over time count.
    """
    videos = prior.resize(videos)
    latents = prior.encode(videos)
    timestep = sample_timesteps(len(latents), prior, timesteps, generator)
    alpha_bar = prior.alpha_bar[timestep]
    noisy = add_noise(latents.detach(), _noise_like(latents, generator), alpha_bar)
    predicted = classifier_free_guidance(*prior.predict_noise(noisy, timestep, condition), scale)
    target = remove_noise(noisy, predicted, alpha_bar)
    loss = _less_mean(latents - target, kept_mean).square().sum() / 2
    if pixel_weight:
        seen = _some(videos.shape[1], pixel_frames, generator).to(videos.device, non_blocking=True)
        videos, target = (clips.index_select(1, seen) for clips in (videos, target))
        share = len(seen) / latents.shape[1]
        loss = loss + pixel_weight / share * _less_mean(videos - prior.decode(target), kept_mean).square().sum()
    return loss / len(latents)


def sample_timesteps(n: int, prior: Prior, interval: tuple[float, float], generator: torch.Generator) -> Tensor:
    """[n] whole timesteps, uniform over the `interval` of fractions, ends included, on the prior's device.

    Raises ValueError unless 0 <= low <= high <= 1.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"timesteps {interval}: expected fractions 0 <= low <= high <= 1")
    last = len(prior.alpha_bar) - 1
    first, stop = (min(round(end * len(prior.alpha_bar)), last) for end in interval)
    drawn = torch.randint(first, stop + 1, (n,), generator=generator, device=generator.device)
    return drawn.to(prior.alpha_bar.device, non_blocking=True)


def _less_mean(error: Tensor, share: float) -> Tensor:
    """[b, t, ...] without the `share` of its mean over time."""
    return error - share * error.mean(dim=1, keepdim=True) if share else error


def _some(n: int, most: int | None, generator: torch.Generator) -> Tensor:
    """At most `most` of the numbers below n, drawn at random and sorted; all if None."""
    if most is None or most >= n:
        return torch.arange(n)
    return torch.randperm(n, generator=generator)[:most].sort().values


def _noise_like(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn on the generator's device, so that a CPU generator gives the same numbers whatever the prior's device."""
    noise = torch.randn(latents.shape, generator=generator, device=generator.device, dtype=latents.dtype)
    return noise.to(latents.device, non_blocking=True)


def _like(per_item: Tensor, batch: Tensor) -> Tensor:
    """[b] -> [b, 1, ...], to multiply `batch` with."""
    return per_item.reshape(-1, *[1] * (batch.ndim - 1)).to(batch.dtype)


def _scene_std(latents: Tensor, views: int) -> Tensor:
    """Standard deviation over all numbers of a scene, given back once per view, [b]."""
    return latents.reshape(len(latents) // views, -1).std(dim=1).clamp_min(1e-8).repeat_interleave(views)
