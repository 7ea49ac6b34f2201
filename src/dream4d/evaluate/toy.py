"""The toy world's truth beside a scene: exact pictures of the toy that a sentence means, and what the judge reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.evaluate.footage import CLIP_FRAMES, CLIPS, GREY, SIZE, STILLS, Footage, Shot, cameras_of
from dream4d.evaluate.metrics import apart, faces, mean, motion_agreement
from dream4d.render import Render
from dream4d.toyworld.draw import draw, draw_rgba, over, surface_motion
from dream4d.toyworld.grammar import COLOURS, KINDS, MOTIONS, PROPS, Combination
from dream4d.toyworld.judge import Judge, Reading
from dream4d.toyworld.world import Toys, make_toys

PROP_PIXELS = 12
"""A view in which fewer pixels of the prop can be seen does not ask for it."""
AZIMUTH_ERROR = 45.0
"""Degrees by which an apparent azimuth may be off."""


def drawing(
    combination: Combination, shots: Sequence[Shot], device: str, generator: torch.Generator | None = None
) -> Tensor:
    """The exact toy before grey, [shots, SIZE, SIZE, 3]: the average one, or one of random proportions and stripes."""
    rgba = draw_rgba(*_scene(combination, shots, device, generator), SIZE)
    return over(rgba, torch.full((3,), GREY, device=device))


def exact(
    combination: Combination, shots: Sequence[Shot], device: str, generator: torch.Generator | None = None
) -> Render:
    """`drawing` with true opacity, 0 or 1, depth and backward displacement in the middle of each pixel."""
    toys, times, cameras = _scene(combination, shots, device, generator)
    rgba, middle = draw_rgba(toys, times, cameras, SIZE), draw(toys, times, cameras, SIZE, samples=1)
    return Render(
        rgb=over(rgba, torch.full((3,), GREY, device=device)), opacity=middle.mask.float(), depth=middle.depth,
        displacement=surface_motion(toys, middle, times), foreground=rgba[..., :3],
    )


def prop_pixels(combination: Combination, shots: Sequence[Shot], device: str) -> Tensor:
    """In how many pixels the prop of the average toy can be seen, [shots]: those that change without it."""
    with_prop, without = (drawing(c, shots, device) for c in (combination, replace(combination, prop=None)))
    return ((with_prop - without).abs().amax(-1) > 0.02).sum(dim=(1, 2))


def compare(reading: Reading, combination: Combination, shots: Sequence[Shot], visible: Tensor) -> dict[str, Tensor]:
    """Which readings of pictures from `shots` agree with the sentence, by attribute that it names, and the azimuths.

    A prop's count where it can be seen. visible: [shots], the prop's pixels.
    """
    truth = torch.tensor([azimuth for _, azimuth in shots])
    right = {}
    if combination.kind:
        right["kind"] = reading.kind.cpu() == KINDS.index(combination.kind)
    if combination.colour:
        right["colour"] = reading.colour.cpu() == COLOURS.index(combination.colour)
    if combination.prop:
        prop = 1 + list(PROPS).index(combination.prop)
        right["prop"] = (reading.prop.cpu() == prop)[visible.cpu() >= PROP_PIXELS]
    right["azimuth"] = apart(reading.azimuth.cpu().float(), truth) <= AZIMUTH_ERROR
    return right


def aligned(right: dict[str, Tensor], visible: Tensor) -> Tensor:
    """The views in which all that `compare` asked for but the azimuth is right, [shots]."""
    whole = torch.ones(len(visible), dtype=torch.bool)
    for name in ("kind", "colour"):
        whole &= right.get(name, whole)
    if "prop" in right:
        whole[visible.cpu() >= PROP_PIXELS] &= right["prop"]
    return whole


def read(
    judge: Judge, combination: Combination, stills: Tensor, clips: Tensor, visible: Tensor
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Which of the judge's readings agree with the sentence, `compare`'s and `motion` [clips], and the commonest ones.

    stills: of STILLS, [48, h, w, 3]. clips: [clips, 16, h, w, 3]. visible: [48], the prop's pixels.
    """
    reading, motion = judge.read(stills), judge.read_motion(clips).cpu()
    right = compare(reading, combination, STILLS, visible)
    if combination.motion:
        right["motion"] = motion == MOTIONS.index(combination.motion)
    return right, {
        "kind": commonest(reading.kind, KINDS),
        "colour": commonest(reading.colour, COLOURS),
        "prop": commonest(reading.prop.cpu()[visible.cpu() >= PROP_PIXELS], ["nothing", *PROPS]),
        "motion": commonest(motion, [*MOTIONS, "standing"]),
    }


def commonest(indices: Tensor, names: Sequence[str]) -> str:
    return names[int(indices.mode().values)] if len(indices) else "-"


def measure(judge: Judge, combination: Combination, seen: Footage) -> tuple[dict[str, float], dict[str, str]]:
    """The metrics that need the toy world's truth, by name, and the commonest readings."""
    device = str(seen.stills.rgb.device)
    visible = prop_pixels(combination, STILLS, device)
    right, commonly = read(judge, combination, seen.stills.rgb, seen.clips, visible)
    values = {"aligned": mean(aligned(right, visible))}
    values |= {name: mean(right[name]) for name in ("kind", "colour", "prop") if name in right}
    apparent = judge.read(seen.stills.rgb).azimuth.cpu()
    values["azimuth_right"] = mean(right["azimuth"])
    values["azimuth_error"] = mean(apart(apparent, torch.tensor([azimuth for _, azimuth in STILLS])))
    values["faces"] = faces(judge.read(seen.ring.rgb).azimuth)
    if combination.motion:
        truth = drawing(combination, CLIPS, device).unflatten(0, (-1, CLIP_FRAMES))
        values["motion_right"] = mean(right["motion"])
        values["motion_agreement"], _ = motion_agreement(seen.clips, truth)
    return values, commonly


def _scene(
    combination: Combination, shots: Sequence[Shot], device: str, generator: torch.Generator | None
) -> tuple[Toys, Tensor, Cameras]:
    """The same toy for each shot; it stands still where the sentence says nothing of its motion."""
    index = torch.zeros(len(shots), dtype=torch.long, device=device)
    times = torch.tensor([time if combination.motion else 0.0 for time, _ in shots], device=device)
    return make_toys([combination], generator).to(device)[index], times, cameras_of(shots).to(device)
