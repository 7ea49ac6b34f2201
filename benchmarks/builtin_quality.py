"""Are the 4D scenes of the built-in priors what their sentences say?

Runs `dream4d generate` for combinations that no prior was trained on, renders each scene from all sides and at several
times, and counts how often the toy world's judge reads what the sentence says. The judge's readings of exact
drawings of the same toys stand beside it: nothing can be expected to score higher. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import RESULTS, ROOT, print_table, provenance, write_json
from torch import Tensor

from dream4d import loading, recipes
from dream4d.evaluate.ablate import visible_gpus
from dream4d.evaluate.footage import CLIP_FRAMES, CLIPS, GREY, SIZE, STILLS, photograph
from dream4d.evaluate.toy import drawing, prop_pixels, read
from dream4d.film import AROUND, THROUGHOUT
from dream4d.media import caption, contact_sheet, write_png
from dream4d.run import slug
from dream4d.scene import Scene
from dream4d.toyworld.grammar import Combination, evaluation_combinations, sentence

COUNTED = ("kind", "colour", "prop", "azimuth", "clips", "motion", "scene")


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    combinations = evaluation_combinations(options.scenes)
    if not options.score_only:
        run_all(combinations, options)
    from dream4d.toyworld.judge import Judge

    device = str(loading.pick_device(options.device))
    if options.threads:
        torch.set_num_threads(options.threads * options.workers)
    judge = Judge.load(options.judge, device=device)
    return report(combinations, judge, device, options)


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Options after -- go to `dream4d generate`, e.g. -- --static.steps 100",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "builtin_quality", help="folder of the runs")
    parser.add_argument("--json", type=Path, default=RESULTS / "builtin_quality.json", help="where the numbers go")
    parser.add_argument("--scenes", type=int, default=20, help="how many combinations")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, default=0, help="torch's threads in each run; 0: torch decides")
    parser.add_argument("--time-limit", type=float, default=float("inf"), help="seconds after which no run is started")
    parser.add_argument("--score-only", action="store_true", help="score the runs that are there")
    parser.add_argument("--judge", type=Path, default=None, help="folder of the judge; the package's by default")
    parser.add_argument("--variations", type=int, default=2, help="toys of each combination that the judge reads drawn")
    arguments = list(sys.argv[1:] if argv is None else argv)
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser.parse_args(arguments[:cut])
    options.generate = arguments[cut + 1 :]
    return options


# Runs


def run_all(combinations: Sequence[Combination], options: argparse.Namespace) -> None:
    """Every run that is not finished, `workers` at a time, each a process of its own, spread over the GPUs."""
    started = time.monotonic()
    todo = [combination for combination in combinations if not finished(folder_of(options.out, combination))]
    gpus = visible_gpus(options.device)

    def run(number: int) -> None:
        if time.monotonic() - started < options.time_limit:
            run_one(todo[number], options, gpus[number % len(gpus)] if gpus else None)

    with ThreadPoolExecutor(options.workers) as pool:
        list(pool.map(run, range(len(todo))))


def run_one(combination: Combination, options: argparse.Namespace, gpu: str | None) -> None:
    """`dream4d generate`, its output in a log beside the run folder, its time and exit code in runs.jsonl."""
    prompt, folder = sentence(combination), folder_of(options.out, combination)
    command = [
        sys.executable,
        "-m",
        "dream4d",
        "generate",
        prompt,
        "--out",
        str(folder),
        "--seed",
        str(options.seed),
        "--device",
        options.device,
        *options.generate,
    ]
    threads = {"OMP_NUM_THREADS": str(options.threads), "MKL_NUM_THREADS": str(options.threads)}
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": path} | (threads if options.threads else {})
    environment |= {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    started = time.monotonic()
    with log_of(folder).open("a", encoding="utf-8") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
    seconds = time.monotonic() - started
    with (options.out / "runs.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"run": folder.name, "seconds": round(seconds, 1), "code": code}) + "\n")
    print(f"{prompt}: {'done' if code == 0 else f'FAILED with code {code}'} after {seconds:.0f} s", flush=True)


def folder_of(out: Path, combination: Combination) -> Path:
    return out / slug(sentence(combination))


def log_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.log")


def finished(folder: Path) -> bool:
    return (folder / "scene.safetensors").exists() and (folder / "video.mp4").exists()


def seconds_of(out: Path) -> dict[str, float]:
    """The time of each run, all its starts together."""
    total: Counter[str] = Counter()
    file = out / "runs.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        entry = json.loads(line)
        total[entry["run"]] += entry["seconds"]
    return dict(total)


def why_not(folder: Path) -> str:
    """Why there is no scene to score."""
    if not log_of(folder).exists():
        return "not started"
    lines = [line for line in log_of(folder).read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "failed: " + (lines[-1].strip() if lines else "no output")


# Scores


def score(judge: Any, combination: Combination, stills: Tensor, clips: Tensor, visible: Tensor) -> dict[str, Any]:
    """Readings that agree with the sentence, (right, of) by name, and the commonest readings.

    stills: of STILLS. clips: of CLIPS, one after the other. visible: [stills], the prop's pixels.
    """
    right, commonly = read(judge, combination, stills, clips.unflatten(0, (-1, CLIP_FRAMES)), visible)
    right["clips"] = right.pop("motion")
    counts = {name: (int(values.sum()), len(values)) for name, values in right.items()}
    counts["motion"] = (int(majority(counts["clips"])), 1)
    counts["scene"] = (int(all(majority(counts[name]) for name in ("kind", "colour", "prop", "clips"))), 1)
    return {**counts, "read": commonly}


def majority(count: tuple[int, int]) -> bool:
    right, of = count
    return 2 * right > of


def add(scores: Sequence[dict[str, Any]]) -> dict[str, tuple[int, int]]:
    """The counts of several scores together."""
    return {name: (sum(s[name][0] for s in scores), sum(s[name][1] for s in scores)) for name in COUNTED}


def score_scene(
    judge: Any, combination: Combination, folder: Path, device: str, visible: Tensor
) -> tuple[dict[str, Any], Tensor]:
    """A finished run's score and its stills, [times, azimuths, SIZE, SIZE, 3]; its contact sheet is written beside."""
    scene = Scene.load(folder / "scene.safetensors").to(device)
    pictures = photograph(scene, STILLS + CLIPS, samples_of(folder)).rgb.clamp(0, 1)
    stills, clips = pictures[: len(STILLS)], pictures[len(STILLS) :]
    grid = stills.unflatten(0, (len(THROUGHOUT), len(AROUND))).cpu()
    sides, moments = [f"{azimuth:.0f} deg" for azimuth in AROUND], [f"time {time:.1f}" for time in THROUGHOUT]
    write_png(folder.with_name(f"{folder.name}.png"), contact_sheet(grid, sides, moments))
    return score(judge, combination, stills, clips, visible), grid


