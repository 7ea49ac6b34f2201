"""Getting a repository's files from the Hugging Face hub, and what its library's errors mean."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dream4d.priors.catalogue import Source
from dream4d.priors.errors import ModelError
from dream4d.priors.weights import check_file, choose_weights

FOLDERS = (
    "unet", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder", "camera_proj", "clip_camera_projection",
    "cc_projection",
)
"""The parts that any model here is made of; nothing else of a repository is fetched."""

WITH_WEIGHTS = tuple(folder for folder in FOLDERS if folder not in ("tokenizer", "scheduler"))

_OTHER = "name a local folder or another repository instead"


def download(source: Source, revision: str, *, full: bool = False) -> None:
    """What is needed of a repository, into the cache of the hub's library; it goes on where it was stopped.

    full: full precision where there are two. Raises ModelError, and ValueError where there is no room.
    """
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        """Of bytes; a line now and then where stderr is no terminal."""

        def __init__(self, *arguments: Any, **options: Any):
            pace = 0.1 if sys.stderr.isatty() else 10.0
            super().__init__(*arguments, **options | {"disable": False, "mininterval": pace})  # type: ignore[no-untyped-call]

    with _translated(source.repo, revision):
        info = HfApi().model_info(source.repo, revision=revision, files_metadata=True, timeout=20)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    names = [source.file] if source.file else choose_files(sizes, half=not full)
    if missing := [name for name in names or ["unet/config.json"] if name not in sizes]:
        raise ModelError("wrong", f"{source.repo} has no {missing[0]}: it is another kind of model; {_OTHER}")
    here = {name for name in names if isinstance(try_to_load_from_cache(source.repo, name, revision=revision), str)}
    _check_space(source.repo, sum(sizes[name] for name in names if name not in here))
    for name in names:
        with _translated(source.repo, revision):
            file = Path(hf_hub_download(source.repo, name, revision=revision, tqdm_class=Bar))
        if sizes[name] and file.stat().st_size != sizes[name]:
            raise ModelError(
                "corrupt", f"{file} has {file.stat().st_size} bytes, the hub says {sizes[name]}: delete it and fetch "
                "it again"
            )
        if file.suffix in (".safetensors", ".bin", ".pt"):
            check_file(file)


def choose_files(names: Iterable[str], *, half: bool) -> list[str]:
    """Those of a repository that are needed: of each part its small files and one set of weights."""
    folders: dict[str, list[str]] = {}
    for name in names:
        part, _, file = name.partition("/")
        if part in FOLDERS and file and "/" not in file:
            folders.setdefault(part, []).append(file)
    chosen = []
    for part, files in folders.items():
        weights = choose_weights(files, half=half)
        kept = [file for file in files if file.endswith((".json", ".txt", ".model")) and ".index." not in file]
        if weights is not None:
            kind = "safetensors" if weights.safetensors else "bin"
            index = f".{kind}.index.{weights.variant}.json" if weights.variant else f".{kind}.index.json"
            kept += [file for file in files if file.endswith(index) and len(weights.names) > 1] + list(weights.names)
        chosen += [f"{part}/{file}" for file in kept]
    return sorted(chosen, key=lambda name: (not name.endswith(".json"), name))


def _check_space(repo: str, wanted: int) -> None:
    from huggingface_hub import constants

    place = Path(constants.HF_HUB_CACHE)
    while not place.exists():
        place = place.parent
    if (free := shutil.disk_usage(place).free) < wanted:
        raise ValueError(
            f"{repo} needs {wanted / 1e9:.1f} GB, {place} has {free / 1e9:.1f} GB left: make room, or set HF_HOME"
        )


@contextmanager
def _translated(repo: str, revision: str) -> Iterator[None]:
    """Errors of the hub's library become one line that says which of them it is and what to do."""
    try:
        yield
    except Exception as error:  # of the library and of what it is built on; others go on as they are
        translated = _translate(error, repo, revision)
        if translated is None:
            raise
        raise translated from error


def _translate(error: Exception, repo: str, revision: str) -> ModelError | None:
    from huggingface_hub import constants, errors

    page = f"https://huggingface.co/{repo}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or (status == 403 and not isinstance(error, errors.DisabledRepoError)):
        return ModelError(
            "gated", f"{repo} is gated: accept its licence at {page}, make a token, and run hf auth login or set "
            f"HF_TOKEN; or {_OTHER}"
        )
    if isinstance(error, (errors.RepositoryNotFoundError, errors.DisabledRepoError)):
        return ModelError(
            "removed", f"{repo} was removed from the hub, renamed or made private, or is misspelt (to log in would not "
            f"help unless it is your own): {_OTHER}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError("removed", f"{repo} has no revision {revision}: take one that {page}/commits/main lists")
    if isinstance(error, errors.OfflineModeIsEnabled):
        return ModelError(
            "offline", f"{repo} cannot be fetched offline: HF_HUB_OFFLINE is set; unset it, or copy the model from a "
            "machine that has it and name the folder"
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return ModelError("wrong", f"{repo} lacks a file that it lists: {_OTHER}")
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return ModelError("corrupt", f"{repo}: a download came broken; the same command tries again")
    if status == 401:
        return ModelError("gated", f"{repo}: the hub refuses your token: run hf auth login again, or unset HF_TOKEN")
    transport: Any = errors.HTTPError  # type: ignore[attr-defined]  # of whichever httpx the library is built on
    if isinstance(error, (transport, errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)):
        what = f"answers {status}" if status else "cannot be reached"
        return ModelError(
            "offline", f"{repo}: {constants.ENDPOINT} {what}; try again with a network (HF_ENDPOINT names a mirror, "
            "HTTPS_PROXY a proxy), or copy the model from a machine that has it and name the folder"
        )
    return None
