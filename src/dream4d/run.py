"""The run folder: all that a run leaves behind, written so that it can be stopped at any moment and started again.

``config.yaml`` reruns the job, ``metrics.jsonl`` has a line for every logged step, ``checkpoints/`` the latest two
states of each stage, ``previews/`` contact sheets, ``static.safetensors`` the scene between the stages,
``scene.safetensors`` the result and ``video.mp4`` a look at it. ``picture.png`` and ``cutout.png`` are what a run from
a picture goes by. ``pytorch_lora_weights.safetensors`` is the result of personalising; ``subject/`` is the run of that
inside another.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dream4d.files import atomic

if TYPE_CHECKING:
    from torch import Tensor

_RESULTS = (
    "config.yaml", "metrics.jsonl", "static.safetensors", "scene.safetensors", "sheet.png", "video.mp4", "picture.png",
    "cutout.png", "pytorch_lora_weights.safetensors",
)
_FOLDERS = ("checkpoints", "previews", "subject")
_HARMLESS = ("device", "memory", "priors.chunk")  # a run may go on with another value of these


class Run:
    """One job in one folder, which no other process may use at the same time."""

    KEEP = 2
    """Checkpoints of a stage that are kept."""

    def __init__(self, folder: str | Path, config: Mapping[str, Any], *, overwrite: bool = False):
        """Create the folder, or go on with the same job in it.

        config: the whole job in plain values. overwrite: drop the run that is there.

        Raises ValueError where the folder holds another job or foreign files, is used by another process or cannot be
        written; nothing has changed in it then.
        """
        self.folder = Path(folder)
        try:
            self._check_job(config, overwrite)
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
            self._lock = _lock(self.folder)
        except OSError as error:
            raise ValueError(f"cannot write to {self.folder}: {error.strerror}; choose another --out") from None
        if overwrite:
            _clear(self.folder)
        for leftover in self.folder.rglob(".tmp-*"):
            leftover.unlink()
        if not (self.folder / "config.yaml").exists():
            with atomic(self.folder / "config.yaml") as file:
                file.write_text(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")

    @property
    def static_scene(self) -> Path:
        return self.folder / "static.safetensors"

    @property
    def scene(self) -> Path:
        return self.folder / "scene.safetensors"

    @property
    def picture(self) -> Path:
        return self.folder / "picture.png"

    @property
    def cutout(self) -> Path:
        return self.folder / "cutout.png"

    @property
    def sheet(self) -> Path:
        return self.folder / "sheet.png"

    @property
    def video(self) -> Path:
        return self.folder / "video.mp4"

    @property
    def lora(self) -> Path:
        return self.folder / "pytorch_lora_weights.safetensors"

    @property
    def subject(self) -> Path:
        return self.folder / "subject"

    def preview(self, stage: str, step: int) -> Path:
        return self.folder / "previews" / f"{stage}-{step:06d}.png"

    def log(self, stage: str, step: int, **values: float) -> None:
        """Append one line to ``metrics.jsonl``."""
        with (self.folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "step": step} | values) + "\n")

    def save_checkpoint(self, stage: str, step: int, tensors: dict[str, Tensor]) -> None:
        """`tensors` as the state of `stage` after `step` steps; checkpoints before the latest two go."""
        from safetensors.torch import save_file

        with atomic(self.folder / "checkpoints" / f"{stage}-{step:06d}.safetensors") as file:
            save_file(tensors, file, metadata={"stage": stage, "step": str(step)})
        for old in self._checkpoints(stage)[: -self.KEEP]:
            old.unlink()

    def load_checkpoint(self, stage: str) -> dict[str, Tensor] | None:
        """The latest state of `stage`, None if there is none; ``metrics.jsonl`` goes back to it."""
        from safetensors.torch import load_file

        checkpoints = self._checkpoints(stage)
        self._forget_metrics(stage, after=_step(checkpoints[-1]) if checkpoints else 0)
        return load_file(checkpoints[-1]) if checkpoints else None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)  # other processes may use the folder

    def _checkpoints(self, stage: str) -> list[Path]:
        return sorted((self.folder / "checkpoints").glob(f"{stage}-*.safetensors"), key=_step)

    def _forget_metrics(self, stage: str, after: int) -> None:
        file = self.folder / "metrics.jsonl"
        if not file.exists():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
            if not line.endswith("\n"):
                continue  # the process died while it wrote this line
            entry = json.loads(line)
            if entry["stage"] != stage or entry["step"] < after:
                kept.append(line)
        with atomic(file) as fresh:
            fresh.write_text("".join(kept), encoding="utf-8")

    def _check_job(self, config: Mapping[str, Any], overwrite: bool) -> None:
        there = self.folder / "config.yaml"
        if not self.folder.exists():
            return
        if not there.exists():
            foreign = sorted(p.name for p in self.folder.iterdir() if not p.name.startswith("."))
            if foreign:
                raise ValueError(f"{self.folder} is not a run but has {foreign[0]} in it: choose another --out")
        elif not overwrite and (different := _differences(read_config(self.folder), config)):
            raise ValueError(
                f"{self.folder} holds a run with {', '.join(different[:3])}{', ...' if different[3:] else ''}: "
                "choose another --out, or --overwrite to drop that run"
            )


def read_config(folder: str | Path) -> dict[str, Any]:
    """``config.yaml`` of a run folder. Raises ValueError where it is missing or broken."""
    file = Path(folder) / "config.yaml"
    if not file.is_file():
        raise ValueError(f"{folder} is not a run folder: it has no config.yaml")
    return read_yaml(file)


def read_yaml(file: str | Path) -> dict[str, Any]:
    """A YAML file that holds one mapping. Raises ValueError where it does not."""
    try:
        values = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{file}: expected `key: value` lines")
    return values


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def slug(prompt: str) -> str:
    """A folder name: "A red cat, waving!" -> "a-red-cat-waving"."""
    return re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")[:60].strip("-") or "run"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What the run there has, and what was asked for, of every setting in which they differ."""
    old, new = flatten(before), flatten(now)
    names = [name for name in {**old, **new} if name not in _HARMLESS and old.get(name) != new.get(name)]
    return [f"{name} {old.get(name)!r} (now {new.get(name)!r})" for name in names]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.rsplit("-", 1)[1])


def _clear(folder: Path) -> None:
    """Remove what a run writes, and nothing else."""
    for name in _FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in _RESULTS:
        (folder / name).unlink(missing_ok=True)


def _lock(folder: Path) -> int:
    """A descriptor whose lock the system drops when the process ends, however it ends."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    if sys.platform != "win32":
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise ValueError(f"another process is at work in {folder}: wait for it, or choose another --out") from None
    return descriptor
