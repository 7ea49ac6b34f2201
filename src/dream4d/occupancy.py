"""Which cells of space hold anything: rays are sampled only there."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, reduce

import torch
from torch import Tensor
from torch.nn import functional as F


class OccupancyGrid:
    """Decayed maximum of the density in each cell of the cube [-radius, radius]^3 (Instant-NGP; 32^3 in the paper).

    A cell is occupied where its value exceeds min(mean value, threshold), and all are before the first update.

    threshold: density per scene unit. decay: share of its value that a cell keeps at an update. dilation: cells by
    which the occupied region is grown on each side, for what is thinner than a cell.
    """

    def __init__(
        self, resolution: int = 32, radius: float = 1.0, threshold: float = 0.5, *, decay: float = 0.95,
        dilation: int = 0,
    ) -> None:
        self.resolution, self.radius, self.threshold = resolution, radius, threshold
        self.decay, self.dilation = decay, dilation
        self.values = torch.zeros(resolution, resolution, resolution)
        self.occupied = torch.ones(resolution, resolution, resolution, dtype=torch.bool)

    def to(self, device: torch.device | str) -> OccupancyGrid:
        """Moves the grid, as `nn.Module.to` does."""
        self.values, self.occupied = self.values.to(device), self.occupied.to(device)
        return self

    @torch.no_grad()
    def update(self, density_at: Callable[..., Tensor], generator: torch.Generator, times: int | None = None) -> None:
        """Evaluate the density at one random point in each cell.

        density_at: points [n, 3] -> [n], or with `times`: (points, time) -> [n], of which each cell takes the largest
        over that many random times, one in each of as many equal parts of [0, 1].
        """
        cells = _cells(self.resolution)
        shift = _uniform(cells.shape, generator)
        points = (((cells + shift) / self.resolution * 2 - 1) * self.radius).to(self.values.device)
        if times is None:
            density = density_at(points)
        else:
            moments = (torch.arange(times) + _uniform((times,), generator)) / times
            density = reduce(torch.maximum, (density_at(points, moment) for moment in moments.tolist()))
        self.values = torch.maximum(self.values * self.decay, density.view_as(self.values))
        occupied = self.values > self.values.mean().clamp(max=self.threshold)
        self.occupied = dilate(occupied, self.dilation)

    def at(self, points: Tensor) -> Tensor:
        """Whether points [n, 3] in the cube lie in occupied cells, [n]."""
        cells = ((points / self.radius + 1) / 2 * self.resolution).long().clamp(0, self.resolution - 1)
        return self.occupied[cells.unbind(-1)]

    def state_dict(self) -> dict[str, Tensor]:
        return {"values": self.values, "occupied": self.occupied}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes copies, on the grid's device. ValueError where the resolution differs."""
        if state["values"].shape != self.values.shape:
            raise ValueError(f"the saved grid is {list(state['values'].shape)}, this one {list(self.values.shape)}")
        self.values = state["values"].to(self.values.device, copy=True)
        self.occupied = state["occupied"].to(self.occupied.device, copy=True)


def dilate(cells: Tensor, by: int) -> Tensor:
    """The cells [r, r, r], bool, and those within `by` of one on each side."""
    return F.max_pool3d(cells[None].float(), 2 * by + 1, stride=1, padding=by)[0].bool() if by else cells


def without_floaters(cells: Tensor, solid: Tensor, smallest: int) -> Tensor:
    """The cells [r, r, r], bool, less each connected piece that has no `solid` cell and is smaller than `smallest`."""
    label = torch.arange(1, cells.numel() + 1, dtype=torch.float64, device=cells.device).view_as(cells) * cells
    while True:  # the largest number of a piece spreads over it
        spread = F.max_pool3d(label[None], 3, stride=1, padding=1)[0] * cells
        if torch.equal(spread, label):
            break
        label = spread
    piece = label.long()
    size = torch.bincount(piece.flatten())
    keep = size >= smallest
    keep[piece[solid & cells]] = True
    keep[0] = False
    return keep[piece]


@lru_cache(maxsize=4)
def _cells(resolution: int) -> Tensor:
    """[resolution^3, 3], the indices of all cells as numbers."""
    return torch.cartesian_prod(*[torch.arange(resolution, dtype=torch.float32)] * 3)


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """U[0, 1) on the CPU, wherever the generator lives."""
    return torch.rand(shape, generator=generator, device=generator.device).cpu()
