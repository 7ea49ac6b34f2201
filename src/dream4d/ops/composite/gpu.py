"""Compositing on NVIDIA GPUs: Triton kernels, float32. A ray is a program that goes through its samples a block at a
time; what it has met so far is one number."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import Composite

BLOCK = 32  # samples: one a thread of a warp


def composite(density: Tensor, start: Tensor, end: Tensor, values: Tensor, ray: Tensor, rays: int) -> Composite:
    """As `composite.composite`."""
    return Composite(*_Composite.apply(density, values, start, end, ray, rays))


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, density: Tensor, values: Tensor, start: Tensor, end: Tensor, ray: Tensor, rays: int
    ) -> tuple[Tensor, ...]:
        density, values, start, end = (value.contiguous() for value in (density, values, start, end))
        firsts = torch.searchsorted(ray, torch.arange(rays + 1, device=ray.device))
        channels = values.shape[1]
        totals = values.new_empty(rays, channels), density.new_empty(rays), density.new_empty(rays)
        weights, behind = torch.empty_like(density), torch.empty_like(density)
        if rays:
            _forward[(rays,)](
                density, values, start, end, firsts, *totals, weights, behind, channels,
                CHANNELS=triton.next_power_of_2(max(channels, 1)), BLOCK=BLOCK, num_warps=1,
            )  # fmt: skip
        ctx.save_for_backward(values, start, end, firsts, weights, behind)
        return *totals, weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        values, start, end, firsts, weights, behind = ctx.saved_tensors
        grad_density, grad_values = torch.empty_like(weights), torch.empty_like(values)
        channels = values.shape[1]
        if len(firsts) > 1:
            _backward[(len(firsts) - 1,)](
                values, start, end, firsts, weights, behind, *(grad.contiguous() for grad in grads), grad_density,
                grad_values, channels, CHANNELS=triton.next_power_of_2(max(channels, 1)), BLOCK=BLOCK, num_warps=1,
            )  # fmt: skip
        return grad_density, grad_values, None, None, None, None


@triton.jit
def _forward(
    density, values, start, end, firsts, totals, opacity, depth, weights, behind, channels,
    CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`behind` is the transmittance after each sample."""
    ray = tl.program_id(0).to(tl.int64)
    first, last = tl.load(firsts + ray), tl.load(firsts + ray + 1)
    channel = tl.arange(0, CHANNELS)
    known = channel < channels
    total = tl.zeros([CHANNELS], tl.float32)
    sum_weight, sum_depth, thickness = 0.0, 0.0, 0.0
    for block in range(first, last, BLOCK):
        at = block + tl.arange(0, BLOCK)
        inside = at < last
        near = tl.load(start + at, mask=inside, other=0.0)
        far = tl.load(end + at, mask=inside, other=0.0)
        own = tl.load(density + at, mask=inside, other=0.0) * (far - near)
        # The sum over the samples before each: taken from a sum with its own, something opaque would swallow them.
        previous = inside & (at > block)
        length = tl.load(end + at - 1, mask=previous, other=0.0) - tl.load(start + at - 1, mask=previous, other=0.0)
        before = thickness + tl.cumsum(tl.load(density + at - 1, mask=previous, other=0.0) * length, 0)
        # 1 - exp(-x); for a small x its series, which does not cancel
        alpha = tl.where(own < 0.01, own * (1.0 - own * (0.5 - own * (1.0 / 6.0 - own / 24.0))), 1.0 - tl.exp(-own))
        weight = alpha * tl.exp(-before)
        tl.store(weights + at, weight, mask=inside)
        tl.store(behind + at, tl.exp(-(before + own)), mask=inside)
        sum_weight += tl.sum(weight, 0)
        sum_depth += tl.sum(weight * ((near + far) * 0.5), 0)
        place = at[:, None] * channels + channel[None, :]
        value = tl.load(values + place, mask=inside[:, None] & known[None, :], other=0.0)
        total += tl.sum(weight[:, None] * value, 0)
        thickness += tl.sum(own, 0)
    tl.store(totals + ray * channels + channel, total, mask=known)
    tl.store(opacity + ray, sum_weight)
    tl.store(depth + ray, sum_depth)


@triton.jit
def _backward(
    values, start, end, firsts, weights, behind, grad_totals, grad_opacity, grad_depth, grad_weights,
    grad_density, grad_values, channels, CHANNELS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """d density_i = length_i * (behind_i * g_i - sum of weight_j * g_j over j > i); g: gradients to weights."""
    ray = tl.program_id(0).to(tl.int64)
    first, last = tl.load(firsts + ray), tl.load(firsts + ray + 1)
    channel = tl.arange(0, CHANNELS)
    known = channel < channels
    to_total = tl.load(grad_totals + ray * channels + channel, mask=known, other=0.0)
    to_opacity, to_depth = tl.load(grad_opacity + ray), tl.load(grad_depth + ray)
    later = 0.0
    for number in range((last - first + BLOCK - 1) // BLOCK):
        at = last - (number + 1) * BLOCK + tl.arange(0, BLOCK)  # from the back
        inside = at >= first
        near = tl.load(start + at, mask=inside, other=0.0)
        far = tl.load(end + at, mask=inside, other=0.0)
        weight = tl.load(weights + at, mask=inside, other=0.0)
        place = at[:, None] * channels + channel[None, :]
        here = inside[:, None] & known[None, :]
        value = tl.load(values + place, mask=here, other=0.0)
        tl.store(grad_values + place, weight[:, None] * to_total[None, :], mask=here)
        g = tl.load(grad_weights + at, mask=inside, other=0.0) + to_opacity + to_depth * ((near + far) * 0.5)
        g += tl.sum(value * to_total[None, :], 1)
        own = weight * g
        behind_own = later + tl.cumsum(own, 0, reverse=True) - own
        through = tl.load(behind + at, mask=inside, other=0.0)
        tl.store(grad_density + at, (far - near) * (through * g - behind_own), mask=inside)
        later += tl.sum(own, 0)
