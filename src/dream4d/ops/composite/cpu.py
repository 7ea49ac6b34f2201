"""Compositing on CPUs: Numba kernels, float32. A ray at a time, so that nothing is accumulated over rays.

No fast math: a ray's colour must not depend on how many other channels are composited with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..threads import compiled, spread
from .reference import Composite

RAYS_A_RANGE = 1024


def composite(density: Tensor, start: Tensor, end: Tensor, values: Tensor, ray: Tensor, rays: int) -> Composite:
    """As `composite.composite`."""
    return Composite(*_Composite.apply(density, values, start, end, ray, rays))


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, density: Tensor, values: Tensor, start: Tensor, end: Tensor, ray: Tensor, rays: int
    ) -> tuple[Tensor, ...]:
        density, values = density.contiguous(), values.contiguous()
        firsts = torch.searchsorted(ray, torch.arange(rays + 1, device=ray.device))
        totals = values.new_empty(rays, values.shape[1]), density.new_empty(rays), density.new_empty(rays)
        weights, behind = torch.empty_like(density), torch.empty_like(density)
        arrays = (density, values, start, end, firsts, *totals, weights, behind)
        spread(_forward, rays, RAYS_A_RANGE, *(array.detach().numpy() for array in arrays))
        ctx.save_for_backward(values, start, end, firsts, weights, behind)
        return *totals, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, start, end, firsts, weights, behind = ctx.saved_tensors
        grad_density, grad_values = torch.empty_like(weights), torch.empty_like(values)
        inputs = (values, start, end, firsts, weights, behind, *(grad.contiguous() for grad in grads))
        arrays = (array.detach().numpy() for array in (*inputs, grad_density, grad_values))
        spread(_backward, len(firsts) - 1, RAYS_A_RANGE, *arrays)
        return grad_density, grad_values, None, None, None, None


@compiled(fastmath=False)
def _forward(first, last, density, values, start, end, firsts, totals, opacity, depth, weights, behind):
    """`behind` is the transmittance after each sample."""
    for n in range(first, last):
        totals[n], opacity[n], depth[n] = 0, 0, 0
        thickness, transmittance = 0.0, np.float32(1)
        for i in range(firsts[n], firsts[n + 1]):
            own = density[i] * (end[i] - start[i])
            thickness += own
            weight = np.float32(-np.expm1(-own) * transmittance)
            transmittance = np.float32(np.exp(-thickness))
            weights[i], behind[i] = weight, transmittance
            opacity[n] += weight
            depth[n] += weight * (start[i] + end[i]) / 2
            for c in range(values.shape[1]):
                totals[n, c] += weight * values[i, c]


@compiled(fastmath=False)
def _backward(
    first, last, values, start, end, firsts, weights, behind,
    grad_totals, grad_opacity, grad_depth, grad_weights, grad_density, grad_values,
):
    """d density_i = length_i * (behind_i * g_i - sum of weight_j * g_j over j > i); g: gradients to weights."""
    for n in range(first, last):
        later = 0.0
        for i in range(firsts[n + 1] - 1, firsts[n] - 1, -1):
            g = grad_weights[i] + grad_opacity[n] + grad_depth[n] * (start[i] + end[i]) / 2
            for c in range(values.shape[1]):
                g += grad_totals[n, c] * values[i, c]
                grad_values[i, c] = grad_totals[n, c] * weights[i]
            grad_density[i] = (end[i] - start[i]) * (behind[i] * g - later)
            later += weights[i] * g
