"""Losses on what is rendered. Those on what a diffusion model says are in `distill`."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def total_variation(displacement: Tensor) -> Tensor:
    """Total variation of rendered displacement videos, [b, t, h, w, 3] -> scalar (paper Sec. 3.2, L_TV).

    sum over x, y, t of ||D[x-1,y,t] - D[x,y,t]||^2 + ||D[x,y-1,t] - D[x,y,t]||^2 + ||D[x,y,t-1] - D[x,y,t]||^2,
    where both pixels exist; mean over the batch.
    """
    t, y, x = (displacement.diff(dim=axis).square().sum() for axis in (1, 2, 3))
    return (t + y + x) / len(displacement)


def plane_variation(planes: Iterable[Tensor]) -> Tensor:
    """Total variation of feature planes, each [.., rows, columns] -> scalar: the sum over planes and both axes of the
    mean squared difference of neighbours. What keeps a HexPlane smooth, in place of `total_variation`."""
    return torch.stack([plane.diff(dim=axis).square().mean() for plane in planes for axis in (-2, -1)]).sum()


def opacity_entropy(opacity: Tensor) -> Tensor:
    """Mean binary entropy of opacities [..] in nats, a scalar: least where each pixel is empty or opaque.

    Drives haze out of empty space and makes the object solid (not in the text-to-4D part of the paper; its image-to-4D
    program has it, Sec. 3.3).
    """
    opacity = opacity.clamp(1e-3, 1 - 1e-3)
    return -(opacity * opacity.log() + (1 - opacity) * (1 - opacity).log()).mean()
