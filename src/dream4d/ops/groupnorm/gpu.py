"""Group normalisation and SiLU on NVIDIA GPUs: Triton kernels, x [b, c, n] of any strides, statistics in fp32.

Each direction reads its inputs twice: once for sums over rows of places, by channel, which a small kernel joins to
those of groups; once for the result. Nothing is kept but x and two numbers a group.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PLACES, CHANNELS = 64, 64
"""Of a tile."""
SPLITS = 256
"""Programs, at most, that share the places of an item."""


def group_norm_silu(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """As `groupnorm.group_norm_silu`."""
    out: Tensor = _GroupNormSilu.apply(x, groups, weight, bias, eps)
    return out


class _GroupNormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        x = _dense(x)
        out = torch.empty_like(x)
        shape = _Shape.of(x, groups)
        mean, rstd = (torch.empty(len(x), groups, device=x.device) for _ in range(2))
        if x.numel():
            parts = shape.sums(x)
            _sums[shape.grid](x, *parts, *shape.sizes, *shape.strides, **shape.tile)
            _statistics[(len(x), groups)](
                *parts, mean, rstd, eps, *shape.sizes, shape.splits, groups, **shape.group_tile,
            )  # fmt: skip
            _apply[shape.grid](
                x, weight, bias, mean, rstd, out, *shape.sizes, groups, *shape.strides, **shape.tile,
            )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups = groups
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        out, shape = torch.empty_like(x), _Shape.of(x, ctx.groups)
        if x.numel():
            grad = torch.empty_like(x).copy_(grad) if grad.stride() != x.stride() else grad
            parts = shape.sums(x)
            statistics = weight, bias, mean, rstd
            _gradient_sums[shape.grid](
                x, grad, *statistics, *parts, *shape.sizes, ctx.groups, *shape.strides, **shape.tile,
            )  # fmt: skip
            means = [torch.empty_like(mean) for _ in range(2)]
            _means[(len(x), ctx.groups)](*parts, *means, *shape.sizes, shape.splits, ctx.groups, **shape.group_tile)
            _gradient[shape.grid](
                x, grad, *statistics, *means, out, *shape.sizes, ctx.groups, *shape.strides, **shape.tile,
            )  # fmt: skip
        return out, None, None, None, None


class _Shape:
    """How x [b, c, ..] is gone through: programs are (item and rows of places, block of channels)."""

    def __init__(self, batch: int, channels: int, places: int, groups: int, strides: tuple[int, int, int]):
        self.batch, self.channels, self.strides = batch, channels, strides
        blocks = triton.cdiv(places, PLACES)
        rows = max(1, triton.cdiv(blocks, SPLITS)) * PLACES  # places of a program
        self.splits = triton.cdiv(places, rows)
        self.sizes = channels, places, rows
        self.grid = batch * self.splits, triton.cdiv(channels, CHANNELS)
        self.tile = {"PLACES": PLACES, "CHANNELS": CHANNELS, "num_warps": 4}
        self.group_tile = {"SPLITS": 32, "WIDTH": triton.next_power_of_2(channels // groups), "num_warps": 1}

    @classmethod
    def of(cls, x: Tensor, groups: int) -> _Shape:
        batch, channels = x.shape[:2]
        places = x.numel() // max(1, batch * channels)
        assert channels * places < 2**31, "offsets within an item are 32-bit numbers"
        steps = (places, 1) if x.is_contiguous() else (1, channels)
        return cls(batch, channels, places, groups, (channels * places, *steps))

    def sums(self, x: Tensor) -> list[Tensor]:
        """Memory for two sums of each channel by each program, [b, splits, c]."""
        return [torch.empty(self.batch, self.splits, self.channels, device=x.device) for _ in range(2)]


def _dense(x: Tensor) -> Tensor:
    """With places that one stride reaches: contiguous or channels_last, as it is where it can be."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


