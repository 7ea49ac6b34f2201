"""From one picture to a 4D scene: is it the toy of the picture, also where the picture does not show it?

Toys of combinations that no prior was trained on, of random proportions and stripes, each drawn once from the front as
a picture with transparency; then `dream4d generate --image` with the sentence. The reference view is compared with the
picture, the rest read by the toy world's judge.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from PIL import Image
from report import RESULTS, ROOT, print_table, provenance, write_json
from torch import Tensor

from dream4d import recipes
from dream4d.cameras import orbit
from dream4d.evaluate.ablate import Job, Outcome, run_all
from dream4d.evaluate.footage import STILLS, photograph
from dream4d.evaluate.toy import compare, prop_pixels
from dream4d.film import Extent
from dream4d.loading import pick_device
from dream4d.media import caption, contact_sheet, stack, write_png
from dream4d.picture import read_framed
from dream4d.presets import BUILTIN, Preset, merge
from dream4d.render import render_images
from dream4d.run import slug
from dream4d.scene import Scene
from dream4d.static import reference_camera
from dream4d.toyworld.draw import draw_rgba
from dream4d.toyworld.grammar import Combination, evaluation_combinations, sentence
from dream4d.toyworld.judge import Judge
from dream4d.toyworld.world import Toys, make_toys

ELEVATION, SIZE = 10.0, 256
SEEN = 30.0
"""Degrees from the picture's side within which a view is not counted as unseen."""
SHOWN = [*((0.0, azimuth) for azimuth in (0.0, 90.0, 180.0, 270.0)), *((t, 20.0) for t in (0.2, 0.4, 0.6, 0.8))]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toys", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--set", nargs="*", default=[], metavar="STAGE.NAME=VALUE", help="e.g. picture.weight_3d=0.5")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "pictures")
    parser.add_argument("--json", type=Path, default=RESULTS / "pictures.json")
    options = parser.parse_args(argv)
    device = pick_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = merge(BUILTIN, {"seed": options.seed, "device": options.device} | nested(options.set))
    combinations = evaluation_combinations(options.toys)
    toys = make_toys(combinations, torch.Generator().manual_seed(options.seed))
    jobs = [
        job(toys[torch.tensor([i])], combination, settings, options.out) for i, combination in enumerate(combinations)
    ]
    outcomes = {each.job.folder: each for each in run_all(jobs, workers=options.workers, threads=options.threads)}
    judge = Judge.load(device=device)
    rows, strips, failed = [], [], 0
    for each, combination in zip(jobs, combinations, strict=True):
        outcome = outcomes[each.folder]
        if outcome.row is None:
            print(f"{each.folder.name}: {outcome.error}")
            failed += 1
            continue
        row, strip = look(outcome, combination, settings, judge, device)
        rows.append({"prompt": each.prompt, **row})
        strips.append(caption(strip, each.prompt))
    if rows:
        names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "prompt"]
        total: dict[str, Any] = {name: mean([row[name] for row in rows if name in row]) for name in names}
        print_table(["toy", *names], [
            [row["prompt"], *(f"{row[name]:.2f}" if name in row else "-" for name in names)]
            for row in [*rows, {"prompt": "all", **total}]
        ])  # fmt: skip
        write_png(options.out / "overview.png", stack(strips))
        write_json(options.json, {**provenance(str(device)), "set": options.set, "all": total, "toys": rows})
        print(options.out / "overview.png")
    return int(failed > 0)


def nested(pairs: Sequence[str]) -> dict[str, Any]:
    """``a.b=1`` as {"a": {"b": 1}}."""
    values: dict[str, Any] = {}
    for pair in pairs:
        name, value = pair.split("=", 1)
        stage, key = name.split(".")
        values.setdefault(stage, {})[key] = yaml.safe_load(value)
    return values


def job(toy: Toys, combination: Combination, settings: Preset, out: Path) -> Job:
    """The run of one toy [1], whose picture is written."""
    prompt = sentence(combination)
    file = out / "pictures" / f"{slug(prompt)}.png"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        camera = orbit(*torch.tensor([[0.0], [ELEVATION], [4.2], [30.0]]))
        rgba = draw_rgba(toy, torch.zeros(1), camera, SIZE)[0]
        colour = rgba[..., :3] / rgba[..., 3:].clamp(min=1e-3)
        pixels = torch.cat([colour.clamp(0, 1), rgba[..., 3:]], dim=-1).mul(255).round().byte()
        Image.fromarray(pixels.numpy(), "RGBA").save(file)
    recipe = partial(recipes.image_to_4d, image=file, elevation=ELEVATION)
    return Job("picture", prompt, settings.seed, out / slug(prompt), settings, recipe=recipe)


def look(
    outcome: Outcome, combination: Combination, settings: Preset, judge: Judge, device: torch.device
) -> tuple[dict[str, float], Any]:
    """The numbers of a finished run and its strip of the sheet."""
    assert outcome.row is not None
    folder, metrics = outcome.job.folder, outcome.row["metrics"]
    picture = read_framed(folder / "cutout.png")
    row = {f"reference_{size}": reference(folder, picture.at(size)[0], settings, device) for size in (64, 128)}
    scene = Scene.load(folder / "scene.safetensors").to(device)
    shots = [shot for shot in STILLS if min(shot[1] % 360, -shot[1] % 360) > SEEN]
    visible = prop_pixels(combination, shots, str(device))
    right = compare(judge.read(photograph(scene, shots).rgb), combination, shots, visible)
    row |= {f"unseen_{name}": values.float().mean().item() for name, values in right.items() if len(values)}
    names = ("motion_right", "motion_agreement", "amount", "static_psnr")
    row |= {name: metrics[name] for name in names if name in metrics}
    shown = torch.cat([picture.at(96)[0][None], photograph(scene, SHOWN, size=96, grey=0.9).rgb.cpu()]).clamp(0, 1)
    return row, contact_sheet(shown[None], ["picture", *(f"time {t}" if t else f"{a:.0f} deg" for t, a in SHOWN)])


def reference(folder: Path, truth: Tensor, settings: Preset, device: torch.device) -> float:
    """PSNR of the static scene from the picture's camera, before white, in dB."""
    scene = Scene.load(folder / "static.safetensors").to(device)
    size = truth.shape[0]
    seen = render_images(
        scene, reference_camera(ELEVATION, settings.picture).to(device), size, size, 0.0,
        occupancy=Extent(scene).at(0.0), samples_per_ray=256, background=torch.ones(3, device=device),
    )
    return -10 * (seen.rgb[0].cpu() - truth).square().mean().log10().item()


if __name__ == "__main__":
    raise SystemExit(main())
