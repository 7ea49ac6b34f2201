"""Finished runs as one HTML page that needs nothing but itself: videos, sheets, losses, metrics and settings."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dream4d.evaluate import runs
from dream4d.evaluate.ablate import measured
from dream4d.files import atomic
from dream4d.progress import track
from dream4d.recipes import find_scene, prompt_of

WIDTH, HEIGHT = 240, 48
"""Of a loss curve, in pixels."""
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --faint: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 0 0 .2rem; }
section { border: 1px solid var(--line); border-radius: .6rem; padding: 1rem; margin: 1rem 0; }
video, img { max-width: 100%; border-radius: .4rem; background: var(--faint); display: block; margin: .6rem 0; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .15rem .7rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:first-child, th:first-child { text-align: left; } th[colspan] { text-align: left; padding-top: .7rem; }
figure { display: inline-block; margin: .3rem 1.2rem .3rem 0; } figcaption, .small { font-size: .8rem; opacity: .75; }
polyline { fill: none; stroke: #36c; stroke-width: 1.5; } pre { font-size: .8rem; overflow-x: auto; }
"""


def report(sources: Sequence[str | Path], out: str | Path, *, device: str = "auto") -> Path:
    """Write the page of finished runs. Returns it.

    Raises ValueError for what is no finished run, before anything is written.
    """
    if not sources:
        raise ValueError("say which runs to report: dream4d report RUN ...")
    for source in sources:
        find_scene(source)
        if not Path(source).is_dir():
            raise ValueError(f"{source} is a file: name the folder of its run")
    rows = [measured(Path(source), device) for source in track(sources, "report", len(sources))]
    with atomic(out) as file:
        file.write_text(page([Path(source) for source in sources], rows), encoding="utf-8")
    return Path(out)


def page(folders: Sequence[Path], rows: Sequence[Mapping[str, Any]]) -> str:
    """rows: of `runs.evaluate`, one for each folder."""
    title = prompt_of(folders[0]) if len(folders) == 1 else f"{len(folders)} runs"
    parts = [_summary(rows)] if len(rows) > 1 else []
    parts += [_section(folder, row) for folder, row in zip(folders, rows, strict=True)]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; media-src data:; "
        "style-src 'unsafe-inline'\">"
        f"<title>{escape(title)} - dream4d</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{''.join(parts)}</body></html>\n"
    )


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    return f"<section><h2>Means</h2>{_metrics(runs.summary([row['metrics'] for row in rows]), rows)}</section>"


def _section(folder: Path, row: Mapping[str, Any]) -> str:
    prompt = prompt_of(folder) or folder.name
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    own = {name: {"mean": value} for name, value in row["metrics"].items()}
    return (
        f'<section><h2>{escape(prompt)}</h2><div class="small">{escape(str(folder))}</div>'
        f"{_video(folder / 'video.mp4')}{_image(folder / 'sheet.png', prompt)}"
        f"<div>{''.join(_curves(folder / 'metrics.jsonl'))}</div>{_metrics(own, [row])}"
        f"<details><summary>Settings</summary><pre>{escape(config)}</pre></details></section>"
    )


def _metrics(found: Mapping[str, Mapping[str, float]], rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each metric, under the claims of the paper; the exact toy's beside it."""
    exact = runs.summary([row["exact"] for row in rows])
    lines = ["<tr><th></th><th>value</th><th>95 % interval</th><th>exact toy</th><th>unit</th></tr>"]
    for claim, title in runs.CLAIMS.items():
        names = [name for name, metric in runs.METRICS.items() if metric.claim == claim and name in found]
        lines += [f'<tr><th colspan="5">{escape(title)}</th></tr>'] if names else []
        for name in names:
            metric, value = runs.METRICS[name], found[name]
            ends = f"{value['low']:.{metric.digits}f} to {value['high']:.{metric.digits}f}" if "low" in value else ""
            truth = f"{exact[name]['mean']:.{metric.digits}f}" if name in exact else ""
            cells = [name, f"{value['mean']:.{metric.digits}f}", ends, truth, metric.unit]
            lines.append(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _curves(file: Path) -> list[str]:
    """Every loss of every stage, each scaled to its own range."""
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
        entry = json.loads(line)
        stage, step = entry.pop("stage"), entry.pop("step")
        for name, value in entry.items():
            curves.setdefault((stage, name), []).append((step, value))
    return [_curve(f"{stage}: {name}", points) for (stage, name), points in curves.items() if len(points) > 1]


def _curve(title: str, points: Sequence[tuple[float, float]]) -> str:
    steps, values = zip(*points, strict=True)
    low, span = min(values), (max(values) - min(values)) or 1.0
    first, length = steps[0], (steps[-1] - steps[0]) or 1
    path = " ".join(
        f"{WIDTH * (step - first) / length:.1f},{HEIGHT - HEIGHT * (value - low) / span:.1f}" for step, value in points
    )
    return (
        f'<figure><svg width="{WIDTH}" height="{HEIGHT}" viewBox="-1 -1 {WIDTH + 2} {HEIGHT + 2}" role="img" '
        f'aria-label="{escape(title)}"><polyline points="{path}"/></svg>'
        f"<figcaption>{escape(title)}, {values[0]:.4g} to {values[-1]:.4g}</figcaption></figure>"
    )


def _video(file: Path) -> str:
    if not file.is_file():
        return ""
    return f'<video controls autoplay loop muted playsinline src="{_data(file, "video/mp4")}"></video>'


def _image(file: Path, prompt: str) -> str:
    return f'<img alt="{escape(prompt)}" src="{_data(file, "image/png")}">' if file.is_file() else ""


def _data(file: Path, kind: str) -> str:
    return f"data:{kind};base64,{b64encode(file.read_bytes()).decode()}"
