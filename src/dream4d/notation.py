"""How a schedule is written on the command line and in YAML.

==============================  ===================================================
``64``                          `Constant(64)`
``64 until 5000 then 256``      `Switch(64, 256, at=5000)`
``64 until 9 then 128 until 20 then 256``  `Stairs((64, 128, 256), at=(9, 20))`
``0.98 to 0.02 over 8000``      `Linear(0.98, 0.02, steps=8000)`
``4 to 12 every 500``           `Levels(4, every=500, most=12)`
``0.001 times 0.5 at 8000 9000``  `Milestones(0.001, at=(8000, 9000), factor=0.5)`
``0.2 .. 0.6 until 9 then 0.5``  `Interval(Constant(0.2), Switch(0.6, 0.5, at=9))`
==============================  ===================================================
"""

from __future__ import annotations

from typing import Any

from dream4d.schedules import Constant, Interval, Levels, Linear, Milestones, Stairs, Switch

FORMS = '"64", "64 until 5000 then 256", "0.98 to 0.02 over 8000", "4 to 12 every 500", "0.001 times 0.5 at 8000 9000"'


def format_schedule(schedule: Any) -> str:
    match schedule:
        case Constant(value):
            return f"{value}"
        case Switch(before, after, at):
            return f"{before} until {at} then {after}"
        case Stairs(values, at):
            changes = zip(at, values[1:], strict=True)
            return " ".join([f"{values[0]}", *(f"until {step} then {value}" for step, value in changes)])
        case Linear(start, stop, steps):
            return f"{start} to {stop} over {steps}"
        case Levels(start, every, most):
            return f"{start} to {most} every {every}"
        case Milestones(start, at, factor):
            return f"{start} times {factor} at {' '.join(map(str, at))}".rstrip()
        case Interval(low, high):
            return f"{format_schedule(low)} .. {format_schedule(high)}"
    raise TypeError(f"{schedule!r} has no notation")


def parse_schedule(text: str) -> Any:
    """The inverse of `format_schedule`. Raises ValueError for anything else."""
    words = text.split()
    if ".." in words:
        middle = words.index("..")
        return Interval(*(parse_schedule(" ".join(end)) for end in (words[:middle], words[middle + 1 :])))
    try:
        match words:
            case [value]:
                return Constant(_number(value))
            case [before, "until", at, "then", after]:
                return Switch(_number(before), _number(after), at=int(at))
            case [first, *rest] if len(rest) > 4 and rest[::2] == ["until", "then"] * (len(rest) // 4):
                return Stairs(tuple(map(_number, [first, *rest[3::4]])), at=tuple(map(int, rest[1::4])))
            case [start, "to", stop, "over", steps]:
                return Linear(float(start), float(stop), steps=int(steps))
            case [start, "to", most, "every", every]:
                return Levels(int(start), every=int(every), most=int(most))
            case [start, "times", factor, "at", *at]:
                return Milestones(float(start), at=tuple(map(int, at)), factor=float(factor))
    except ValueError:
        pass
    raise ValueError(f"{text!r} is not a schedule; forms are {FORMS}, and LOW .. HIGH for an interval")


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
