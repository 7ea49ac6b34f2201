"""What rays meet first among triangles."""

from __future__ import annotations

import torch
from torch import Tensor

from . import cpu
from .reference import Hits, Tree, build

__all__ = ["Hits", "Tree", "build", "raycast"]


def raycast(tree: Tree, origins: Tensor, directions: Tensor, beyond: Tensor | None = None) -> Hits:
    """The nearest triangle on each ray, seen from either side. Without gradients.

    origins, directions: [n, 3], of any length. beyond: [n], in units of `directions`; what is not farther than that
    does not count (by default 0). Computed on the CPU and returned on the device of `origins`; distances and weights
    have its dtype.
    """
    beyond = origins.new_zeros(len(origins)) if beyond is None else beyond
    with torch.no_grad():
        hits = cpu.raycast(tree, *(value.cpu().float() for value in (origins, directions, beyond)))
    return Hits(hits.face.to(origins.device), hits.weights.to(origins), hits.distance.to(origins))
