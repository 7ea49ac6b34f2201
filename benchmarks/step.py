"""Time and memory of whole training steps with the paper's networks, full-size with random weights, by memory plan.

A step is that of `fit_static` or `fit_dynamic` with preset `paper`, from a soft blob that learning rates of 0 leave as
it is: all steps have the same work. A case's suffix is the memory plan: none for `paper`, `_balanced`, `_lowmem`,
`_minimal`. The text encoder is not there; a stage has no use for it once its prompts are known. Goals are for one H200.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from field import BLOBS, DEFORMATION, timed
from networks import picture_priors, static_priors, video_prior
from report import RESULTS, print_table, provenance
from steps import PARTS, stopwatches, take

from dream4d import dynamic, static
from dream4d.occupancy import OccupancyGrid
from dream4d.picture import Picture
from dream4d.plans import PLANS, Plan, dynamic_need, plan_named, static_need
from dream4d.presets import PAPER
from dream4d.priors.deepfloyd import DeepFloyd
from dream4d.priors.fused import fuse
from dream4d.priors.parts import ImagePrior
from dream4d.priors.text_to_video import TextToVideo
from dream4d.scene import Scene
from dream4d.schedules import Constant
from dream4d.settings import DeformationShape, SceneShape
from dream4d.state import State, StepReport

PROMPT = "a red cat wearing a top hat is waving"
STAGES = ("step_static_64", "step_static_256", "step_dynamic", "step_picture_64", "step_picture_256")
GOALS = {  # ms and GiB on an H200; a plan in parts may take 1.35 times as long
    "step_static_64": (120, None), "step_static_256": (130, None), "step_dynamic": (430, None),
    "step_static_64_lowmem": (162, 8), "step_static_256_lowmem": (175, 8), "step_dynamic_lowmem": (580, 10),
}  # fmt: skip
OFFICIAL = {"step_static_64": 231, "step_static_256": 250, "step_dynamic": 957}
"""Ms of the official design on an H200: sums of its parts, soft blob."""
OCCUPANCY = 16
"""Steps between updates of the occupancy grid: so many are timed, or a multiple."""
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

Prior = ImagePrior | TextToVideo | DeepFloyd


@dataclass(frozen=True)
class Work:
    """What is stepped: its state, its steps, the module whose parts are timed, and the bytes that its plan foresees."""

    state: State
    steps: Iterator[StepReport]
    module: Any
    foreseen: float


def main(argv: Sequence[str] | None = None) -> int:
    names = [stage + suffix(plan) for stage in STAGES for plan in PLANS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN", help="names, * stands for anything")
    parser.add_argument("--steps", type=int, default=OCCUPANCY, help="timed steps of a case")
    parser.add_argument("--warm-up", type=int, default=3)
    parser.add_argument("--dtype", choices=DTYPES, default="fp16")
    parser.add_argument("--eager", action="store_true", help="networks as diffusers made them, see priors/fused.py")
    parser.add_argument("--images", type=int, help="that the autoencoder takes at a time, in place of the plan's")
    parser.add_argument("--samples", type=int, help="the budget of rendering, in place of the plan's")
    parser.add_argument("--limit", type=float, metavar="GIB", help="memory that torch may take, as on a smaller GPU")
    parser.add_argument("--parts", action="store_true", help="time the parts of further steps, too")
    parser.add_argument("--tiny", action="store_true", help="a dry run with networks of a few thousand weights")
    parser.add_argument("--out", type=Path, help="by default results/step-DEVICE.json")
    options = parser.parse_args(argv)
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in options.cases)]
    if not chosen:
        parser.error(f"no such case; known: {', '.join(names)}")
    device = torch.device(options.device)
    out = options.out or RESULTS / f"step-{device.type}.json"
    if options.limit:
        torch.cuda.set_per_process_memory_fraction(options.limit * 2**30 / torch.cuda.mem_get_info()[1])
    rows: list[dict[str, Any]] = []
    priors: list[Prior] = []
    kind = ""
    for name in chosen:
        if kind != (kind := name.split("_")[1]):
            priors.clear()
            gc.collect()
            priors = load(kind, device, options)
        rows.append(measure(name, priors, device, options))
        print("  ".join(cells(rows[-1])), flush=True)
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    header = ["case", "ms", "goal ms", "peak GiB", "goal GiB", "foreseen GiB", "weights GiB", "official ms"]
    print_table([*header, "warm s"], [cells(row) for row in rows])
    print(out)
    return int(any("error" in row for row in rows))


def suffix(plan: Plan) -> str:
    return "" if plan is PLANS[0] else f"_{plan.name}"


def cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["case"], "failed", *["-"] * 7]
    numbers = [row["ms"], row["goal_ms"], row["peak_gib"], row["goal_gib"], row["foreseen_gib"], row["weights_gib"],
               row["official_ms"], row["warm_s"]]  # fmt: skip
    return [row["case"], *("-" if number is None else f"{number:.4g}" for number in numbers)]


def load(kind: str, device: torch.device, options: argparse.Namespace) -> list[Prior]:
    """The priors of a stage, as `dream4d` has them on a GPU unless --eager."""
    dtype = DTYPES[options.dtype]
    priors: list[Prior] = (
        [video_prior(device, dtype, options.tiny)] if kind == "dynamic"
        else list(picture_priors(device, dtype, options.tiny)) if kind == "picture"
        else list(static_priors(device, dtype, options.tiny))
    )  # fmt: skip
    if device.type == "cuda" and not options.eager:
        parts = [prior.parts for prior in priors if not isinstance(prior, DeepFloyd)]
        networks = [network for part in parts for network in (part.unet, part.autoencoder.vae)]
        networks += [prior.unet for prior in priors if isinstance(prior, DeepFloyd)]
        for network in {id(network): network for network in networks}.values():
            fuse(network)
    return priors


def measure(name: str, priors: list[Prior], device: torch.device, options: argparse.Namespace) -> dict[str, Any]:
    """One row of the results. A case that fails stops no other."""
    stage = next(stage for stage in STAGES if name.startswith(stage))
    plan = plan_named(name.removeprefix(stage).lstrip("_") or PLANS[0].name)
    plan = replace(plan, images=options.images or plan.images, samples=options.samples or plan.samples)
    about = provenance(str(device))
    row = {
        "case": name, "device": about["device"], "torch": torch.__version__, "commit": about["commit"],
        "date": about["date"], "dtype": options.dtype, "eager": options.eager,
        "images": plan.images, "samples": plan.samples, "tiny": options.tiny, "limit_gib": options.limit,
        "official_ms": OFFICIAL.get(stage),
    }  # fmt: skip
    row["goal_ms"], row["goal_gib"] = GOALS.get(name, (None, None))
    gc.collect()
    torch.cuda.empty_cache()  # nothing happens without CUDA
    weights = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    try:
        plan.apply(priors)
        torch.manual_seed(0)
        count = options.warm_up + options.steps * (2 if options.parts else 1)
        work = prepare(stage, priors, plan, device, count, options.tiny)
        start = time.perf_counter()
        timed(lambda: take(work.steps, 1), device, options.warm_up)
        row["warm_s"] = round(time.perf_counter() - start, 2)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        reports: list[StepReport] = []
        spent = timed(lambda: reports.append(next(work.steps)), device, options.steps)
        row |= {
            "ms": round(statistics.mean(spent), 2), "median_ms": round(statistics.median(spent), 2),
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 3),
            "weights_gib": round(weights / 2**30, 3), "foreseen_gib": round((weights + work.foreseen) / 2**30, 3),
            "losses": {key: round(value, 4) for key, value in reports[-1].floats().items()},
            "occupied": round(work.state.occupancy.occupied.float().mean().item(), 4),
        }  # fmt: skip
        if options.parts:
            with stopwatches(work.state, work.module, str(device)) as parts:
                take(work.steps, options.steps)
            row["parts_ms"] = {part: round(parts[part] / options.steps, 2) for part in PARTS[:-1]}
    except (RuntimeError, ValueError) as error:
        row["error"] = " ".join(str(error).split())[:300]
        print(f"{name}: {row['error']}", flush=True)
    return row


def prepare(
    stage: str, priors: list[Prior], plan: Plan, device: torch.device, steps: int, tiny: bool
) -> Work:
    shape = SceneShape(log2_size=12, levels=4) if tiny else BLOBS["soft"]
    scene = Scene(shape).to(device)
    samples = 32 if tiny else PAPER.static.samples_per_ray
    sizes = [prior.resolution for prior in priors]
    if stage == "step_dynamic":
        return dynamic_work(scene, priors, plan, device, steps, samples, tiny)
    size = int(stage.rpartition("_")[2])
    if stage.startswith("step_picture"):
        return picture_work(scene, priors, plan, device, steps, samples, size // 8 if tiny else size, tiny)
    images, size = 8 if size == 64 else 4, size // 8 if tiny else size
    settings = replace(
        PAPER.static, steps=steps, images=Constant(images), resolution=Constant(size), samples_per_ray=samples,
        learning_rate_grid=Constant(0), learning_rate_mlp=Constant(0), occupancy_every=OCCUPANCY,
    )  # fmt: skip
    state = static.start_static(scene, seed=0, occupancy=OccupancyGrid().to(device))
    image, multiview = priors
    reports = static.fit_static(
        state, image_prior=image, multiview_prior=multiview, prompt=PROMPT, settings=settings, budget=plan.samples
    )  # fmt: skip
    return Work(state, reports, static, static_need(plan, settings, sizes))


def picture_work(
    scene: Scene, priors: list[Prior], plan: Plan, device: torch.device, steps: int, samples: int, size: int, tiny: bool
) -> Work:
    """Of Sec. 3.3: 12 images at first, of 64x64, 4 in the end, of 256x256, and the reference view at twice the size."""
    noise = torch.rand(64, 64, 4, generator=torch.Generator().manual_seed(0))
    picture = Picture(noise[..., :3], noise[..., 3], "chance")
    settings = replace(
        PAPER.picture, steps=steps, images=Constant(12 if size in (64, 8) else 4), resolution=Constant(size),
        reference_resolution=Constant(2 * size), samples_per_ray=samples, learning_rate_grid=Constant(0),
        learning_rate_mlp=Constant(0), occupancy_every=OCCUPANCY,
    )  # fmt: skip
    state = static.start_static(scene, seed=0, occupancy=OccupancyGrid().to(device))
    image, novel = priors
    reports = static.fit_picture(
        state, picture=picture, elevation=0.0, image_prior=image, novel_prior=novel, prompt=PROMPT, settings=settings,
        budget=plan.samples,
    )  # fmt: skip
    return Work(state, reports, static, static_need(plan, settings, [prior.resolution for prior in priors]))


def dynamic_work(
    scene: Scene, priors: list[Prior], plan: Plan, device: torch.device, steps: int, samples: int, tiny: bool
) -> Work:
    """With all levels on and the grid's features drawn so large that everything moves."""
    deformation = DeformationShape(log2_size=12, levels=4) if tiny else DeformationShape()
    scene.add_deformation(deformation)
    torch.nn.init.uniform_(scene.get_parameter("deformation.encoding.table"), -DEFORMATION, DEFORMATION)
    state = dynamic.start_dynamic(scene, seed=0, occupancy=OccupancyGrid().to(device))
    height, width = (6, 8) if tiny else (80, 144)
    settings = replace(
        PAPER.dynamic, steps=steps, height=Constant(height), width=Constant(width), samples_per_ray=samples,
        levels=Constant(deformation.levels), learning_rate=Constant(0), occupancy_every=OCCUPANCY,
    )  # fmt: skip
    (video,) = priors
    assert isinstance(video, TextToVideo)
    reports = dynamic.fit_dynamic(
        state, video_prior=video, prompt=PROMPT, settings=settings, budget=plan.samples
    )  # fmt: skip
    return Work(state, reports, dynamic, dynamic_need(plan, settings, frames=video.frames, size=video.resolution))


if __name__ == "__main__":
    raise SystemExit(main())
