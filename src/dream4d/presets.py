"""Presets are values: every setting of a job, and how one becomes YAML and comes back."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import SequenceMatcher
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from dream4d.notation import format_schedule, parse_schedule
from dream4d.schedules import Constant, Count, Interval, Levels, Linear, Milestones, Schedule, Switch
from dream4d.settings import (
    DeformationShape,
    DynamicSettings,
    OutputSettings,
    PersonalizeSettings,
    PictureSettings,
    PriorSettings,
    ReconstructSettings,
    SceneShape,
    StaticSettings,
)

SCHEDULES = (Count, Schedule, Interval)
T = TypeVar("T")


@dataclass(frozen=True)
class Preset:
    """Every setting of a job but its prompt. The defaults are the paper's numbers."""

    seed: int = 0
    """Where all randomness starts."""
    device: str = "auto"
    """`cpu`, `cuda`, or `auto`: a GPU if there is one."""
    memory: Literal["auto", "paper", "balanced", "lowmem", "minimal"] = "auto"
    """How much of a step is computed at a time: `paper` is the fastest; `balanced`, `lowmem` and `minimal` take the
    same step with less and less memory; `auto` is the fastest that fits."""
    negative: str = (
        "blurry, low quality, low resolution, noisy, jpeg artifacts, oversaturated, overexposed, underexposed, "
        "cropped, out of frame, watermark, text, signature, deformed, extra limbs, several heads, ugly"
    )
    """The prompt that all models are led away from."""
    scene: SceneShape = field(default_factory=SceneShape)
    deformation: DeformationShape = field(default_factory=DeformationShape)
    priors: PriorSettings = field(default_factory=PriorSettings)
    static: StaticSettings = field(default_factory=StaticSettings)
    reconstruct: ReconstructSettings = field(default_factory=ReconstructSettings)
    picture: PictureSettings = field(default_factory=PictureSettings)
    dynamic: DynamicSettings = field(default_factory=DynamicSettings)
    personalize: PersonalizeSettings = field(default_factory=PersonalizeSettings)
    output: OutputSettings = field(default_factory=OutputSettings)


PAPER = Preset(
    priors=PriorSettings(
        image="stable-diffusion", multiview="mvdream", video="zeroscope",  # names of priors/catalogue.py
        novel="zero123", picture="deepfloyd",
    )
)

# The paper's models and losses in a third of its steps. All that anneals does so three times faster, the finest images
# are 128x128 in place of 256x256 and the decoder term looks at 4 of 24 frames: less detail, coarser motion.
FAST = replace(
    PAPER,
    static=StaticSettings(
        steps=3500, images=Switch(8, 4, at=2000), resolution=Switch(64, 128, at=2000), samples_per_ray=384,
        timesteps_3d=Interval(Linear(0.98, 0.02, steps=2800), Linear(0.98, 0.5, steps=2800)),
    ),
    dynamic=DynamicSettings(
        steps=3500, samples_per_ray=256, frames_pixels=4,
        timesteps=Interval(Linear(0.99, 0.2, steps=3500), Linear(0.99, 0.5, steps=3500)),
        levels=Levels(4, every=175, most=12), learning_rate=Milestones(1e-3, at=(2800, 3150)),
        learning_rate_fields=Milestones(1e-3, at=(2800, 3150)), learning_rate_time=Milestones(1e-2, at=(2800, 3150)),
    ),
)

