"""Table 1 of the paper without people: every sentence by every variant of the method, measured and compared.

Runs go to ``<out>/<variant>/<sentence>-<seed>/``, where the preference study finds them, too; each has an
``evaluation.json`` beside its scene. Several processes share the work, on as many GPUs as there are. What is finished
is not repeated, whenever the same command is called.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

from dream4d.files import atomic
from dream4d.presets import ABLATIONS, Preset, ablate, to_mapping
from dream4d.progress import track
from dream4d.run import slug

OURS = "ours"
VARIANTS = (OURS, *ABLATIONS)
TRIES = 3
"""Starts of a run whose process dies, or dies with that of a run beside it."""


@dataclass(frozen=True)
class Job:
    """One run. static: a scene file; the static stage takes that instead of training, if it is there by then. recipe:
    in place of `recipes.text_to_4d`; it is called with prompt, settings and out."""

    variant: str
    prompt: str
    seed: int
    folder: Path
    settings: Preset
    static: Path | None = None
    recipe: Callable[..., Any] | None = None

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


@dataclass(frozen=True)
class Outcome:
    """row: as `runs.evaluate` gives it, None where the run failed; error: why, in a line."""

    job: Job
    row: dict[str, Any] | None = None
    error: str = ""


def jobs(
    prompts: Sequence[str], settings: Preset, out: str | Path, *, variants: Sequence[str] = VARIANTS, seeds: int = 2
) -> list[Job]:
    """All runs, those first from which others take their static scene: where only the motion is another.

    Raises ValueError for unknown variants, and where there is nothing to do.
    """
    if not prompts or not variants or seeds < 1:
        raise ValueError(f"{len(prompts)} sentences, {len(variants)} variants, {seeds} seeds: at least one of each")
    by_variant = {name: settings if name == OURS else ablate(settings, name) for name in dict.fromkeys(variants)}
    made = []
    for variant, preset in by_variant.items():
        for seed in range(settings.seed, settings.seed + seeds):
            for prompt in dict.fromkeys(prompts):
                name = f"{slug(prompt)}-{seed}"
                shared = variant != OURS and OURS in by_variant and same_static_stage(settings, preset)
                static = Path(out) / OURS / name / "static.safetensors" if shared else None
                made.append(Job(
                    variant, prompt, seed, Path(out) / variant / name, replace(preset, seed=seed), static
                ))
    return sorted(made, key=lambda job: job.static is not None)


def same_static_stage(one: Preset, other: Preset) -> bool:
    """Whether the static stages of two presets are the same."""
    motion = {"dynamic", "deformation", "output", "device", "memory"}
    a, b = ({key: value for key, value in to_mapping(each).items() if key not in motion} for each in (one, other))
    return a == b


def run_all(todo: Sequence[Job], *, workers: int = 0, threads: int = 0) -> Iterator[Outcome]:
    """Make and measure all runs; outcomes come as they are ready.

    workers: processes at a time; 0: one for each GPU, or one. threads: of each on a CPU; 0: the cores are divided,
    since threads that have to share one wait for each other. A run whose process dies, for want of memory say, is
    started again, up to `TRIES` times.
    """
    gpus = visible_gpus(todo[0].settings.device) if todo else []
    workers = min(workers or max(1, len(gpus)), max(1, len(todo)))
    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    waiting, starts = deque(todo), {job.folder: 0 for job in todo}
    while waiting:  # with a new pool whenever a process died, which takes the whole pool with it
        with _pool(workers, gpus, threads) as pool:
            running: dict[Future[Outcome], Job] = {}
            broken = False
            try:
                while running or (waiting and not broken):
                    while waiting and not broken and len(running) < workers:
                        job = waiting.popleft()
                        running[pool.submit(_work, job)] = job
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        job = running.pop(future)
                        try:
                            yield future.result()
                        except BrokenProcessPool:  # by this job, or by one beside it
                            broken = True
                            starts[job.folder] += 1
                            if starts[job.folder] < TRIES:
                                waiting.append(job)
                            else:
                                yield Outcome(job, error=f"its process died; see {job.log}")
            except BaseException:
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                raise


def visible_gpus(device: str) -> list[str]:
    """What CUDA_VISIBLE_DEVICES may say to a process, where there are several GPUs to choose from."""
    import torch

    if device not in ("auto", "cuda") or torch.cuda.device_count() < 2:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]


def _pool(workers: int, gpus: Sequence[str], threads: int) -> ProcessPoolExecutor:
    context = get_context("spawn")  # CUDA does not survive a fork
    places: Queue[str | None] = context.Queue()
    for worker in range(workers):
        places.put(gpus[worker % len(gpus)] if gpus else None)
    return ProcessPoolExecutor(workers, mp_context=context, initializer=_settle, initargs=(places, threads))


def _settle(places: Queue[str | None], threads: int) -> None:
    """In a new process, before it touches a GPU."""
    gpu = places.get()
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    if threads:
        import numba
        import torch

        torch.set_num_threads(threads)
        numba.set_num_threads(min(threads, numba.get_num_threads()))


def _work(job: Job) -> Outcome:
    """In a worker: make the run, unless it is finished, and measure it. What it prints goes to its log."""
    from dream4d import recipes

    job.folder.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("a", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        try:
            started = time.monotonic()
            recipe = job.recipe or partial(recipes.text_to_4d, static=job.static)
            recipe(prompt=job.prompt, settings=job.settings, out=job.folder)
            print(f"made in {time.monotonic() - started:.1f} s")
            return Outcome(job, measured(job.folder, job.settings.device))
        except Exception as error:
            traceback.print_exc(file=log)
            return Outcome(job, error=" ".join(str(error).split()) or type(error).__name__)


def measured(folder: Path, device: str) -> dict[str, Any]:
    """A finished run's row of `runs.evaluate`, kept in its ``evaluation.json`` as long as its scene is not newer."""
    from dream4d.evaluate import runs

    file, scene = folder / "evaluation.json", folder / "scene.safetensors"
    if file.exists() and file.stat().st_mtime >= scene.stat().st_mtime:
        kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if set(kept["metrics"]) <= set(runs.METRICS):
            return kept
    row: dict[str, Any] = runs.evaluate([folder], device=device)["rows"][0]
    with atomic(file) as fresh:
        fresh.write_text(json.dumps(row, indent=1), encoding="utf-8")
    return row


