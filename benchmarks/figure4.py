"""The paper's Fig. 4: the static stage with both priors, with the multi-view one alone, and with the image one alone.

Writes one picture, a row for each, and a table of what the toy world's judge reads in it: the multi-view prior alone
should lose the prop, the image prior alone should not find one front and one back, both together should do neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, ROOT, print_table, provenance, write_json
from torch import Tensor

from dream4d import loading, recipes
from dream4d.evaluate.footage import photograph
from dream4d.evaluate.metrics import apart
from dream4d.evaluate.toy import compare, drawing, prop_pixels
from dream4d.film import AROUND
from dream4d.media import contact_sheet, write_png
from dream4d.presets import BUILTIN
from dream4d.scene import Scene
from dream4d.toyworld.grammar import Combination, parse, sentence
from dream4d.toyworld.judge import Judge

ROWS = {"both priors": {}, "only multi-view": {"image": "none"}, "only image": {"multiview": "none"}}
SHOTS = [(0.0, azimuth) for azimuth in AROUND]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", default="a red cat wearing a top hat")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "figure4", help="folder of the three runs")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "images" / "figure4.png")
    parser.add_argument("--json", type=Path, default=RESULTS / "figure4.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=BUILTIN.static.steps)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    device = str(loading.pick_device(options.device))
    combination, judge = parse(options.prompt), Judge.load(device=device)
    for missing in (name for name in ("kind", "colour", "prop") if getattr(combination, name) is None):
        parser.error(f"--prompt {options.prompt!r} names no {missing}")
    scenes = {name: make(name, options, device) for name in ROWS}
    pictures = {name: photograph(scene, SHOTS, BUILTIN.static.samples_per_ray).rgb for name, scene in scenes.items()}
    pictures["drawn"] = drawing(combination, SHOTS, device)
    numbers = {name: read(judge, combination, images, device) for name, images in pictures.items()}
    header = ["priors", "kind", "colour", "prop", "azimuth", "faces behind"]
    print_table(header, [[name, *(f"{right}/{of}" for right, of in row.values())] for name, row in numbers.items()])
    samples = 2 * BUILTIN.static.samples_per_ray
    rows = [photograph(scene, SHOTS, samples, size=128, grey=0.93).rgb for scene in scenes.values()]
    sides = [f"{azimuth:.0f} deg" for azimuth in AROUND]
    write_png(options.picture, contact_sheet(torch.stack(rows).clamp(0, 1).cpu(), sides, list(ROWS)))
    print(options.picture)
    write_json(options.json, {**provenance(device), "prompt": sentence(combination), "seed": options.seed,
                              "steps": options.steps, "readings": numbers})  # fmt: skip
    return 0


def make(name: str, options: argparse.Namespace, device: str) -> Scene:
    """Run the static stage of a row, or take the run that is there."""
    settings = replace(
        BUILTIN, device=options.device, seed=options.seed, priors=replace(BUILTIN.priors, **ROWS[name]),
        static=replace(BUILTIN.static, steps=options.steps),
    )  # fmt: skip
    folder = options.out / name.replace(" ", "-")
    recipes.static_scene(options.prompt, settings, folder)
    return Scene.load(folder / "scene.safetensors").to(device)


def read(judge: Any, combination: Combination, images: Tensor, device: str) -> dict[str, tuple[int, int]]:
    """Right readings of how many, by attribute; a prop counts where it can be seen. Views from behind that show a
    face: those that the judge takes for views from the front."""
    reading = judge.read(images)
    right = compare(reading, combination, SHOTS, prop_pixels(combination, SHOTS, device))
    behind = apart(torch.tensor(AROUND), torch.tensor(180.0)) <= 60
    right["faces behind"] = (reading.azimuth.cpu().abs() < 60)[behind]
    return {name: (int(values.sum()), len(values)) for name, values in right.items()}


if __name__ == "__main__":
    raise SystemExit(main())