BUILTIN = Preset(
    negative="",
    priors=PriorSettings(video_frames=16, video_resolution=None),
    scene=SceneShape(levels=12, growth=1.233, log2_size=15, plane_levels=3, plane_size=128, plane_times=16),
    deformation=DeformationShape(levels=8, log2_size=16),
    # The multi-view prior knows no props and would rub them out again: its weight falls once the shape is settled.
    static=StaticSettings(
        steps=500, images=Constant(4), resolution=Switch(32, 64, at=100), samples_per_ray=96, weight_2d=2.0,
        flat_background=0.9,  # on which the video shows the scene
        guidance_2d=10.0, timesteps_2d=Interval(Switch(0.2, 0.05, at=300), Switch(0.95, 0.5, at=150)),
        guidance_3d=7.5, weight_3d=Linear(1.0, 0.15, steps=350),
        timesteps_3d=Interval(Linear(0.98, 0.02, steps=400), Linear(0.98, 0.5, steps=400)),
        weight_entropy=Switch(0, 500, at=200),  # late: props begin as haze
        learning_rate_grid=Milestones(0.02, at=(330, 400, 450)),
        learning_rate_mlp=Milestones(0.005, at=(330, 400, 450)),
    ),
    reconstruct=ReconstructSettings(
        middle=(0.03, 0.0, -0.08),  # of the video prior's toys
        # Its motion: less density than the fit has, changes over time alone (asked for what it shows as well, the video
        # model makes a robot an orange lump), finer levels sooner.
        density=0.3, kept_mean=1.0, levels=Levels(1, every=20, most=6),
        log2_size=17, steps=500, samples_per_ray=256, learning_rate_grid=Milestones(0.02, at=(300, 400, 450)),
        learning_rate_mlp=Milestones(0.005, at=(300, 400, 450)),
    ),
    picture=PictureSettings(
        steps=400, images=Constant(4), resolution=Switch(32, 64, at=100), samples_per_ray=96,
        reference_resolution=Constant(64), distance=4.35,  # from where the object is as large as the video prior's toys
        weight_2d=0.3, guidance_2d=10.0, weight_3d=Constant(1.0),  # with less 2D, what the picture hides is left out
        background=(0.6, 0.7, 0.8),  # white toys before white are lost on the video prior
        weight_entropy=Switch(0.0, 300.0, at=150),  # and full of holes: white through them costs nothing
        weight_picture=5000.0, weight_mask=500.0,  # at the paper's 500 and 50 the front fades under the image prior
        learning_rate_grid=Milestones(0.02, at=(260, 320, 360)),
        learning_rate_mlp=Milestones(0.005, at=(260, 320, 360)),
    ),
    # One coarse level of the 4D grid at first: limbs swing as a whole, and do not dissolve into nearer ones. The video
    # prior takes any pose for the right one at timesteps below .6: nothing would move there, only smooth out.
    dynamic=DynamicSettings(
        steps=240, height=Constant(40), width=Constant(40), samples_per_ray=96, guidance=5.0, weight_tv=30.0,
        timesteps=Interval(Linear(0.98, 0.55, steps=240), Linear(0.98, 0.85, steps=240)),
        levels=Levels(1, every=40, most=6), learning_rate=Milestones(5e-3, at=(160, 200)), occupancy_times=4,
        # What does not depend on time learns slowly: at 5e-3 the face fades more and less moves.
        learning_rate_fields=Milestones(1e-3, at=(160, 200)), learning_rate_time=Milestones(0.02, at=(160, 200)),
    ),
    # One subject is a narrow target: little guidance finds it, and much burns its colours. What little there is leads
    # away from its kind, else its markings fade: they are what the mean of all that the model draws has least of.
    personalize=PersonalizeSettings(
        steps=600, photos=4, learning_rate=Milestones(1e-3, at=(400, 520), factor=0.3),
        learning_rate_text=Constant(1e-4), class_images=64, sampling_guidance=3.0, sampling_steps=20,
        weight_2d=6.0, guidance_2d=1.5, away_from_class=True, multiview="lora", video="word",
        at_rest=True, kept_mean=1.0, levels=Levels(1, every=20, most=6),  # as for meshes
    ),
    output=OutputSettings(preview_every=50, size=128, frames=32, background="#e6edf5"),
)

PRESETS = {"builtin": BUILTIN, "paper": PAPER, "fast": FAST}

ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "no-2d": {"priors": {"image": "none"}},
    "no-3d": {"priors": {"multiview": "none"}},
    "hexplane": {"scene": {"field": "hexplane"}},
    "no-grid": {"deformation": {"encoding": "positional"}},
    "no-tv": {"dynamic": {"weight_tv": 0.0}},
}
"""What the paper leaves out to show what it is good for (Sec. 4.1, Table 1): of any preset, the settings to change."""


def preset(name: str) -> Preset:
    """Raises ValueError, with the nearest right name, for an unknown one."""
    if name not in PRESETS:
        raise ValueError(f"there is no preset {name!r}; {suggest(name, PRESETS)}")
    return PRESETS[name]


def ablate(settings: Preset, name: str) -> Preset:
    """`settings` with the changes of ABLATIONS. Where the image model goes, others still take what they lack from it.

    Raises ValueError, with the nearest right name, for an unknown one.
    """
    if name not in ABLATIONS:
        raise ValueError(f"there is no ablation {name!r}; {suggest(name, ABLATIONS)}")
    ablated, image = merge(settings, ABLATIONS[name]), settings.priors.image
    if ablated.priors.image == image or image == "builtin" or settings.priors.base:
        return ablated
    return merge(ablated, {"priors": {"base": image}})


