"""Small perceptrons on CPUs: oneDNN's products with the ReLU in them, a block of points at a time through all layers.

A block's layers stay in the caches. Nothing but the input is kept for the backward pass, which computes them again:
that is quicker than to write them to memory and read them back. Torch's own products of fp32 are MKL's, half as fast on
AMD.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 4096
_linear = torch.ops.mkldnn._linear_pointwise  # what torch.compile makes of nn.Linear and ReLU


def mlp(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """As `mlp.mlp`."""
    out: Tensor = _MLP.apply(x, *weights)
    return out


class _MLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.save_for_backward(x, *weights)
        out = x.new_empty(len(x), len(weights[-1]))
        for block, result in zip(x.split(BLOCK), out.split(BLOCK), strict=True):
            result.copy_(_product(_layers(block, weights)[-1], weights[-1]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        to_x, *to_weights = ctx.needs_input_grad
        transposed = [weight.T.contiguous() for weight in weights]
        grad_x = torch.empty_like(x) if to_x else None
        pairs = zip(weights, to_weights, strict=True)
        grads = [torch.zeros_like(weight) if needed else None for weight, needed in pairs]
        for first in range(0, len(x), BLOCK):
            part = slice(first, first + BLOCK)
            layers, g = _layers(x[part], weights), grad[part].contiguous()
            for i in range(len(weights) - 1, -1, -1):
                if (sums := grads[i]) is not None:
                    sums.addmm_(g.T, layers[i])
                if i:
                    g = torch.ops.aten.threshold_backward(_product(g, transposed[i]), layers[i], 0)
                elif grad_x is not None:
                    grad_x[part] = _product(g, transposed[0])
        return grad_x, *grads


def _layers(x: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """The input and all hidden layers."""
    layers = [x]
    for weight in weights[:-1]:
        layers.append(_product(layers[-1], weight, "relu"))
    return layers


def _product(x: Tensor, weight: Tensor, then: str = "none") -> Tensor:
    result: Tensor = _linear(x, weight, None, then, [], "")
    return result
