"""Ray march on NVIDIA GPUs: Triton kernels, float32. A ray is a program that looks at a block of its samples at a time;
one pass counts each ray's samples, a second writes them."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .reference import Samples

BLOCK = 64  # samples


def march(
    origins: Tensor, directions: Tensor, occupied: Tensor, radius: float, step: float, jitter: Tensor
) -> Samples:
    """As `reference.march`, to the rounding of a distance."""
    rays, resolution = len(origins), len(occupied)
    inputs = [value.contiguous() for value in (origins, directions, jitter, occupied)]
    scalars = (resolution, radius, step, resolution / (2 * radius), math.ceil(2 * math.sqrt(3) * radius / step))
    counts = torch.zeros(rays, dtype=torch.long, device=origins.device)
    if rays:
        _march[(rays,)](*inputs, *scalars, counts, None, None, None, WRITE=False, BLOCK=BLOCK, num_warps=1)
    last = counts.cumsum(0)
    samples = int(last[-1]) if rays else 0
    ray, start = counts.new_empty(samples), origins.new_empty(samples)
    if samples:
        _march[(rays,)](*inputs, *scalars, None, last - counts, ray, start, WRITE=True, BLOCK=BLOCK, num_warps=1)
    return Samples(ray, start, start + step)


@triton.jit
def _march(
    origins, directions, jitter, occupied, resolution, radius, step, cells_per_unit, most, counts, places, rays, starts,
    WRITE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    ray = tl.program_id(0).to(tl.int64)
    ox, oy, oz = tl.load(origins + ray * 3), tl.load(origins + ray * 3 + 1), tl.load(origins + ray * 3 + 2)
    dx, dy, dz = tl.load(directions + ray * 3), tl.load(directions + ray * 3 + 1), tl.load(directions + ray * 3 + 2)
    near, far = _slab(ox, dx, radius, 0.0, float("inf"))
    near, far = _slab(oy, dy, radius, near, far)
    near, far = _slab(oz, dz, radius, near, far)
    shift = tl.load(jitter + ray)
    found = tl.zeros([], tl.int64)
    if WRITE:
        found += tl.load(places + ray)
    needed = tl.minimum(tl.ceil((far - near) / step), most).to(tl.int32)  # none where the ray misses the cube
    for first in range(0, needed, BLOCK):
        number = first + tl.arange(0, BLOCK)
        start = near + (number.to(tl.float32) + shift) * step
        middle = start + step / 2
        cell = _cell(ox + middle * dx, radius, cells_per_unit, resolution)
        cell = cell * resolution + _cell(oy + middle * dy, radius, cells_per_unit, resolution)
        cell = cell * resolution + _cell(oz + middle * dz, radius, cells_per_unit, resolution)
        inside = (middle < far) & (number < most)
        full = (tl.load(occupied + cell, mask=inside, other=0) != 0).to(tl.int32)
        if WRITE:
            place = found + tl.cumsum(full, 0) - full
            tl.store(rays + place, ray, mask=full != 0)
            tl.store(starts + place, start, mask=full != 0)
        found += tl.sum(full, 0)
    if not WRITE:
        tl.store(counts + ray, found)


@triton.jit
def _slab(origin, direction, radius, near, far):
    """The part of a ray from `near` to `far` that lies between two faces of the cube."""
    safe = tl.where(tl.abs(direction) < 1e-12, 1e-12, direction)  # a ray along a face has no 0 / 0
    low, high = (-radius - origin) / safe, (radius - origin) / safe
    return tl.maximum(near, tl.minimum(low, high)), tl.minimum(far, tl.maximum(low, high))


@triton.jit
def _cell(position, radius, cells_per_unit, resolution):
    cell = ((position + radius) * cells_per_unit).to(tl.int32)
    return tl.minimum(tl.maximum(cell, 0), resolution - 1)