def for_subject(settings: Preset) -> Preset:
    """`settings` with those of both stages that a personalised image model asks for."""
    given = _given(settings.personalize, "weight_2d", "guidance_2d")
    return _moved(replace(settings, static=replace(settings.static, **given)), settings.personalize)


def for_mesh(settings: Preset) -> Preset:
    """`settings` with those of the dynamic stage that a given model asks for."""
    return _moved(settings, settings.reconstruct)


def _moved(settings: Preset, own: PersonalizeSettings | ReconstructSettings) -> Preset:
    """With the motion of what the video model never saw."""
    deformation = replace(settings.deformation, at_rest=settings.deformation.at_rest or own.at_rest)
    dynamic = replace(settings.dynamic, **_given(own, "kept_mean", "levels"))
    return replace(settings, deformation=deformation, dynamic=dynamic)


def _given(own: Any, *names: str) -> dict[str, Any]:
    return {name: value for name in names if (value := getattr(own, name)) is not None}


def suggest(name: str, known: Iterable[str]) -> str:
    """What to tell someone who wrote `name`: the nearest of `known`, by its whole name or its last part, or all."""
    def likeness(key: str) -> float:
        pairs = ((name, key), (name.lstrip("-").rsplit(".", 1)[-1], key.lstrip("-").rsplit(".", 1)[-1]))
        return max(SequenceMatcher(None, *pair).ratio() for pair in pairs)

    known = list(known)
    nearest = max(known, key=likeness)
    return f"did you mean {nearest}?" if likeness(nearest) > 0.6 else f"known: {', '.join(known)}"


def to_mapping(settings: Any) -> dict[str, Any]:
    """A settings dataclass as plain values for YAML; schedules in their notation."""
    hints = get_type_hints(type(settings))
    return {f.name: _plain(getattr(settings, f.name), hints[f.name]) for f in fields(settings)}


def merge(settings: T, values: Mapping[str, Any], prefix: str = "") -> T:
    """`settings` with `values` in place of its own, at any depth.

    Raises ValueError for an unknown key, with the nearest right one, and for a value of the wrong type.
    """
    hints = get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name, now = f"{prefix}{key}", getattr(settings, key, None)
        if key not in hints:
            raise ValueError(f"unknown key {name}; {suggest(name, [prefix + known for known in hints])}")
        if _beside_none(hints[key]) in SCHEDULES or not is_dataclass(now):
            try:
                changes[key] = _convert(value, hints[key])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        elif isinstance(value, Mapping):
            changes[key] = merge(now, value, f"{name}.")
        else:
            raise ValueError(f"{name}: expected `key: value` lines below it, not {value!r}")
    return replace(settings, **changes)  # type: ignore[type-var]


def _beside_none(kind: Any) -> Any:
    """What a value is if it is not None."""
    if get_origin(kind) in (typing.Union, UnionType) and NoneType in (kinds := get_args(kind)):
        kinds = tuple(each for each in kinds if each is not NoneType)
        return typing.Union[kinds]  # noqa: UP007, a union of what there is
    return kind


def _plain(value: Any, kind: Any) -> Any:
    if value is not None and _beside_none(kind) in SCHEDULES:
        return value.value if isinstance(value, Constant) else format_schedule(value)
    if is_dataclass(value):
        return to_mapping(value)
    return list(value) if isinstance(value, tuple) else value


def _convert(value: Any, kind: Any) -> Any:
    if value is None and NoneType in get_args(kind):
        return None
    kind = _beside_none(kind)
    if kind in SCHEDULES:
        return parse_schedule(str(value))
    if get_origin(kind) is typing.Literal:
        if value not in get_args(kind):
            raise ValueError(f"expected {' or '.join(get_args(kind))}, not {value!r}")
        return value
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if not isinstance(value, list) or len(value) != len(kinds):
            raise ValueError(f"expected a list of {len(kinds)}, not {value!r}")
        return tuple(map(_convert, value, kinds))
    if kind is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            return float(value)  # YAML reads 1e-3 as a string
        except ValueError:
            raise ValueError(f"expected a number, not {value!r}") from None
    if type(value) is not kind:
        raise ValueError(f"expected {'true or false' if kind is bool else kind.__name__}, not {value!r}")
    return value