def score_drawings(
    judge: Any, combination: Combination, device: str, visible: Tensor, *, variations: int, seed: int
) -> dict[str, Any]:
    """What the judge makes of exact drawings."""
    generator = torch.Generator().manual_seed(seed)
    scores = []
    for _ in range(variations):
        pictures = drawing(combination, STILLS + CLIPS, device, generator)
        scores.append(score(judge, combination, pictures[: len(STILLS)], pictures[len(STILLS) :], visible))
    return add(scores)


# Report


def report(combinations: Sequence[Combination], judge: Any, device: str, options: argparse.Namespace) -> int:
    """Score everything, print the table, write JSON and sheets. 1 if a run is missing, else 0."""
    seconds, rows, grids = seconds_of(options.out), [], []
    for index, combination in enumerate(combinations):
        folder = folder_of(options.out, combination)
        row: dict[str, Any] = {"prompt": sentence(combination), "seconds": seconds.get(folder.name)}
        visible = prop_pixels(combination, STILLS, device)
        row["drawn"] = score_drawings(judge, combination, device, visible, variations=options.variations, seed=index)
        if (folder / "scene.safetensors").exists():
            row["score"], grid = score_scene(judge, combination, folder, device, visible)
            row["status"] = "done"
        else:
            row["status"], grid = why_not(folder), torch.full((len(THROUGHOUT), len(AROUND), SIZE, SIZE, 3), GREY)
        rows.append(row)
        grids.append(grid)
    done = [row["score"] for row in rows if row["status"] == "done"]
    total, drawn = add(done), add([row["drawn"] for row in rows])
    show(rows, total, drawn)
    write_png(options.out / "overview.png", overview(grids, [row["prompt"] for row in rows]))
    print(options.out / "overview.png")
    write_json(
        options.json,
        {
            **provenance(device),
            "seed": options.seed,
            "generate": options.generate,
            "scored": len(done),
            "of": len(rows),
            "total": total,
            "drawn": drawn,
            "rows": rows,
        },
    )
    return int(len(done) < len(rows))


def samples_of(folder: Path) -> int:
    return int(recipes.read_config(folder)["dynamic"]["samples_per_ray"])


def show(rows: Sequence[dict[str, Any]], total: dict[str, Any], drawn: dict[str, Any]) -> None:
    """(right of seen) for each scene; shares for the total and for the judge on drawings."""
    table = []
    for row in rows:
        if row["status"] == "done":
            marks = [f"{row['score'][name][0]}/{row['score'][name][1]}" for name in COUNTED[:-2]]
            marks += ["yes" if row["score"][name][0] else row["score"]["read"].get(name, "no") for name in COUNTED[-2:]]
        else:
            marks = ["failed" if row["status"].startswith("failed") else "-"] * len(COUNTED)
        table.append([row["prompt"], *marks, "" if row["seconds"] is None else f"{row['seconds']:.0f}"])
    scored = sum(row["status"] == "done" for row in rows)
    times = [row["seconds"] for row in rows if row["status"] == "done" and row["seconds"] is not None]
    mean = f"{sum(times) / len(times):.0f}" if times else ""
    table.append([f"all of {scored} scenes ({len(rows) - scored} missing)", *map(share, total.values()), mean])
    table.append(["the judge on exact drawings", *map(share, drawn.values()), ""])
    print_table(["scene", *COUNTED, "seconds"], table)
    for row in rows:
        if row["status"] != "done":
            print(f"{row['prompt']}: {row['status']}")


def share(count: tuple[int, int]) -> str:
    right, of = count
    return f"{100 * right / of:.1f}%" if of else "-"


def overview(grids: Sequence[Tensor], prompts: Sequence[str]) -> np.ndarray[Any, Any]:
    """A row for each scene: four sides at one moment, then four moments from one side; its sentence above the row."""
    sides, moments = (0, 2, 4, 6), (1, 2, 3, 4)
    labels = [f"{AROUND[i]:.0f} deg" for i in sides] + [f"time {THROUGHOUT[i]:.1f}" for i in moments]
    strips = []
    for grid, prompt in zip(grids, prompts, strict=True):
        images = torch.stack([*(grid[0, i] for i in sides), *(grid[i, 1] for i in moments)])[None]
        strips.append(caption(contact_sheet(images, labels), prompt))
    return np.concatenate(strips)


if __name__ == "__main__":
    raise SystemExit(main())
