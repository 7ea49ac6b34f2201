"""Encoding and perceptron on NVIDIA GPUs, as one step for autograd: what passes between them takes half the memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..hashgrid import GridLayout
from ..hashgrid import gpu as hashgrid
from ..mlp import gpu as mlp

HALF_FROM = 2**17
"""Points from which it pays to make an fp16 copy of the table first, which is half as far to read from."""


def fits(layout: GridLayout, weights: Sequence[Tensor]) -> bool:
    return mlp.fits(layout.levels * layout.features, weights)


def encoded_mlp(
    points: Tensor, table: Tensor, layout: GridLayout, weights: Sequence[Tensor], active_levels: int | None
) -> Tensor:
    """As `encoded_mlp.encoded_mlp`."""
    active = layout.levels if active_levels is None else max(0, min(active_levels, layout.levels))
    out: Tensor = _EncodedMLP.apply(points, table, layout, active, *weights)
    return out


class _EncodedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, points: Tensor, table: Tensor, layout: GridLayout, active_levels: int, *weights: Tensor
    ) -> Tensor:
        points, table = points.contiguous(), table.contiguous()
        if len(points) >= HALF_FROM:
            table = table.half()
        features = hashgrid.features(points, table, layout, active_levels, torch.float16)
        ctx.save_for_backward(points, table, features, *weights)
        ctx.layout, ctx.active_levels = layout, active_levels
        return mlp.forward(features.T, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        points, table, features, *weights = ctx.saved_tensors
        layout, active = ctx.layout, ctx.active_levels
        to_points, to_table, _, _, *to_weights = ctx.needs_input_grad
        dtype = torch.bfloat16 if to_points or to_table else None
        to_features, grads = mlp.backward(features.T, weights, grad, dtype, any(to_weights))
        grad_points = grad_table = None
        if to_features is not None and to_points:
            grad_points = hashgrid.gradient_of_points(points, table, to_features.T, layout, active)
        if to_features is not None and to_table:
            grad_table = hashgrid.gradient_of_table(points, to_features.T, layout, active)
        return grad_points, grad_table, None, None, *grads
