"""Group normalisation on NVIDIA GPUs: Triton kernels, x [b, c, n] of any strides, statistics in fp32.

Each direction reads its inputs twice: once for sums over rows of places, by channel, which a small kernel joins to
those of groups; once for the result. Nothing is kept but x and two numbers a group.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

PLACES, CHANNELS = 32, 64
"""Of a tile."""
SPLITS = 256
"""Programs, at most, that share the places of an item."""


class Statistics(NamedTuple):
    """Of x + shift: mean and 1 / standard deviation of each group, [b, groups]."""

    mean: Tensor
    rstd: Tensor


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None, silu: bool
) -> Tensor:
    """As `groupnorm.group_norm`."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return forward(x, groups, weight, bias, eps, shift, silu)[0]
    out: Tensor = _GroupNorm.apply(x, groups, weight, bias, eps, shift, silu)
    return out


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None, silu: bool
    ) -> Tensor:
        x = dense(x)
        out, statistics = forward(x, groups, weight, bias, eps, shift, silu)
        ctx.save_for_backward(x, *statistics, weight, bias, shift)
        ctx.silu = silu
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias, shift = ctx.saved_tensors
        out = gradient(grad, x, Statistics(mean, rstd), weight, bias, shift, ctx.silu)
        return out, *(None for _ in range(6))


def forward(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, shift: Tensor | None = None, silu: bool = True
) -> tuple[Tensor, Statistics]:
    """The result and what `gradient` needs of it."""
    x = dense(x)
    out = torch.empty_like(x)
    shape = _Shape.of(x, groups)
    statistics = Statistics(*(torch.empty(len(x), groups, device=x.device) for _ in range(2)))
    if x.numel():
        parts = shape.sums(x)
        shifts = _shifts(shift)
        _sums[shape.grid](x, *shifts, *parts, *shape.sizes, *shape.strides, SHIFT=shift is not None, **shape.tile)
        _statistics[(len(x), groups)](
            *parts, *statistics, eps, *shape.sizes, shape.splits, groups, **shape.group_tile,
        )  # fmt: skip
        _apply[shape.grid](
            x, *shifts, weight, bias, *statistics, out, *shape.sizes, groups, *shape.strides, SHIFT=shift is not None,
            SILU=silu, **shape.tile,
        )  # fmt: skip
    return out, statistics


def gradient(
    grad: Tensor, x: Tensor, statistics: Statistics, weight: Tensor, bias: Tensor, shift: Tensor | None = None,
    silu: bool = True, add: Tensor | None = None,
) -> Tensor:
    """The gradient to x, a `dense` tensor; grad: that to the result. To it comes `add`, which reaches x another way."""
    groups = statistics.mean.shape[1]
    out, shape = torch.empty_like(x), _Shape.of(x, groups)
    if not x.numel():
        return out
    grad, add = _as(x, grad), None if add is None else _as(x, add)
    parts = shape.sums(x)
    what = x, grad, *_shifts(shift), weight, bias, *statistics
    flags = {"SHIFT": shift is not None, "SILU": silu, **shape.tile}
    _gradient_sums[shape.grid](*what, *parts, *shape.sizes, groups, *shape.strides, **flags)
    means = [torch.empty_like(statistics.mean) for _ in range(2)]
    _means[(len(x), groups)](*parts, *means, *shape.sizes, shape.splits, groups, **shape.group_tile)
    _gradient[shape.grid](
        *what, *means, add, out, *shape.sizes, groups, *shape.strides, ADD=add is not None, **flags,
    )  # fmt: skip
    return out


