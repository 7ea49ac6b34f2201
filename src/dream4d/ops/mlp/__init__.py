"""Small perceptrons, as the fields have them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..paths import path_of
from . import reference

__all__ = ["mlp"]


def mlp(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """ReLU after each product but the last, no biases (paper supp. 2).

    x: [n, inputs]. weights: [outputs, inputs] of each layer, as in `nn.Linear`. Returns [n, outputs of the last] in the
    dtype of the weights. On NVIDIA GPUs products have factors of 11 bits or, for gradients, 8, and are added in fp32.
    """
    match path_of(*weights, half=x):
        case "cpu" if torch.backends.mkldnn.is_available():
            from . import cpu

            return cpu.mlp(x, weights)
        case "gpu":
            from . import gpu

            if gpu.fits(x.shape[1], weights):
                return gpu.mlp(x, weights)
    return reference.mlp(x, weights)
