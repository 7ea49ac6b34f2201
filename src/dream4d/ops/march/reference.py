"""Torch twin of the ray march: any device, any dtype. It looks at every sample of every ray."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """ray: [m] int64, sorted; start, end: [m], distances along the ray, which grow within a ray."""

    ray: Tensor
    start: Tensor
    end: Tensor


def march(
    origins: Tensor, directions: Tensor, occupied: Tensor, radius: float, step: float, jitter: Tensor
) -> Samples:
    """As `march.march`, with the length of a sample for the number of them."""
    resolution = len(occupied)
    safe = torch.where(directions.abs() < 1e-12, 1e-12, directions)  # a ray along a face has no 0 / 0
    faces = torch.stack([(-radius - origins) / safe, (radius - origins) / safe])
    near = faces.amin(dim=0).amax(dim=-1).clamp(min=0)
    far = faces.amax(dim=0).amin(dim=-1)

    most = math.ceil(2 * math.sqrt(3) * radius / step)
    count = torch.arange(most, dtype=origins.dtype, device=origins.device)
    start = near[:, None] + (count + jitter[:, None]) * step  # [n, most]
    middle = start + step / 2
    cell = torch.zeros_like(start, dtype=torch.long)
    for axis in range(3):
        position = origins[:, axis, None] + middle * directions[:, axis, None]
        index = ((position + radius) * (resolution / (2 * radius))).long().clamp(0, resolution - 1)
        cell = cell * resolution + index
    ray, sample = torch.nonzero((middle < far[:, None]) & occupied.reshape(-1)[cell], as_tuple=True)
    start = start[ray, sample]
    return Samples(ray, start, start + step)
