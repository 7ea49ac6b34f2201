"""Ray march on CPUs: Numba kernels, float32. One pass counts each ray's samples, a second writes them."""

from __future__ import annotations

import math

import numba
import numpy as np
import torch
from torch import Tensor

from ..threads import compiled, spread
from .reference import Samples

RAYS_A_RANGE = 1024


def march(
    origins: Tensor, directions: Tensor, occupied: Tensor, radius: float, step: float, jitter: Tensor
) -> Samples:
    """As `reference.march`, to the bit."""
    rays = len(origins)
    most = math.ceil(2 * math.sqrt(3) * radius / step)
    inputs = [value.detach().contiguous().numpy() for value in (origins, directions, jitter, occupied)]
    scalars = (np.float32(radius), np.float32(step), np.float32(len(occupied) / (2 * radius)), most)
    counts = torch.empty(rays, dtype=torch.long)
    spread(_count, rays, RAYS_A_RANGE, *inputs, *scalars, counts.numpy())
    last = counts.cumsum(0)
    samples = int(last[-1]) if rays else 0
    ray, start = torch.empty(samples, dtype=torch.long), torch.empty(samples)
    spread(_write, rays, RAYS_A_RANGE, *inputs, *scalars, (last - counts).numpy(), ray.numpy(), start.numpy())
    return Samples(ray, start, start + step)


@numba.njit(inline="always")
def _interval(origin, direction, radius):
    """Where a ray enters and leaves the cube."""
    near, far = np.float32(0), np.float32(np.inf)
    for axis in range(3):
        d = direction[axis] if abs(direction[axis]) >= np.float32(1e-12) else np.float32(1e-12)
        low, high = (-radius - origin[axis]) / d, (radius - origin[axis]) / d
        near, far = max(near, min(low, high)), min(far, max(low, high))
    return near, far


@numba.njit(inline="always")
def _inside(origin, direction, middle, occupied, radius, cells_per_unit):
    last = len(occupied) - 1
    x = min(max(np.int64((origin[0] + middle * direction[0] + radius) * cells_per_unit), 0), last)
    y = min(max(np.int64((origin[1] + middle * direction[1] + radius) * cells_per_unit), 0), last)
    z = min(max(np.int64((origin[2] + middle * direction[2] + radius) * cells_per_unit), 0), last)
    return occupied[x, y, z]


@compiled(fastmath=False)
def _count(first, last, origins, directions, jitter, occupied, radius, step, cells_per_unit, most, counts):
    for n in range(first, last):
        near, far = _interval(origins[n], directions[n], radius)
        found = 0
        for k in range(most):
            middle = near + (np.float32(k) + jitter[n]) * step + step / np.float32(2)
            if not middle < far:
                break
            found += _inside(origins[n], directions[n], middle, occupied, radius, cells_per_unit)
        counts[n] = found


@compiled(fastmath=False)
def _write(first, last, origins, directions, jitter, occupied, radius, step, cells_per_unit, most, places, ray, start):
    for n in range(first, last):
        near, far = _interval(origins[n], directions[n], radius)
        place = places[n]
        for k in range(most):
            begin = near + (np.float32(k) + jitter[n]) * step
            middle = begin + step / np.float32(2)
            if not middle < far:
                break
            if _inside(origins[n], directions[n], middle, occupied, radius, cells_per_unit):
                ray[place], start[place] = n, begin
                place += 1
