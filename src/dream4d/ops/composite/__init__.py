"""Volume rendering of samples that lie along rays."""

from __future__ import annotations

from torch import Tensor

from ..paths import path_of
from . import cpu, reference
from .reference import Composite

__all__ = ["Composite", "composite"]


def composite(density: Tensor, start: Tensor, end: Tensor, values: Tensor, ray: Tensor, rays: int) -> Composite:
    """NeRF's quadrature (Mildenhall et al. 2020, Eq. 3).

    alpha_i = 1 - exp(-density_i (end_i - start_i)); weight_i = alpha_i * product of (1 - alpha_j) over the samples of
    the same ray in front of i; a ray's value is the sum of weight_i * values_i over its samples.

    density, start, end: [m], density per unit of distance. values: [m, c]. ray: [m] int64, sorted, with the samples of
    a ray in the order of distance. rays: how many there are; those without samples give zeros.
    Gradients to density and values; `start` and `end` are constants.
    """
    arguments = (density, start.detach(), end.detach(), values, ray, rays)
    match path_of(density, values):
        case "cpu":
            return cpu.composite(*arguments)
        case "gpu":
            from . import gpu

            return gpu.composite(*arguments)
    return reference.composite(*arguments)