@triton.jit
def _sums(
    x, sums, squares, channels, places, rows, stride_b, stride_c, stride_n,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Of a program's places: sum, and sum of squares around the mean, by channel.

    All is taken relative to the mean of the first tile, so that a large mean does not swallow the variance.
    """
    splits = tl.cdiv(places, rows)
    item, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    own, offset = item.to(tl.int64) * stride_b, channel[None, :] * stride_c
    first = split * rows
    last = tl.minimum(first + rows, places)
    at = first + tl.arange(0, PLACES)
    inside = (at < last)[:, None] & known[None, :]
    value = tl.load(x + own + (offset + at[:, None] * stride_n), mask=inside, other=0.0).to(tl.float32)
    origin = tl.sum(value, 0) / tl.minimum(last - first, PLACES)
    total = tl.zeros([CHANNELS], tl.float32)
    square = tl.zeros([CHANNELS], tl.float32)
    for start in range(first, last, PLACES):
        at = start + tl.arange(0, PLACES)
        inside = (at < last)[:, None] & known[None, :]
        value = tl.load(x + own + (offset + at[:, None] * stride_n), mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value - origin[None, :], 0.0)
        total += tl.sum(value, 0)
        square += tl.sum(value * value, 0)
    count = (last - first).to(tl.float32)
    place = tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(sums + place, total + count * origin, mask=known)
    tl.store(squares + place, square - total * total / count, mask=known)


@triton.jit
def _statistics(
    sums, squares, mean, rstd, eps, channels, places, rows, splits, groups,
    SPLITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Mean and 1 / standard deviation of a group: sums of squares around means join as Chan et al. (1979) join them."""
    item, group = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    channel = tl.arange(0, WIDTH)
    total = 0.0
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        inside = (split < splits)[:, None] & (channel < width)[None, :]
        place = (item * splits + split).to(tl.int64)[:, None] * channels + group * width + channel[None, :]
        total += tl.sum(tl.load(sums + place, mask=inside, other=0.0))
    count = places * (width * 1.0)
    middle = total / count
    square = 0.0
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        inside = (split < splits)[:, None] & (channel < width)[None, :]
        place = (item * splits + split).to(tl.int64)[:, None] * channels + group * width + channel[None, :]
        own = tl.minimum(places - split * rows, rows).to(tl.float32)[:, None]
        off = tl.load(sums + place, mask=inside, other=0.0) / own - middle
        around = tl.load(squares + place, mask=inside, other=0.0)
        square += tl.sum(tl.where(inside, around + own * off * off, 0.0))
    tl.store(mean + item * groups + group, middle)
    tl.store(rstd + item * groups + group, 1.0 / tl.sqrt(square / count + eps))


@triton.jit
def _means(
    sums, products, mean, mean_product, channels, places, rows, splits, groups,
    SPLITS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Means over a group of two things that are summed by channel."""
    item, group = tl.program_id(0), tl.program_id(1)
    width = channels // groups
    channel = tl.arange(0, WIDTH)
    total, product = 0.0, 0.0
    for start in range(0, splits, SPLITS):
        split = start + tl.arange(0, SPLITS)
        inside = (split < splits)[:, None] & (channel < width)[None, :]
        place = (item * splits + split).to(tl.int64)[:, None] * channels + group * width + channel[None, :]
        total += tl.sum(tl.load(sums + place, mask=inside, other=0.0))
        product += tl.sum(tl.load(products + place, mask=inside, other=0.0))
    count = places * (width * 1.0)
    tl.store(mean + item * groups + group, total / count)
    tl.store(mean_product + item * groups + group, product / count)


@triton.jit
def _apply(
    x, weight, bias, mean, rstd, out, channels, places, rows, groups, stride_b, stride_c, stride_n,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    splits = tl.cdiv(places, rows)
    item, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    of_group = item * groups + channel // (channels // groups)
    middle = tl.load(mean + of_group, mask=known, other=0.0)[None, :]
    scale = tl.load(rstd + of_group, mask=known, other=0.0) * tl.load(weight + channel, mask=known, other=0.0)
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    own, offset = item.to(tl.int64) * stride_b, channel[None, :] * stride_c
    first = split * rows
    last = tl.minimum(first + rows, places)
    for start in range(first, last, PLACES):
        at = start + tl.arange(0, PLACES)
        inside = (at < last)[:, None] & known[None, :]
        place = offset + at[:, None] * stride_n
        value = tl.load(x + own + place, mask=inside, other=0.0).to(tl.float32)
        z = (value - middle) * scale[None, :] + shift
        tl.store(out + own + place, z / (1.0 + tl.exp(-z)), mask=inside)


@triton.jit
def _gradient_sums(
    x, grad, weight, bias, mean, rstd, sums, products, channels, places, rows, groups, stride_b, stride_c, stride_n,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """By channel: sums of the gradient to the normalised x, and of its product with that."""
    splits = tl.cdiv(places, rows)
    item, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    of_group = item * groups + channel // (channels // groups)
    middle = tl.load(mean + of_group, mask=known, other=0.0)[None, :]
    inverse = tl.load(rstd + of_group, mask=known, other=0.0)[None, :]
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    own, offset = item.to(tl.int64) * stride_b, channel[None, :] * stride_c
    first = split * rows
    last = tl.minimum(first + rows, places)
    total = tl.zeros([CHANNELS], tl.float32)
    product = tl.zeros([CHANNELS], tl.float32)
    for start in range(first, last, PLACES):
        at = start + tl.arange(0, PLACES)
        inside = (at < last)[:, None] & known[None, :]
        place = offset + at[:, None] * stride_n
        normal = (tl.load(x + own + place, mask=inside, other=0.0).to(tl.float32) - middle) * inverse
        to_normal = _to_normal(normal, scale, shift, tl.load(grad + own + place, mask=inside, other=0.0).to(tl.float32))
        total += tl.sum(to_normal, 0)
        product += tl.sum(to_normal * normal, 0)
    place_of_sum = tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(sums + place_of_sum, total, mask=known)
    tl.store(products + place_of_sum, product, mask=known)


@triton.jit
def _gradient(
    x, grad, weight, bias, mean, rstd, mean_gradient, mean_product, out, channels, places, rows, groups,
    stride_b, stride_c, stride_n, PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """dx = (g - mean of g - n * mean of g * n) / deviation; n: the normalised x, g: its gradient."""
    splits = tl.cdiv(places, rows)
    item, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    of_group = item * groups + channel // (channels // groups)
    middle = tl.load(mean + of_group, mask=known, other=0.0)[None, :]
    inverse = tl.load(rstd + of_group, mask=known, other=0.0)[None, :]
    gradient = tl.load(mean_gradient + of_group, mask=known, other=0.0)[None, :]
    product = tl.load(mean_product + of_group, mask=known, other=0.0)[None, :]
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)[None, :]
    own, offset = item.to(tl.int64) * stride_b, channel[None, :] * stride_c
    first = split * rows
    last = tl.minimum(first + rows, places)
    for start in range(first, last, PLACES):
        at = start + tl.arange(0, PLACES)
        inside = (at < last)[:, None] & known[None, :]
        place = offset + at[:, None] * stride_n
        normal = (tl.load(x + own + place, mask=inside, other=0.0).to(tl.float32) - middle) * inverse
        to_normal = _to_normal(normal, scale, shift, tl.load(grad + own + place, mask=inside, other=0.0).to(tl.float32))
        tl.store(out + own + place, (to_normal - gradient - normal * product) * inverse, mask=inside)


@triton.jit
def _to_normal(normal, scale, shift, grad):
    """The gradient of silu(z), z = scale * normal + shift, to `normal`."""
    z = normal * scale + shift
    gate = 1.0 / (1.0 + tl.exp(-z))
    return grad * gate * (1.0 + z * (1.0 - gate)) * scale
