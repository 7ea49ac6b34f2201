"""From how a setting names a model to a local folder in diffusers layout.

A name is a local folder, a checkpoint file, a model of `catalogue`, or a repository of the Hugging Face hub, with
``@revision`` if it shall be a certain one. Only `fetch` talks to the hub; `resolve` looks at what is on the machine.
``HF_HOME``, ``HF_ENDPOINT``, ``HF_TOKEN`` and ``HF_HUB_OFFLINE`` work as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dream4d.priors.catalogue import MODELS, ROLES, Model, Role, Source, find_model
from dream4d.priors.checkpoints import converted
from dream4d.priors.download import WITH_WEIGHTS, download
from dream4d.priors.errors import ModelError
from dream4d.priors.weights import check_weights, find_weights, read_json

_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_TOLD = ("_class_name", "class_embed_type", "in_channels")  # whose absence tells as much as another value
_OTHER = "name a local folder or another repository instead"


def resolve(name: str, role: Role | None = None) -> Path:
    """The local folder of a model, in diffusers layout; conversions are made where they are needed.

    role: what it shall be used as. Raises ModelError where it is not on this machine, damaged or another model.
    """
    path = Path(name).expanduser()
    if path.exists():
        folder = converted(path)
        check_role(folder, role)
        _check_weights(folder)
        return folder
    model = find_model(name.partition("@")[0])
    found = locate(name)
    if found is None:
        raise ModelError("absent", _absent(name, model, role))
    check_role(converted(found), role)
    return _checked(name, found)


def locate(name: str) -> Path | None:
    """Folder or checkpoint file of a model of the hub in this machine's cache; any of its sources will do."""
    return next((path for source, revision in _sources(name) if (path := _cached(source, revision)) is not None), None)


def size_here(name: str) -> int:
    """Bytes of what `locate` finds; 0 where it finds nothing."""
    found = locate(name)
    if found is None:
        return 0
    files = [found] if found.is_file() else [file for file in found.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def fetch(name: str, *, full: bool = False, say: Callable[[str], None] = print) -> Path:
    """Download what a model needs unless it is here and whole, with bars on stderr, and check it. Returns its folder.

    Of two precisions the smaller, unless `full`. Sources are tried in turn where a repository is gone or closed; `say`
    gets a line for each.

    Raises ModelError.
    """
    sources, problems = _sources(name), []
    if not sources:
        known = ", ".join(model.name for model in MODELS)
        raise ModelError("absent", f"{name} is no model and no repository; models: {known}")
    if not full and (here := _whole(name)):
        return here
    for source, revision in sources:
        say(f"{source.id}{f' ({source.file})' if source.file else ''}")
        try:
            download(source, revision, full=full)
        except ModelError as error:
            if error.problem not in ("removed", "gated"):
                raise
            problems.append(error)
            say(str(error))
            continue
        found = _cached(source, revision)
        assert found is not None, "it was downloaded into the cache"
        return _checked(name, found)
    raise problems[-1]


def _whole(name: str) -> Path | None:
    """What is here already, if nothing is wrong with it."""
    found = locate(name)
    try:
        return None if found is None else _checked(name, found)
    except ModelError:
        return None


def _checked(name: str, found: Path) -> Path:
    folder = converted(found)
    if model := find_model(name.partition("@")[0]):
        check_model(folder, model)
    return folder


def check_role(folder: Path, role: Role | None) -> None:
    """Raises ModelError where ``unet/config.json`` is not there or is of a model for something else."""
    file = folder / "unet" / "config.json"
    if role is None:
        return
    if not file.is_file():
        raise ModelError(
            "absent", f"{folder}: there is no model in diffusers layout (no unet/config.json); copy one there, or name "
            "its folder"
        )
    article = {"image": "an image", "multiview": "a multi-view", "video": "a text-to-video", "reference": "a zero123"}
    _compare(file, ROLES[role], f"this is not {article[role]} model")


def check_model(folder: Path, model: Model) -> None:
    """That a folder is the model and complete: parts, configurations' values, headers and lengths of the weights.

    Raises ModelError.
    """
    for part in model.parts:
        if not (folder / part).is_dir():
            raise ModelError("corrupt", f"{folder} lacks {part}/: get it with dream4d models fetch {model.name}")
    _check_weights(folder)
    for name, values in model.values.items():
        _compare(folder / name, values, f"this is not {model.title}")


def _check_weights(folder: Path) -> None:
    for part in WITH_WEIGHTS:
        if (folder / part).is_dir():
            check_weights(folder / part, find_weights(folder / part))


def _compare(file: Path, expected: Mapping[str, Any], verdict: str) -> None:
    if not file.is_file():
        raise ModelError("corrupt", f"{file.parent} lacks {file.name}: get it again")
    config = read_json(file)
    for key, value in expected.items():
        if (found := config.get(key)) != value and (key in config or key in _TOLD):
            raise ModelError(
                "wrong", f"{file.parents[1]}: {verdict}: {file.parent.name}/{file.name} has {key} {found}, expected "
                f"{value}; {_OTHER}"
            )


def _sources(name: str) -> list[tuple[Source, str]]:
    """Where to look, in order, each with its revision; the one that is named comes first."""
    plain, _, revision = name.partition("@")
    model = find_model(plain)
    if model is None:
        return [(Source(plain), revision or "main")] if _ID.fullmatch(name) else []
    named = [(source, revision or "main") for source in model.sources if source.id == plain]
    return named if revision else named + [(source, "main") for source in model.sources if source.id != plain]


def _cached(source: Source, revision: str) -> Path | None:
    """None where a download was stopped in its midst: configurations come first, and each part needs its weights."""
    from huggingface_hub import try_to_load_from_cache

    file = source.file or "unet/config.json"
    found = try_to_load_from_cache(source.repo, file, revision=revision)
    if not isinstance(found, str):
        return None
    if source.file:
        return Path(found)
    folder = Path(found).parents[1]
    try:
        for part in WITH_WEIGHTS:
            if (folder / part).is_dir():
                find_weights(folder / part)
    except ModelError:
        return None
    return folder


def _absent(name: str, model: Model | None, role: Role | None) -> str:
    if model is None and not _ID.fullmatch(name):
        known = ", ".join(model.name for model in MODELS if role in (None, model.role))
        return f"{name}: there is no such folder or file; name a folder in diffusers layout, or one of {known}"
    from huggingface_hub import constants

    wanted = model.name if model and "@" not in name else name
    return (
        f"{name}: there is no such folder, and the cache {constants.HF_HUB_CACHE} does not have that model; get it "
        f"with dream4d models fetch {wanted}, or name the folder where it is"
    )