def ablation(
    prompts: Sequence[str], settings: Preset, out: str | Path, *, variants: Sequence[str] = VARIANTS, seeds: int = 2,
    workers: int = 0, threads: int = 0,
) -> tuple[list[Outcome], list[Outcome]]:
    """What `jobs` lists, with a progress bar: the runs that were measured and those that failed."""
    todo = jobs(prompts, settings, out, variants=variants, seeds=seeds)
    done = list(track(run_all(todo, workers=workers, threads=threads), "ablate", len(todo)))
    order = {job.folder: index for index, job in enumerate(todo)}
    done.sort(key=lambda outcome: order[outcome.job.folder])
    for outcome in done:
        if outcome.row is None:
            print(f"failed: {outcome.job.folder}: {outcome.error}", file=sys.stderr)
    return [outcome for outcome in done if outcome.row], [outcome for outcome in done if outcome.row is None]


def figure(outcomes: Sequence[Outcome], out: str | Path, *, sentences: int = 3, size: int = 96) -> Path:
    """The variants of some sentences below each other: four sides at time 0, then four moments. Returns the PNG."""
    import numpy as np

    from dream4d.evaluate.footage import photograph
    from dream4d.loading import pick_device
    from dream4d.media import caption, contact_sheet, stack, write_png
    from dream4d.scene import Scene

    sides, moments = (0.0, 90.0, 180.0, 270.0), (0.2, 0.4, 0.6, 0.8)
    shots = [*((0.0, side) for side in sides), *((moment, 20.0) for moment in moments)]
    labels = [*(f"{side:.0f} deg" for side in sides), *(f"time {moment}" for moment in moments)]
    sheets = []
    for prompt in list(dict.fromkeys(outcome.job.prompt for outcome in outcomes))[:sentences]:
        first = {outcome.job.variant: outcome.job for outcome in reversed(outcomes) if outcome.job.prompt == prompt}
        names = [name for name in dict.fromkeys(outcome.job.variant for outcome in outcomes) if name in first]
        pictures = []
        for name in names:
            scene = Scene.load(first[name].folder / "scene.safetensors").to(pick_device(first[name].settings.device))
            pictures.append(photograph(scene, shots, size=size, grey=0.9).rgb.clamp(0, 1).cpu().numpy())
        sheets.append(caption(contact_sheet(np.stack(pictures), labels, names), prompt))
    write_png(out, stack(sheets))
    return Path(out)


def values_of(outcomes: Sequence[Outcome]) -> Mapping[str, Mapping[tuple[str, int], Mapping[str, float]]]:
    """variant -> (prompt, seed) -> metrics."""
    values: dict[str, dict[tuple[str, int], Mapping[str, float]]] = {}
    for job, row in ((outcome.job, outcome.row) for outcome in outcomes):
        if row is not None:
            values.setdefault(job.variant, {})[job.prompt, job.seed] = row["metrics"]
    return values
