"""Where the entries of a multi-resolution grid lie in its table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

PRIMES = (1, 2_654_435_761, 805_459_861, 3_674_653_429)  # one factor an axis (Müller et al. 2022, Sec. 3)


@dataclass(frozen=True)
class GridLayout:
    """Multi-resolution hash grid (Instant-NGP; paper supp. 2).

    Level l has `floor(base * growth ** l)` cells along each axis. A level whose vertices fit into `2 ** log2_size` rows
    is stored densely, first axis fastest; of the others each vertex hashes to one of `2 ** log2_size` rows.

    dim: 3 or 4. levels, features: how many levels, and features in each. base: cells of level 0 along an axis.
    """

    dim: int
    levels: int
    features: int
    base: int
    growth: float
    log2_size: int

    def __post_init__(self) -> None:
        if self.dim not in (3, 4):
            raise ValueError(f"a grid has 3 or 4 dimensions, not {self.dim}")
        if min(self.levels, self.features, self.base) < 1 or self.growth < 1 or not 1 <= self.log2_size <= 24:
            raise ValueError(f"{self}: levels, features, base and growth are at least 1, log2_size is in [1, 24]")

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Cells along an axis, by level."""
        return tuple(int(self.base * self.growth**level) for level in range(self.levels))

    @cached_property
    def hashed(self) -> tuple[bool, ...]:
        """Whether a level's vertices are hashed, by level."""
        return tuple((resolution + 1) ** self.dim > 2**self.log2_size for resolution in self.resolutions)

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Rows of the table, by level."""
        levels = zip(self.resolutions, self.hashed, strict=True)
        return tuple(2**self.log2_size if hashed else (resolution + 1) ** self.dim for resolution, hashed in levels)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """First row, by level."""
        return (0, *accumulate(self.sizes[:-1]))

    @cached_property
    def rows(self) -> int:
        """Rows of the whole table."""
        return sum(self.sizes)

    @cached_property
    def factors(self) -> tuple[tuple[int, ...], ...]:
        """What a vertex' index along each axis is multiplied with, by level: strides if dense, primes if hashed."""
        levels = zip(self.resolutions, self.hashed, strict=True)
        return tuple(
            PRIMES[: self.dim] if hashed else tuple((resolution + 1) ** axis for axis in range(self.dim))
            for resolution, hashed in levels
        )
