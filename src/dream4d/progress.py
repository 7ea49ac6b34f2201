"""How far a loop is: a bar in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


def track(items: Iterable[T], label: str, total: int, *, done: int = 0, every: float = 10.0) -> Iterator[T]:
    """`items` as they are, while stderr tells how many of `total` are done, their rate and the time left.

    done: how many were done before. every: seconds between the lines where stderr is no terminal.
    """
    console = Console(stderr=True)
    return _bar(items, label, total, done, console) if console.is_terminal else _lines(items, label, total, done, every)


def _bar(items: Iterable[T], label: str, total: int, done: int, console: Console) -> Iterator[T]:
    columns = (
        TextColumn(f"{label:8}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=total, completed=done, rate="")
        for count, item in enumerate(items, start=1):
            yield item
            progress.update(task, advance=1, rate=f"{count / (time.monotonic() - start):.1f}/s")


def _lines(items: Iterable[T], label: str, total: int, done: int, every: float) -> Iterator[T]:
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    start = told = time.monotonic()
    for count, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - told >= every or done + count == total:
            rate = count / max(now - start, 1e-9)
            left = (total - done - count) / rate
            console.print(f"{label} {done + count}/{total}  {rate:.1f}/s  {left // 60:.0f}:{left % 60:02.0f} left")
            told = now
