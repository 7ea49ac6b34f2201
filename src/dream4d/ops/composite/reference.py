"""Torch twin of the compositing: any device, any dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Composite:
    """values: [rays, c], premultiplied; opacity: [rays]; depth: [rays], the sum of weight * midpoint; weights: [m]."""

    values: Tensor
    opacity: Tensor
    depth: Tensor
    weights: Tensor


def composite(density: Tensor, start: Tensor, end: Tensor, values: Tensor, ray: Tensor, rays: int) -> Composite:
    """As `composite.composite`, differentiated by autograd."""
    thickness = density * (end - start)
    until = thickness.double().cumsum(0)  # over all rays, so float32 would not hold a ray's own share
    before = until - thickness
    counts = torch.bincount(ray, minlength=rays)
    first = (counts.cumsum(0) - counts)[ray]
    transmittance = torch.exp(before[first] - before).to(density.dtype)
    weights = -torch.expm1(-thickness) * transmittance

    def total(samples: Tensor) -> Tensor:
        return samples.new_zeros(rays, *samples.shape[1:]).index_add(0, ray, samples)

    return Composite(total(weights[:, None] * values), total(weights), total(weights * (start + end) / 2), weights)
