"""What this machine has and what will run on it: GPU, memory, disk, versions, models, and the plans that fit."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from dream4d.loading import BUILTIN_PRIORS, pick_device
from dream4d.plans import GIB, PLANS, SPARE, WEIGHTS, Plan, choose, dynamic_need, static_need
from dream4d.presets import PRESETS, Preset
from dream4d.priors.hub import locate
from dream4d.settings import PriorSettings

PACKAGES = ("dream4d", "torch", "triton", "diffusers", "transformers", "numba", "numpy")
MODELS = {"static": ("image", "multiview"), "dynamic": ("video",)}
SIZES = {"image": (512, 512), "multiview": (256, 256), "video": (320, 576)}
"""Of the images of the paper's models."""
BUILTIN_SIZE, BUILTIN_DOWNSAMPLING = (64, 64), 4
ROOM = 5.0
"""GiB that a run folder may take, checkpoints included."""


@dataclass(frozen=True)
class Finding:
    """A line of the report. good: None where there is nothing to judge. remedy: what to do unless it is good."""

    what: str
    found: str
    good: bool | None = None
    remedy: str = ""

    def __str__(self) -> str:
        return self.found if self.good or not self.remedy else f"{self.found}: {self.remedy}"


@dataclass(frozen=True)
class Fit:
    """GiB that the models of a preset's stage and a step by each plan need together, and the plan that `auto` takes:
    None where none fits."""

    preset: str
    stage: str
    needs: dict[str, float]
    plan: str | None


def report(device: str = "auto", folder: str | Path = ".") -> str:
    """All of it as text. folder: where runs shall go.

    Raises ValueError for a device that this machine lacks.
    """
    chosen = pick_device(device)
    free = _free(chosen)
    parts = [
        _section("machine", machine(chosen, Path(folder))), _section("versions", versions()),
        _section("models", models(PRESETS)),
        _plans([fit for name in PRESETS for fit in fits(name, PRESETS[name], free)], chosen, free),
    ]  # fmt: skip
    return "\n\n".join(parts)


def machine(device: torch.device, folder: Path) -> list[Finding]:
    findings = [Finding("system", f"{platform.system()} {platform.release()}, {os.cpu_count()} CPU cores")]
    if memory := _main_memory():
        findings.append(Finding("memory", f"{memory:.0f} GiB", memory >= 4, "the built-in models need 4 GiB"))
    disk = shutil.disk_usage(next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists()))
    findings.append(Finding(
        "disk", f"{disk.free / GIB:.0f} GiB free for {folder.resolve()}", disk.free >= ROOM * GIB,
        f"a run may take {ROOM:.0f} GiB: choose another --out",
    ))  # fmt: skip
    if device.type != "cuda":
        found = "not asked for" if torch.cuda.is_available() else "torch sees none"
        return [*findings, Finding("GPU", found, None, "the built-in models run on a CPU, the paper's need a GPU")]
    about = torch.cuda.get_device_properties(device)
    modern = (about.major, about.minor) >= (8, 0)
    return [*findings, Finding(
        "GPU", f"{about.name}, {_free(device):.1f} of {about.total_memory / GIB:.1f} GiB free", modern,
        "kernels are made for compute capability 8.0 and more",
    )]  # fmt: skip


def versions() -> list[Finding]:
    findings = [Finding("python", platform.python_version())]
    for name in PACKAGES:
        found = _version(name)
        needed = name != "triton"
        remedy = f"pip install {name}" if needed else "GPUs take slower ways without it"
        findings.append(Finding(name, found or "not installed", bool(found) or (False if needed else None), remedy))
    cuda = torch.version.cuda
    return [*findings, Finding("CUDA of torch", cuda or "none: a build for CPUs")]