def dense(x: Tensor) -> Tensor:
    """With places that one stride reaches: contiguous or channels_last, as it is where it can be."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def _as(x: Tensor, other: Tensor) -> Tensor:
    """`other`, laid out as x is."""
    return other if other.stride() == x.stride() else torch.empty_like(x).copy_(other)


def _shifts(shift: Tensor | None) -> tuple[Tensor | None, int]:
    """And the stride from an item to the next."""
    if shift is None:
        return None, 0
    shift = shift.contiguous()
    return shift, shift.shape[-1] if shift.ndim == 2 else 0


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
        width = triton.next_power_of_2(channels // groups)
        self.group_tile = {"SPLITS": max(1, min(SPLITS, 2048 // width)), "WIDTH": width, "num_warps": 4}

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


@triton.jit
def _sums(
    x, shift, shift_stride, sums, squares, channels, places, rows, stride_b, stride_c, stride_n,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr, SHIFT: tl.constexpr,
):  # fmt: skip
    """Of a program's places: sum, and sum of squares around the mean, by channel.

    All is taken relative to the first place, so that a large mean does not swallow the variance.
    """
    splits = tl.cdiv(places, rows)
    item, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    own, offset = item.to(tl.int64) * stride_b, channel[None, :] * stride_c
    first = split * rows
    last = tl.minimum(first + rows, places)
    origin = tl.load(x + own + channel * stride_c + first * stride_n, mask=known, other=0.0).to(tl.float32)
    totals = tl.zeros([PLACES, CHANNELS], tl.float32)  # added up at the end: that goes through shared memory
    squares_of = tl.zeros([PLACES, CHANNELS], tl.float32)
    for start in range(first, last, PLACES):
        at = start + tl.arange(0, PLACES)
        inside = (at < last)[:, None] & known[None, :]
        value = tl.load(x + own + (offset + at[:, None] * stride_n), mask=inside, other=0.0).to(tl.float32)
        value = tl.where(inside, value - origin[None, :], 0.0)
        totals += value
        squares_of += value * value
    total, square = tl.sum(totals, 0), tl.sum(squares_of, 0)
    count = (last - first).to(tl.float32)
    if SHIFT:
        origin += tl.load(shift + item * shift_stride + channel, mask=known, other=0.0)
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
    x, shift, shift_stride, weight, bias, mean, rstd, out, channels, places, rows, groups, stride_b, stride_c, stride_n,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    splits = tl.cdiv(places, rows)
    item, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    middle, inverse, scale, base = _of_channels(
        item, channel, known, shift, shift_stride, weight, bias, mean, rstd, channels, groups, SHIFT
    )
    own, offset = item.to(tl.int64) * stride_b, channel[None, :] * stride_c
    first = split * rows
    last = tl.minimum(first + rows, places)
    for start in range(first, last, PLACES):
        at = start + tl.arange(0, PLACES)
        inside = (at < last)[:, None] & known[None, :]
        place = offset + at[:, None] * stride_n
        value = tl.load(x + own + place, mask=inside, other=0.0).to(tl.float32)
        z = (value - middle) * inverse * scale + base
        if SILU:
            z = z / (1.0 + tl.exp(-z))
        tl.store(out + own + place, z, mask=inside)


@triton.jit
def _gradient_sums(
    x, grad, shift, shift_stride, weight, bias, mean, rstd, sums, products, channels, places, rows, groups,
    stride_b, stride_c, stride_n,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """By channel: sums of the gradient to the normalised x, and of its product with that."""
    splits = tl.cdiv(places, rows)
    item, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    middle, inverse, scale, base = _of_channels(
        item, channel, known, shift, shift_stride, weight, bias, mean, rstd, channels, groups, SHIFT
    )
    own, offset = item.to(tl.int64) * stride_b, channel[None, :] * stride_c
    first = split * rows
    last = tl.minimum(first + rows, places)
    totals = tl.zeros([PLACES, CHANNELS], tl.float32)
    of_products = tl.zeros([PLACES, CHANNELS], tl.float32)
    for start in range(first, last, PLACES):
        at = start + tl.arange(0, PLACES)
        inside = (at < last)[:, None] & known[None, :]
        place = offset + at[:, None] * stride_n
        normal = (tl.load(x + own + place, mask=inside, other=0.0).to(tl.float32) - middle) * inverse
        to_result = tl.load(grad + own + place, mask=inside, other=0.0).to(tl.float32)
        to_normal = _to_normal(normal, scale, base, to_result, SILU)
        totals += to_normal
        of_products += to_normal * normal
    place_of_sum = tl.program_id(0).to(tl.int64) * channels + channel
    tl.store(sums + place_of_sum, tl.sum(totals, 0), mask=known)
    tl.store(products + place_of_sum, tl.sum(of_products, 0), mask=known)


@triton.jit
def _gradient(
    x, grad, shift, shift_stride, weight, bias, mean, rstd, mean_gradient, mean_product, add, out,
    channels, places, rows, groups, stride_b, stride_c, stride_n,
    ADD: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr, SHIFT: tl.constexpr, SILU: tl.constexpr,
):  # fmt: skip
    """dx = (g - mean of g - n * mean of g * n) / deviation; n: the normalised x, g: its gradient."""
    splits = tl.cdiv(places, rows)
    item, split = tl.program_id(0) // splits, tl.program_id(0) % splits
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    middle, inverse, scale, base = _of_channels(
        item, channel, known, shift, shift_stride, weight, bias, mean, rstd, channels, groups, SHIFT
    )
    of_group = item * groups + channel // (channels // groups)
    gradient = tl.load(mean_gradient + of_group, mask=known, other=0.0)[None, :]
    product = tl.load(mean_product + of_group, mask=known, other=0.0)[None, :]
    own, offset = item.to(tl.int64) * stride_b, channel[None, :] * stride_c
    first = split * rows
    last = tl.minimum(first + rows, places)
    for start in range(first, last, PLACES):
        at = start + tl.arange(0, PLACES)
        inside = (at < last)[:, None] & known[None, :]
        place = offset + at[:, None] * stride_n
        normal = (tl.load(x + own + place, mask=inside, other=0.0).to(tl.float32) - middle) * inverse
        to_result = tl.load(grad + own + place, mask=inside, other=0.0).to(tl.float32)
        to_normal = _to_normal(normal, scale, base, to_result, SILU)
        to_x = (to_normal - gradient - normal * product) * inverse
        if ADD:
            to_x += tl.load(add + own + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + own + place, to_x, mask=inside)


@triton.jit
def _of_channels(
    item, channel, known, shift, shift_stride, weight, bias, mean, rstd, channels, groups, SHIFT: tl.constexpr
):
    """Rows [1, CHANNELS]: mean less shift, 1 / deviation, weight, bias."""
    of_group = item * groups + channel // (channels // groups)
    middle = tl.load(mean + of_group, mask=known, other=0.0)
    if SHIFT:
        middle -= tl.load(shift + item * shift_stride + channel, mask=known, other=0.0)
    inverse = tl.load(rstd + of_group, mask=known, other=0.0)
    scale = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
    base = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
    return middle[None, :], inverse[None, :], scale[None, :], base[None, :]


@triton.jit
def _to_normal(normal, scale, base, grad, SILU: tl.constexpr):
    """The gradient to `normal` of z = scale * normal + base, or of silu(z)."""
    if SILU:
        z = normal * scale + base
        gate = 1.0 / (1.0 + tl.exp(-z))
        grad = grad * gate * (1.0 + z * (1.0 - gate))
    return grad * scale
