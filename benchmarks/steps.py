"""Time and peak memory of a training step of both stages: preset `builtin`, its priors or random ones of their size.

Each case is a process of its own, so that its peak memory is its own. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from report import RESULTS, ROOT, commit, print_table, provenance, write_json

from dream4d import dynamic, guidance, loading, static
from dream4d.occupancy import OccupancyGrid
from dream4d.presets import BUILTIN
from dream4d.priors.mvdream import MVDream
from dream4d.priors.parts import Shared, quiet_libraries
from dream4d.priors.stable_diffusion import StableDiffusion
from dream4d.priors.text_to_video import TextToVideo
from dream4d.scene import Scene
from dream4d.schedules import Constant
from dream4d.state import State, StepReport

PROMPT = "a red cat wearing a top hat is waving"
CASES = ("static_32", "static_64", "dynamic_32")
PARTS = ("occupancy", "render", "guidance", "backward", "optimiser", "rest")
WARM_UP = 4


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads; 0: torch decides")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--steps", type=int, default=16, help="timed steps; 16 hold one update of the occupancy grid")
    parser.add_argument("--out", type=Path, default=None, help="by default results/steps-DEVICE.json")
    parser.add_argument("--priors", type=Path, default=None, help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    device = str(loading.pick_device(options.device))
    if options.inside:
        print(json.dumps(measure(options.cases[0], device, options)))
        return 0
    with ExitStack() as stack:
        priors, weights = loading.BUILTIN_PRIORS, "built-in"
        if not has_priors(priors):
            priors, weights = Path(stack.enter_context(tempfile.TemporaryDirectory())), "random"
            save_random_priors(priors)
        rows = [
            {**row, "weights": weights} for row in (outside(case, device, priors, options) for case in options.cases)
        ]
    header = ["case", "ms", *PARTS, "peak GiB"]
    print_table(header, [
        [row["case"], f"{row['ms']:.0f}", *(f"{row['parts_ms'][part]:.0f}" for part in PARTS), f"{row['peak_gib']:.2f}"]
        for row in rows
    ])  # fmt: skip
    write_json(options.out or RESULTS / f"steps-{device.partition(':')[0]}.json", rows)
    return 0


def has_priors(folder: Path) -> bool:
    return all((folder / name / "unet" / "config.json").is_file() for name in ("image", "multiview", "video"))


def save_random_priors(folder: Path) -> None:
    """Networks of the built-in priors' shapes with random weights: steps take as long with them."""
    with quiet_libraries():
        from dream4d.toyworld import networks

        words = networks.tokenizer()
        words.save_pretrained(folder / "image" / "tokenizer")
        networks.text_encoder(len(words)).save_pretrained(folder / "image" / "text_encoder")
        networks.autoencoder().save_pretrained(folder / "image" / "vae")
        unets = {"image": networks.image_unet, "multiview": networks.multiview_unet, "video": networks.video_unet}
        for name, unet in unets.items():
            unet().save_pretrained(folder / name / "unet")
            networks.scheduler(name).save_pretrained(folder / name / "scheduler")


