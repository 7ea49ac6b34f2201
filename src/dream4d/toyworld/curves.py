"""Loss curves of training as one picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e")
_WIDTH, _HEIGHT, _MARGIN = 420, 260, 40


def loss_curves(folder: Path) -> NDArray[np.floating[Any]] | None:
    """The ``*.jsonl`` of `folder` beside each other, both axes logarithmic, [h, w, 3]; None where there are none."""
    plots = [_plot(file) for file in sorted(folder.glob("*.jsonl"))]
    return np.concatenate(plots, axis=1) if plots else None


def _plot(file: Path) -> NDArray[np.floating[Any]]:
    from PIL import Image, ImageDraw

    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in lines if "step" in row]
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    names = [name for name in rows[-1] if name not in ("step", "seconds")] if rows else []
    draw.text((_MARGIN, 6), f"{file.stem}: loss by step", fill="black")
    if not rows:
        return np.asarray(image) / 255
    steps = np.log10([row["step"] for row in rows])
    values = {name: np.log10(np.maximum([row[name] for row in rows], 1e-9)) for name in names}
    low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values()) + 1e-6
    x = _MARGIN + (steps - steps[0]) / max(steps[-1] - steps[0], 1e-6) * (_WIDTH - 2 * _MARGIN)
    for tick in range(int(np.ceil(low)), int(np.floor(high)) + 1):
        y = _HEIGHT - _MARGIN - (tick - low) / (high - low) * (_HEIGHT - 2 * _MARGIN)
        draw.line([(_MARGIN, y), (_WIDTH - _MARGIN, y)], fill="#dddddd")
        draw.text((4, y - 6), f"1e{tick}", fill="black")
    for index, (name, value) in enumerate(values.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        y = _HEIGHT - _MARGIN - (value - low) / (high - low) * (_HEIGHT - 2 * _MARGIN)
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour, width=2)
        draw.text((_WIDTH - _MARGIN - 60, 24 + 12 * index), name, fill=colour)
    draw.text((_MARGIN, _HEIGHT - 24), f"{rows[0]['step']}", fill="black")
    draw.text((_WIDTH - _MARGIN - 40, _HEIGHT - 24), f"{rows[-1]['step']}", fill="black")
    return np.asarray(image) / 255
