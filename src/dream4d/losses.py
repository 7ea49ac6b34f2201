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


def colour_error(rgb: Tensor, picture: Tensor) -> Tensor:
    """Mean of (rgb - picture)^2 over pixels and channels: of the reference view and the picture, both [.., 3] before
    one colour (paper Sec. 3.3, "we supervise the reference view with the given image")."""
    return (rgb - picture).square().mean()


def mask_error(opacity: Tensor, mask: Tensor) -> Tensor:
    """Mean of (opacity - mask)^2 over pixels: of the reference view and the picture's foreground, both [..] in [0, 1]
    (paper Sec. 3.3, "and its estimated foreground mask")."""
    return (opacity - mask).square().mean()


def sparsity(opacity: Tensor) -> Tensor:
    """Mean of sqrt(opacity^2 + .01), opacities [..]: keeps space empty that no view needs filled. The offset makes it
    smooth at 0 (the paper's image-to-4D program, Sec. 3.3)."""
    return (opacity.square() + 0.01).sqrt().mean()
