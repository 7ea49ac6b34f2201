"""Schedules are values: a frozen dataclass called with a step, counted from 0, gives the setting at that step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

Number = TypeVar("Number", int, float)


class Schedule(Protocol):
    def __call__(self, step: int) -> float: ...


class Count(Protocol):
    """A schedule of whole numbers: resolutions, batch sizes, grid levels."""

    def __call__(self, step: int) -> int: ...


@dataclass(frozen=True)
class Constant(Generic[Number]):
    """`value` at every step."""

    value: Number

    def __call__(self, step: int) -> Number:
        return self.value


@dataclass(frozen=True)
class Linear:
    """From `start` at step 0 to `stop` at step `steps`, and `stop` from there on."""

    start: float
    stop: float
    steps: int

    def __call__(self, step: int) -> float:
        return self.start + (self.stop - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Switch(Generic[Number]):
    """`before` until step `at`, `after` from there on (64x64 images, then 256x256; supplement 3.1)."""

    before: Number
    after: Number
    at: int

    def __call__(self, step: int) -> Number:
        return self.before if step < self.at else self.after


@dataclass(frozen=True)
class Stairs(Generic[Number]):
    """The first of `values` until the first step of `at`, the next one until the next, and the last from there on."""

    values: tuple[Number, ...]
    at: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.values) != len(self.at) + 1 or list(self.at) != sorted(self.at):
            raise ValueError(f"{len(self.values)} values change at steps {self.at}: one less, and in order")

    def __call__(self, step: int) -> Number:
        return self.values[sum(step >= change for change in self.at)]


@dataclass(frozen=True)
class Levels:
    """`start` levels of a grid, one more every `every` steps, at most `most` (supplement 3.2)."""

    start: int
    every: int
    most: int

    def __call__(self, step: int) -> int:
        return min(self.start + step // self.every, self.most)


@dataclass(frozen=True)
class Milestones:
    """`start`, multiplied by `factor` at each of the steps `at`."""

    start: float
    at: tuple[int, ...] = ()
    factor: float = 0.5

    def __call__(self, step: int) -> float:
        return self.start * self.factor ** sum(step >= milestone for milestone in self.at)


@dataclass(frozen=True)
class Interval:
    """Two schedules, the ends of an interval: `Interval(low, high)(step) == (low(step), high(step))`."""

    low: Schedule
    high: Schedule

    def __call__(self, step: int) -> tuple[float, float]:
        return self.low(step), self.high(step)
