"""Samples of equal length along rays, where space is occupied."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..paths import path_of
from . import cpu, reference
from .reference import Samples

__all__ = ["Samples", "march"]


def march(
    origins: Tensor, directions: Tensor, occupied: Tensor, *, radius: float, samples_per_ray: int, jitter: Tensor | None
) -> Samples:
    """The samples of each ray whose midpoint lies in an occupied cell of the cube [-radius, radius]^3.

    origins, directions: [n, 3], directions of unit length. occupied: bool [r, r, r], indexed x, y, z. All samples are
    `2 * radius * sqrt(3) / samples_per_ray` long, so that `samples_per_ray` of them span the cube's diagonal; the first
    begins where the ray enters the cube (or at its origin, inside), shifted by jitter * step. jitter: [n] in [0, 1), or
    None for no shift. Without gradients. Returns m samples in all, m = 0 included.
    """
    if samples_per_ray < 1 or radius <= 0:
        raise ValueError(f"samples_per_ray ({samples_per_ray}) and radius ({radius}) must be positive")
    step = 2 * radius * math.sqrt(3) / samples_per_ray
    jitter = origins.new_zeros(len(origins)) if jitter is None else jitter
    arguments = (origins, directions, occupied, radius, step, jitter)
    with torch.no_grad():
        match path_of(origins, directions, jitter):
            case "cpu":
                return cpu.march(*arguments)
            case "gpu":
                from . import gpu

                return gpu.march(*arguments)
        return reference.march(*arguments)
