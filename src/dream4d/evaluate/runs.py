"""The numbers of finished runs, each beside those of the exact toy, and their means with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from dream4d.evaluate import metrics, toy
from dream4d.evaluate.clip import Clip
from dream4d.evaluate.footage import CLIP_FRAMES, RING, cameras_of, footage, photograph
from dream4d.film import AROUND, FIXED, Extent
from dream4d.loading import pick_device
from dream4d.progress import track
from dream4d.recipes import find_scene, prompt_of
from dream4d.render import Render
from dream4d.run import flatten, read_config
from dream4d.scene import Scene
from dream4d.toyworld.grammar import Combination, parse, unknown_words
from dream4d.toyworld.judge import Judge

Claim = Literal["text", "3D", "motion", "static"]
Values = dict[str, float]
CLAIMS: dict[Claim, str] = {
    "text": "text alignment", "3D": "3D consistency", "motion": "motion", "static": "the static scene, kept",
}
COLUMNS = 8
"""Of more runs the table shows the means only."""


@dataclass(frozen=True)
class Metric:
    """claim: of the paper, under which the metric stands. unit: "" for shares and other plain numbers."""

    claim: Claim
    unit: str = ""
    digits: int = 2


METRICS = {
    "aligned": Metric("text"),
    "kind": Metric("text"),
    "colour": Metric("text"),
    "prop": Metric("text"),
    "clip_text": Metric("text", digits=3),
    "faces": Metric("3D"),
    "azimuth_right": Metric("3D"),
    "azimuth_error": Metric("3D", "degrees", 1),
    "depth_agreement": Metric("3D", digits=3),
    "colour_agreement": Metric("3D", "dB", 1),
    "motion_right": Metric("motion"),
    "motion_agreement": Metric("motion"),
    "amount": Metric("motion", "scene units", 4),
    "jitter": Metric("motion", "scene units / frame^2", 4),
    "roughness": Metric("motion", "scene units / pixel^2", 4),
    "change": Metric("motion", "RGB", 4),
    "flicker": Metric("motion", "RGB / frame^2", 4),
    "clip_frames": Metric("motion", digits=3),
    "static_psnr": Metric("static", "dB", 1),
    "rest_psnr": Metric("static", "dB", 1),
}


def evaluate(
    sources: Sequence[str | Path], *, judge: str | Path | None = None, clip: str | None = None, device: str = "auto"
) -> dict[str, Any]:
    """The metrics of runs or scene files, as one document of plain values.

    ``rows``: of each run its ``metrics``, those of the ``exact`` toy and what the judge commonly ``read``, the last two
    empty where its sentence is not of the toy world. ``mean`` and ``exact``: `summary` of both. ``units``: of each
    metric.

    judge: folder of a judge for all runs with sentences of the toy world; the package's, for those of the built-in
    priors, if None. clip: folder or hub id of a CLIP model. Raises ValueError for what is no finished run.
    """
    if not sources:
        raise ValueError("say which runs to evaluate: dream4d evaluate RUN ...")
    where = pick_device(device)
    for source in sources:
        find_scene(source)
    model = None if clip is None else Clip.load(clip, where)
    reader = Judge.load(None if judge is None else Path(judge), where)
    rows = [
        _row(source, reader if judge or _of_builtin_priors(source) else None, model, where)
        for source in track(sources, "evaluate", len(sources))
    ]
    return {
        "rows": rows, "mean": summary([row["metrics"] for row in rows]),
        "exact": summary([row["exact"] for row in rows]),
        "units": {name: metric.unit for name, metric in METRICS.items()},
    }


def measure_views(ring: Render) -> Values:
    """Agreement of the views of a `RING`."""
    share, decibels = metrics.view_agreement(ring.rgb, ring.opacity, ring.depth, cameras_of(RING).to(ring.rgb.device))
    return {"depth_agreement": share, "colour_agreement": decibels}


def measure_films(films: Render) -> Values:
    """Amount and jitter of the motion in films, [n, t, h, w, ..]; no numbers of displacement where there is none."""
    pictures, cover = metrics.coarse(films.rgb), metrics.coarse(films.opacity[..., None])[..., 0]
    ever = (cover > 0.5).any(1, keepdim=True).expand_as(cover)
    values = {"change": metrics.spread(pictures, ever), "flicker": metrics.acceleration(pictures, ever)}
    if films.displacement.any():
        inside = films.opacity > 0.5
        displacement = films.displacement / films.opacity.clamp(min=1e-6)[..., None]
        values["amount"] = metrics.spread(displacement, inside)
        values["jitter"] = metrics.acceleration(displacement, inside)
        values["roughness"] = metrics.roughness(displacement, inside)
    return values


def measure_clip(clip: Clip, prompt: str, scene: Scene, extent: Extent) -> Values:
    """CLIP's cosines: of the sentence and eight sides and a clip of the scene, and of each frame of it and the next."""
    sides = [(0.0, azimuth) for azimuth in AROUND]
    frames = [(i / (CLIP_FRAMES - 1), FIXED[0]) for i in range(CLIP_FRAMES)]
    features = clip.images(photograph(scene, [*sides, *frames], size=clip.size, extent=extent).rgb)
    one, next_one = features[len(sides) : -1], features[len(sides) + 1 :]
    values = {"clip_frames": metrics.mean((one * next_one).sum(1))}
    return values | ({"clip_text": metrics.mean(features @ clip.text(prompt)[0])} if prompt else {})


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and number of runs of each metric, and of several runs the ends, low and high, of its 95 % interval."""
    result: dict[str, dict[str, float]] = {}
    for name in METRICS:
        if values := [row[name] for row in rows if name in row]:
            mean, low, high = metrics.interval(values)
            result[name] = {"mean": mean, "runs": len(values)}
            if len(values) > 1:
                result[name] |= {"low": low, "high": high}
    return result


def table(document: Mapping[str, Any]) -> str:
    """The document of `evaluate` for people: runs by number, a line for each metric that any of them has."""
    rows, mean, exact = document["rows"], document["mean"], document["exact"]
    numbers = [str(i + 1) for i in range(len(rows))] if 1 < len(rows) <= COLUMNS else []
    header = ["", *numbers, "mean" if len(rows) > 1 else "value", "95 % interval", "exact toy", "unit"]
    lines = [header]
    for claim, title in CLAIMS.items():
        names = [name for name, metric in METRICS.items() if metric.claim == claim and name in mean]
        lines += [[title, *[""] * (len(header) - 1)]] if names else []
        for name in names:
            show, found = _formatter(METRICS[name].digits), mean[name]
            each = [show(row["metrics"].get(name)) for row in rows] if numbers else []
            ends = f"{show(found['low'])} to {show(found['high'])}" if "low" in found else ""
            lines.append(["  " + name, *each, show(found["mean"]), ends, show(exact.get(name, {}).get("mean")),
                          METRICS[name].unit])  # fmt: skip
    shown = [i for i in range(len(header)) if header[i] in ("", "mean", "value") or any(line[i] for line in lines[1:])]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    aligned = (
        "  ".join(line[i].ljust(widths[i]) if i in (0, len(header) - 1) else line[i].rjust(widths[i]) for i in shown)
        for line in lines
    )
    return "\n".join([*map(_title, numbers or [""] * len(rows), rows), "", *(line.rstrip() for line in aligned)])


def _title(number: str, row: Mapping[str, Any]) -> str:
    read = row["read"]
    seen = "; the judge reads {colour} {kind}, {prop}, {motion}".format(**read) if read else ""
    return f"{number:>2} {row['run']}: {row['prompt'] or 'no prompt'}{seen}".strip()


def _formatter(digits: int) -> Callable[[float | None], str]:
    return lambda value: "" if value is None else f"{value:.{digits}f}"


def _row(source: str | Path, judge: Judge | None, clip: Clip | None, device: torch.device) -> dict[str, Any]:
    prompt = prompt_of(source)
    scene = Scene.load(find_scene(source)).to(device)
    extent = Extent(scene)
    seen = footage(lambda shots: photograph(scene, shots, extent=extent))
    values = measure_views(seen.ring) | measure_films(seen.films)
    exact: Values = {}
    read: dict[str, str] = {}
    if judge is not None and (combination := _combination(prompt)):
        readings, read = toy.measure(judge, combination, seen)
        values |= readings
        generator = torch.Generator().manual_seed(0)
        drawn = footage(lambda shots: toy.exact(combination, shots, str(device), generator))
        exact = measure_views(drawn.ring) | measure_films(drawn.films) | toy.measure(judge, combination, drawn)[0]
    if clip is not None:
        values |= measure_clip(clip, prompt, scene, extent)
    if static := _static_of(source):
        before = photograph(static.to(device), RING).rgb
        values["static_psnr"] = metrics.psnr(seen.ring.rgb, before)
        scene.deformation = None
        values["rest_psnr"] = metrics.psnr(photograph(scene, RING).rgb, before)
    return {"run": str(source), "prompt": prompt, "metrics": _known(values), "exact": _known(exact), "read": read}


def _combination(prompt: str) -> Combination | None:
    """What a sentence says of a toy; None where it is about anything else."""
    combination = parse(prompt)
    return None if combination == Combination(None, None, None) or unknown_words(prompt) else combination


def _of_builtin_priors(source: str | Path) -> bool:
    chosen = flatten(read_config(source)) if Path(source).is_dir() else {}
    return all(chosen.get(f"priors.{name}") in ("builtin", "none") for name in ("image", "multiview", "video"))


def _static_of(source: str | Path) -> Scene | None:
    """The scene that a run set in motion; None for other runs, and where the source of `animate` is gone."""
    if not Path(source).is_dir():
        return None
    own = Path(source) / "static.safetensors"
    if own.is_file():
        return Scene.load(own)
    try:
        scene = Scene.load(find_scene(str(read_config(source)["source"])))
    except (KeyError, ValueError):
        return None
    scene.deformation = None  # it got a new motion in its place
    return scene


def _known(values: Values) -> Values:
    """In the order of METRICS, without what could not be measured."""
    return {name: values[name] for name in METRICS if name in values and not math.isnan(values[name])}
