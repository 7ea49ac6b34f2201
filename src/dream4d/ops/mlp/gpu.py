"""Small perceptrons on NVIDIA GPUs: a Triton kernel keeps a block of points in registers through all layers.

Nothing but the input is kept for the backward pass, which computes the hidden layers again. Products have fp16 factors
and fp32 sums on the way forward; on the way back bf16 factors, since gradients may be too small for fp16.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

OUT = 16  # the narrowest product of the hardware
FORWARD, BACKWARD = {"BLOCK": 128, "num_warps": 8}, {"BLOCK": 32, "num_warps": 2, "num_stages": 1}
"""Points of a program and its warps. With four warps or more Triton 3.6 would take the gradients' products from
descriptors of shared memory (wgmma), some of which point beyond it: an out-of-range address, at some widths."""


def fits(inputs: int, weights: Sequence[Tensor]) -> bool:
    """Whether the kernels take a perceptron with so many inputs and these layers."""
    widths = {len(weight) for weight in weights[:-1]}
    return len(widths) == 1 and widths <= {16, 32, 64, 128} and inputs <= 128 and len(weights[-1]) <= OUT


def mlp(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """As `mlp.mlp`; x of any strides."""
    out: Tensor = _MLP.apply(x, *weights)
    return out


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.save_for_backward(x, *weights)
        return forward(x, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        to_x, *to_weights = ctx.needs_input_grad
        grad_x, grads = backward(x, weights, grad, x.dtype if to_x else None, any(to_weights))
        return grad_x, *grads


def forward(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """[n, outputs] in fp32."""
    out = torch.empty(len(x), len(weights[-1]), device=x.device)
    if len(x):
        _forward[(triton.cdiv(len(x), FORWARD["BLOCK"]),)](
            x, *x.stride(), _flat(weights).half(), out, len(x), **_sizes(x, weights), **FORWARD
        )
    return out


def backward(
    x: Tensor, weights: Sequence[Tensor], grad: Tensor, dtype: torch.dtype | None, to_weights: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients to x, in `dtype` and the transpose of what is contiguous, and to the weights, fp32; None where unasked
    for, which for x is where `dtype` is None."""
    n, width = x.shape
    grad_x = None if dtype is None else torch.empty(width, n, dtype=dtype, device=x.device).T
    flat = _flat(weights)
    sums = torch.zeros_like(flat) if to_weights else None
    if n:
        _backward[(triton.cdiv(n, BACKWARD["BLOCK"]),)](
            x, *x.stride(), flat.half(), flat.bfloat16(), grad.contiguous(), grad_x,
            *((0, 0) if grad_x is None else grad_x.stride()), sums, n, **_sizes(x, weights), TO_X=grad_x is not None,
            TO_WEIGHTS=to_weights, **BACKWARD,
        )  # fmt: skip
    if sums is None:
        return grad_x, [None] * len(weights)
    parts = sums.split([weight.numel() for weight in weights])
    return grad_x, [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


def _flat(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([weight.reshape(-1) for weight in weights])


def _sizes(x: Tensor, weights: Sequence[Tensor]) -> dict[str, int]:
    width = x.shape[1]
    return {
        "WIDTH": width, "IN": max(OUT, triton.next_power_of_2(width)), "HIDDEN": len(weights[0]),
        "LAYERS": len(weights) - 1, "LAST": len(weights[-1]),
    }  # fmt: skip


@triton.jit
def _tile(x, stride_n, stride_k, index, n, WIDTH: tl.constexpr, IN: tl.constexpr):
    k = tl.arange(0, IN)
    place = x + index.to(tl.int64)[:, None] * stride_n + k.to(tl.int64)[None, :] * stride_k
    return tl.load(place, mask=(index < n)[:, None] & (k < WIDTH)[None, :], other=0.0)


@triton.jit
def _matrix(weight, rows: tl.constexpr, ROWS: tl.constexpr, columns: tl.constexpr, COLUMNS: tl.constexpr):
    """[ROWS, COLUMNS], zeros beyond `rows` and `columns`."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    return tl.load(weight + row[:, None] * columns + column[None, :], mask=inside, other=0.0)


@triton.jit
def _add_matrix(weight, value, rows: tl.constexpr, ROWS: tl.constexpr, columns: tl.constexpr, COLUMNS: tl.constexpr):
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.atomic_add(weight + row[:, None] * columns + column[None, :], value, mask=inside, sem="relaxed")


@triton.jit
def _hidden(x, weights, WIDTH: tl.constexpr, IN: tl.constexpr, HIDDEN: tl.constexpr, LAYERS: tl.constexpr):
    """All hidden layers of a block, fp16."""
    weight = _matrix(weights, HIDDEN, HIDDEN, WIDTH, IN)
    layers = (tl.maximum(tl.dot(x.to(tl.float16), weight.T), 0.0).to(tl.float16),)
    for layer in tl.static_range(LAYERS - 1):
        weight = _matrix(weights + (WIDTH + layer * HIDDEN) * HIDDEN, HIDDEN, HIDDEN, HIDDEN, HIDDEN)
        layers = layers + (tl.maximum(tl.dot(layers[layer], weight.T), 0.0).to(tl.float16),)
    return layers


@triton.jit(do_not_specialize=["stride_k", "n"])
def _forward(
    x, stride_n, stride_k, weights, out, n,
    WIDTH: tl.constexpr, IN: tl.constexpr, HIDDEN: tl.constexpr, LAYERS: tl.constexpr, LAST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    layers = _hidden(_tile(x, stride_n, stride_k, index, n, WIDTH, IN), weights, WIDTH, IN, HIDDEN, LAYERS)
    last = weights + (WIDTH + (LAYERS - 1) * HIDDEN) * HIDDEN
    y = tl.dot(layers[LAYERS - 1], _matrix(last, LAST, 16, HIDDEN, HIDDEN).T)
    column = tl.arange(0, 16)
    place = out + index.to(tl.int64)[:, None] * LAST + column[None, :]
    tl.store(place, y, mask=(index < n)[:, None] & (column < LAST)[None, :])


@triton.jit(do_not_specialize=["stride_k", "grad_stride_k", "n"])
def _backward(
    x, stride_n, stride_k, weights, factors, grad, grad_x, grad_stride_n, grad_stride_k, sums, n,
    WIDTH: tl.constexpr, IN: tl.constexpr, HIDDEN: tl.constexpr, LAYERS: tl.constexpr, LAST: tl.constexpr,
    TO_X: tl.constexpr, TO_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`factors` are the weights in bf16."""
    column, k = tl.arange(0, 16), tl.arange(0, IN)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = index < n
    input = _tile(x, stride_n, stride_k, index, n, WIDTH, IN)
    layers = _hidden(input, weights, WIDTH, IN, HIDDEN, LAYERS)
    last = (WIDTH + (LAYERS - 1) * HIDDEN) * HIDDEN
    place = grad + index.to(tl.int64)[:, None] * LAST + column[None, :]
    dy = tl.load(place, mask=inside[:, None] & (column < LAST)[None, :], other=0.0).to(tl.bfloat16)
    if TO_WEIGHTS:
        _add_matrix(sums + last, tl.dot(dy.T, layers[LAYERS - 1].to(tl.bfloat16)), LAST, 16, HIDDEN, HIDDEN)
    dh = tl.dot(dy, _matrix(factors + last, LAST, 16, HIDDEN, HIDDEN))
    dh = tl.where(layers[LAYERS - 1] > 0, dh, 0.0).to(tl.bfloat16)
    for back in tl.static_range(LAYERS - 1):
        start = (WIDTH + (LAYERS - 2 - back) * HIDDEN) * HIDDEN
        below = layers[LAYERS - 2 - back]
        if TO_WEIGHTS:
            _add_matrix(sums + start, tl.dot(dh.T, below.to(tl.bfloat16)), HIDDEN, HIDDEN, HIDDEN, HIDDEN)
        dh = tl.dot(dh, _matrix(factors + start, HIDDEN, HIDDEN, HIDDEN, HIDDEN))
        dh = tl.where(below > 0, dh, 0.0).to(tl.bfloat16)
    if TO_WEIGHTS:
        _add_matrix(sums, tl.dot(dh.T, input.to(tl.bfloat16)), HIDDEN, HIDDEN, WIDTH, IN)
    if TO_X:
        dx = tl.dot(dh, _matrix(factors, HIDDEN, HIDDEN, WIDTH, IN))
        place = grad_x + index.to(tl.int64)[:, None] * grad_stride_n + k.to(tl.int64)[None, :] * grad_stride_k
        tl.store(place, dx.to(grad_x.dtype.element_ty), mask=inside[:, None] & (k < WIDTH)[None, :])