def models(presets: Mapping[str, Preset]) -> list[Finding]:
    """Whether those that the presets name are there, and what their files take."""
    users: dict[tuple[str, str], list[str]] = {}
    for preset, settings in presets.items():
        for kind in ("image", "multiview", "video"):
            users.setdefault((kind, getattr(settings.priors, kind)), []).append(preset)
    findings = []
    for (kind, name), who in users.items():
        place = _place(kind, name)
        found = f"not here, for {' and '.join(who)}" if place is None else f"{place}, {_size(place):.2f} GiB"
        findings.append(Finding(f"{kind}: {name}", found, place is not None, f"dream4d models fetch {name}"))
    return findings


def fits(name: str, preset: Preset, free: float) -> list[Fit]:
    """Of each stage. free: GiB of memory. Sizes are those of the preset's own models."""
    results = []
    for stage, kinds in MODELS.items():
        weights = sum(_weights(preset.priors, kind) for kind in kinds)
        builtin = getattr(preset.priors, kinds[0]) == "builtin"
        if not builtin:
            weights += WEIGHTS["text"] + WEIGHTS["autoencoder"]
        needs = {plan.name: weights + _step(plan, stage, preset, builtin) for plan in PLANS}
        plan = choose(lambda plan, needs=needs: needs[plan.name], free)  # type: ignore[misc]
        results.append(Fit(name, stage, needs, plan.name if needs[plan.name] <= SPARE * free else None))
    return results


def _step(plan: Plan, stage: str, preset: Preset, builtin: bool) -> float:
    """GiB beside the models."""
    downsampling = BUILTIN_DOWNSAMPLING if builtin else 8
    sizes = [BUILTIN_SIZE if builtin else SIZES[kind] for kind in MODELS[stage]]
    if stage == "static":
        return static_need(plan, preset.static, sizes, downsampling=downsampling) / GIB
    frames = preset.priors.video_frames
    return dynamic_need(plan, preset.dynamic, frames=frames, size=sizes[0], downsampling=downsampling) / GIB


def _place(kind: str, name: str) -> Path | None:
    """Folder or file of a model that is here."""
    if name == "builtin":
        return BUILTIN_PRIORS / kind if (BUILTIN_PRIORS / kind).is_dir() else None
    return path if (path := Path(name).expanduser()).exists() else locate(name)


def _weights(priors: PriorSettings, kind: str) -> float:
    """GiB in memory: of the built-in models' files, else of the paper's models."""
    place = _place(kind, "builtin")
    return _size(place) if getattr(priors, kind) == "builtin" and place else WEIGHTS[kind]


def _size(folder: Path) -> float:
    files = [folder] if folder.is_file() else [file for file in folder.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / GIB


def _free(device: torch.device) -> float:
    """GiB of a GPU, infinite for a CPU."""
    return torch.cuda.mem_get_info(device)[0] / GIB if device.type == "cuda" else float("inf")


def _main_memory() -> float | None:
    """GiB, None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (AttributeError, ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _section(title: str, findings: Sequence[Finding]) -> str:
    marks = {True: "ok", False: "!!", None: ""}
    rows = [(each.what, marks[each.good], str(each)) for each in findings]
    return "\n".join([title.upper(), *_columns(rows)])


def _plans(results: Iterable[Fit], device: torch.device, free: float) -> str:
    """Which plan each stage of each preset will take, and GiB of all plans."""
    on_gpu = device.type == "cuda"
    rows = [("preset", "stage", *(plan.name for plan in PLANS), "on this machine")]
    for fit in results:
        if on_gpu:
            verdict = f"fits, --memory {fit.plan}" if fit.plan else "does not fit"
        else:
            verdict = "runs" if fit.preset == "builtin" else "needs a GPU"
        rows.append((fit.preset, fit.stage, *(f"{fit.needs[plan.name]:.1f}" for plan in PLANS), verdict))
    room = f", of which {free:.1f} are free" if on_gpu else ""
    return "\n".join([f"WHAT FITS (GiB of GPU memory by memory plan, estimates{room})", *_columns(rows)])


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
