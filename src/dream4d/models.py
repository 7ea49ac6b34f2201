"""What ``dream4d models`` tells and does: the pretrained models that presets need, and getting them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from dream4d.presets import PRESETS, suggest
from dream4d.priors.catalogue import MODELS, Model, find_model
from dream4d.priors.hub import fetch, locate, size_here

_PRIORS = ("image", "multiview", "video")


def listing() -> str:
    """A table of models, and which preset needs which; models that are here are measured, the others estimated."""
    lines = [f"{'model':17}{'as':11}{'GB':>5}  {'licence':36}{'here'}"]
    for model in MODELS:
        here = locate(model.name)
        size = size_here(model.name) / 1e9 if here else model.gigabytes
        lines.append(f"{model.name:17}{model.role:11}{size:5.1f}  {model.licence:36}{here or 'no'}")
        if here is None:
            gate = " (its licence must be accepted there first)" if model.gated else ""
            lines.append(f"{'':4}would come from {' or '.join(source.id for source in model.sources)}{gate}")
    lines.append("")
    lines += [f"preset {name:9}{_needs(name)}" for name in PRESETS]
    return "\n".join([
        *lines, "", "Get one, or all of a preset: dream4d models fetch NAME. What each may be used for: docs/models.md",
    ])


def _needs(preset: str) -> str:
    names = [getattr(PRESETS[preset].priors, prior) for prior in _PRIORS]
    needs = [name if (model := find_model(name)) is None else model.name for name in names if name != "builtin"]
    return ", ".join(needs) if needs else "the built-in models, which are in the package"


def fetch_all(names: Sequence[str], *, full: bool = False) -> None:
    """Get models by name, hub id or preset, and check them; a line for each.

    Raises ValueError, and ModelError for one that cannot be had.
    """
    if not names:
        raise ValueError(f"say which models to fetch: {', '.join([*_known(), 'a repository of the hub'])}")
    for name in chain.from_iterable(map(_wanted, names)):
        model = find_model(name)
        print(f"{name}: {_terms(model)}" if model else name)
        print(f"{name} is in {fetch(name, full=full)}")


def _wanted(name: str) -> list[str]:
    if name in PRESETS:
        priors = [getattr(PRESETS[name].priors, prior) for prior in _PRIORS]
        return [prior for prior in priors if prior not in ("builtin", "none")]
    if find_model(name) is None and "/" not in name:
        raise ValueError(f"there is no model {name!r}; {suggest(name, _known())}")
    return [name]


def _known() -> list[str]:
    return [*(model.name for model in MODELS), *(name for name in PRESETS if _wanted(name))]


def _terms(model: Model) -> str:
    return f"{model.title}, about {model.gigabytes:.1f} GB, {model.licence} ({model.licence_url})"