def outside(case: str, device: str, priors: Path, options: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a process of its own."""
    command = [
        sys.executable, __file__, "--inside", "--cases", case, "--device", device, "--priors", str(priors),
        "--threads", str(options.threads), "--steps", str(options.steps),
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"PYTHONPATH": path})
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(case: str, device: str, options: argparse.Namespace) -> dict[str, Any]:
    """Mean time of a step, then of its parts, and the peak memory of all."""
    if options.threads:
        torch.set_num_threads(options.threads)
    stage, size = case.split("_")
    prepare = {"static": static_steps, "dynamic": dynamic_steps}[stage]
    state, steps, module = prepare(int(size), device, options.priors, WARM_UP + 2 * options.steps)
    take(steps, WARM_UP)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    milliseconds = timed(device, lambda: take(steps, options.steps)) / options.steps
    with stopwatches(state, module, device) as spent:
        whole = timed(device, lambda: take(steps, options.steps)) / options.steps
    parts = {name: spent[name] / options.steps for name in PARTS[:-1]}
    parts["rest"] = whole - sum(parts.values())
    about = provenance(device)
    return {
        "case": case, "ms": round(milliseconds, 2), "parts_ms": {name: round(ms, 2) for name, ms in parts.items()},
        **memory(device), "device": about["device"], "torch": torch.__version__, "threads": about["threads"],
        "steps": options.steps, "commit": commit(), "date": about["date"],
    }  # fmt: skip


def static_steps(size: int, device: str, priors: Path, steps: int) -> tuple[State, Iterator[StepReport], Any]:
    settings = replace(BUILTIN.static, steps=steps, resolution=Constant(size))
    torch.manual_seed(0)
    scene = Scene(BUILTIN.scene).to(device)
    state = static.start_static(scene, seed=0, occupancy=OccupancyGrid().to(device))
    shared: Shared = {}
    image = StableDiffusion.load(priors / "image", device=device, shared=shared)
    multiview = MVDream.load(
        priors / "multiview", priors / "image", views=settings.views, device=device, shared=shared
    )  # fmt: skip
    reports = static.fit_static(
        state, image_prior=image, multiview_prior=multiview, prompt=PROMPT, settings=settings
    )  # fmt: skip
    return state, reports, static


def dynamic_steps(size: int, device: str, priors: Path, steps: int) -> tuple[State, Iterator[StepReport], Any]:
    settings = replace(BUILTIN.dynamic, steps=steps, height=Constant(size), width=Constant(size))
    settings = replace(settings, levels=Constant(BUILTIN.deformation.levels))  # all on, as for most of the stage
    torch.manual_seed(0)
    scene = Scene(BUILTIN.scene)
    scene.add_deformation(BUILTIN.deformation)
    state = dynamic.start_dynamic(scene.to(device), seed=0, occupancy=OccupancyGrid().to(device))
    video = TextToVideo.load(
        priors / "video", priors / "image", frames=BUILTIN.priors.video_frames, device=device
    )  # fmt: skip
    return state, dynamic.fit_dynamic(state, video_prior=video, prompt=PROMPT, settings=settings), dynamic


def take(steps: Iterator[StepReport], count: int) -> None:
    for _ in range(count):
        next(steps)


def timed(device: str, work: Callable[[], Any]) -> float:
    """Milliseconds until the device has done `work`."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return 1000 * (time.perf_counter() - start)


def wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


@contextmanager
def stopwatches(state: State, module: Any, device: str) -> Iterator[dict[str, float]]:
    """Milliseconds by part of the steps inside. Waiting for the device after each part costs a GPU some speed."""
    spent: dict[str, float] = defaultdict(float)

    def watched(function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            results: list[Any] = []
            spent[part] += timed(device, lambda: results.append(function(*arguments, **options)))
            return results[0]

        return call

    places: list[tuple[Any, str, str]] = [
        (state.occupancy, "update", "occupancy"),
        (module, "render", "render"),
        (torch.Tensor, "backward", "backward"),
        (state.optimizer, "step", "optimiser"),
    ]
    names = ("encode", "sds_loss", "reconstruction_loss", "video_reconstruction_loss")
    places += [(owner, name, "guidance") for owner in (module, guidance) for name in names if hasattr(owner, name)]
    with ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(patch.object(owner, name, watched(getattr(owner, name), part)))
        yield spent


def memory(device: str) -> dict[str, float]:
    """Peaks in GiB: of a GPU what tensors took and what torch had reserved, else of the process."""
    gib = 2**30
    if device.startswith("cuda"):
        return {
            "peak_gib": round(torch.cuda.max_memory_allocated() / gib, 3),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / gib, 3),
        }
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / gib, 3)}


if __name__ == "__main__":
    raise SystemExit(main())
