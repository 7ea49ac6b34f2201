"""What the built-in priors are trained on: pictures, views and clips of random toys, and sentences that fit them.

Never a held-out combination of kind, colour and prop (`grammar.held_out`). Random numbers come from a CPU generator, so
that a seed means the same examples on every device.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from dream4d.cameras import Cameras, framing_distance, orbit, sample_clip, sample_multiview, uniform, view_words
from dream4d.dynamic import sample_times
from dream4d.priors.mvdream import camera_embedding
from dream4d.priors.zero123 import spherical
from dream4d.settings import PictureSettings
from dream4d.toyworld.draw import background_images, draw_primitives_rgba, draw_rgba, over
from dream4d.toyworld.grammar import COLOURS, KINDS, MOTIONS, NAMES, PROPS, VIEWS, Combination, held_out, sentence
from dream4d.toyworld.networks import FRAMES, IMAGE_SIZE
from dream4d.toyworld.networks import VIEWS as VIEWS_OF_A_SCENE
from dream4d.toyworld.subjects import Subjects, build_subjects, mark
from dream4d.toyworld.world import Toys, build, random_variation

NO_COLOUR, NO_KIND, NO_NAME, NO_PROP, NO_MOTION, NO_VIEW = len(COLOURS), len(KINDS), 0, 0, len(MOTIONS), len(VIEWS)
"""Indices of what a sentence does not say."""
NAMED = 0.3
"""Share of toys with markings and a name."""

_STAGE = PictureSettings()
SIDES = 3
"""Further views of a toy of which there is a picture."""


@dataclass(frozen=True)
class Examples:
    """images [n, k, 64, 64, 3] in [0, 1]: k views or frames of each toy. sentence [n]: rows of `Sentences`.
    camera [n, k, 16] for the multi-view prior, [n, k, 3] for the novel-view prior."""

    images: Tensor
    sentence: Tensor
    camera: Tensor | None = None


Maker = Callable[[int, torch.Generator, torch.device], Examples]


class Sentences:
    """Every sentence that the grammar and the view words can make, and its row number."""

    _SHAPE = (len(NAMES) + 1, len(COLOURS) + 1, len(KINDS) + 1, len(PROPS) + 1, len(MOTIONS) + 1, len(VIEWS) + 1)

    def __init__(self) -> None:
        words = ((None, *NAMES), (*COLOURS, None), (*KINDS, None), (None, *PROPS), (*MOTIONS, None), (*VIEWS, None))
        self.texts = [
            sentence(Combination(kind, colour, prop, motion), name) + (f", {view}" if view else "")
            for name, colour, kind, prop, motion, view in itertools.product(*words)
        ]
        self.empty = len(self.texts)
        self.texts.append("")

    @classmethod
    def row(
        cls, name: Tensor, colour: Tensor, kind: Tensor, prop: Tensor, motion: Tensor, view: Tensor
    ) -> Tensor:
        """[n] each."""
        row = torch.zeros_like(name)
        for size, index in zip(cls._SHAPE, (name, colour, kind, prop, motion, view), strict=True):
            row = row * size + index
        return row

    def tokens(self, tokenizer: object) -> Tensor:
        """[rows, tokens]"""
        encoded = tokenizer(self.texts, padding="max_length", truncation=True, return_tensors="pt")  # type: ignore[operator]
        ids: Tensor = encoded.input_ids
        return ids


def image_examples(n: int, generator: torch.Generator, device: torch.device) -> Examples:
    """As photographs are: textured, with props, from about eye height and mostly from the front; the toy rests."""
    subjects, name = random_subjects(n, generator, textured=True)
    frontal = torch.rand(n, generator=generator) < 0.6
    azimuth = torch.where(
        frontal, 35 * torch.randn(n, generator=generator), 360 * torch.rand(n, generator=generator) - 180
    )
    high = torch.rand(n, generator=generator) < 0.04
    elevation = torch.where(high, uniform(n, 61, 85, generator), uniform(n, -2, 32, generator))
    cameras = orbit(azimuth, elevation, *_framing(n, generator))
    view = torch.where(torch.rand(n, generator=generator) < 0.7, _view(cameras), NO_VIEW)
    images = _draw(subjects, torch.zeros(n), cameras, background_images(n, generator), device)
    motion = _sometimes(0.6, subjects.toys.motion, NO_MOTION, generator)
    return Examples(images[:, None], _describe(name, subjects.toys, motion, view, generator))


def multiview_examples(n: int, generator: torch.Generator, device: torch.device) -> Examples:
    """As renders of 3D assets are: plain, from four sides, without props; the sentence may name one all the same."""
    subjects, name = random_subjects(n, generator, textured=False)
    plain = replace(subjects, toys=replace(subjects.toys, prop=torch.zeros(n, dtype=torch.long)))
    cameras = sample_multiview(n, generator, views=VIEWS_OF_A_SCENE)
    images = draw_each(plain, torch.zeros(n, VIEWS_OF_A_SCENE), cameras, background_images(n, generator), device)
    camera = camera_embedding(cameras).reshape(n, VIEWS_OF_A_SCENE, 16).to(device)
    motion = _sometimes(0.6, subjects.toys.motion, NO_MOTION, generator)
    return Examples(images, _describe(name, subjects.toys, motion, torch.full((n,), NO_VIEW), generator), camera)


def video_examples(n: int, generator: torch.Generator, device: torch.device) -> Examples:
    """Clips of plain toys with props from a fixed camera, in the program's own distribution of cameras and times."""
    subjects, name = random_subjects(n, generator, textured=False)
    cameras = sample_clip(n, generator, azimuth=(-180.0, 180.0))
    times = sample_times(n, FRAMES, (0.8, 1.0), generator)
    still = torch.rand(n, generator=generator) < 0.05
    times[still] = 0
    images = draw_each(subjects, times, cameras, background_images(n, generator), device)
    view = torch.where(torch.rand(n, generator=generator) < 0.8, _view(cameras), NO_VIEW)
    motion = torch.where(still, NO_MOTION, subjects.toys.motion)
    return Examples(images, _describe(name, subjects.toys, motion, view, generator))


def novel_examples(n: int, generator: torch.Generator, device: torch.device) -> Examples:
    """A picture of a textured toy with props, before white and framed as `picture.read_picture` does it, and the toy
    from `SIDES` random places around, in the camera distribution of the static stage from a picture.

    The toy is where the framing puts it: the middle of what the picture shows of it is the middle of the world.
    """
    subjects, _ = random_subjects(n, generator, textured=True)
    times = torch.where(torch.rand(n, generator=generator) < 0.7, 0.0, torch.rand(n, generator=generator))
    frontal = torch.rand(n, generator=generator) < 0.6
    front = torch.where(frontal, 30 * torch.randn(n, generator=generator), 360 * torch.rand(n, generator=generator))
    low = uniform(n, -10, 45, generator)
    middle, scale = framing(subjects.toys, times, front, low, device)
    sides = sample_multiview(n * SIDES, generator, views=1, elevation=_STAGE.elevation, fov_y=_STAGE.fov_y,
                             distance=_STAGE.distance)  # fmt: skip
    reference = orbit(front, low, torch.tensor(_STAGE.distance), torch.tensor(_STAGE.reference_fov_y))
    matrices = [each.camera_to_world.unflatten(0, (n, -1)) for each in (reference, sides)]
    fov = [each.fov_y.unflatten(0, (n, -1)) for each in (reference, sides)]
    cameras = Cameras(torch.cat(matrices, dim=1).flatten(0, 1), torch.cat(fov, dim=1).flatten())
    placed = place(cameras, *(each.repeat_interleave(1 + SIDES, dim=0) for each in (middle, scale)))
    images = draw_each(subjects, times[:, None].expand(n, 1 + SIDES), placed, torch.ones(n, 1, 1, 3), device)
    camera = spherical(cameras).unflatten(0, (n, -1)).to(device)
    return Examples(images, torch.zeros(n, dtype=torch.long), camera)


def framing(
    toys: Toys, times: Tensor, azimuth: Tensor, elevation: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where the middle of the picture of each toy is, [n, 3], and the scale, [n], of a world around it in which the
    toy's larger side fills as much of the reference view as a picture's object does; angles [n] in degrees."""
    half = math.tan(math.radians(_STAGE.reference_fov_y / 2))  # of a view, at distance 1
    around = 1.15  # half of what this camera sees at the world's middle
    wide = orbit(azimuth, elevation, torch.tensor(around / half), torch.tensor(_STAGE.reference_fov_y))
    seen = draw_rgba(toys.to(device), times.to(device), wide.to(device), IMAGE_SIZE, samples=1)[..., 3].cpu() > 0.5
    places = around * ((torch.arange(IMAGE_SIZE) + 0.5) * 2 / IMAGE_SIZE - 1)

    def ends(lines: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(lines, places, around).amin(1), torch.where(lines, places, -around).amax(1)

    (left, right), (bottom, top) = ends(seen.any(dim=1)), ends(seen.any(dim=2).flip(1))
    axes = wide.camera_to_world[:, :3]
    middle = axes[..., 0] * ((left + right) / 2)[:, None] + axes[..., 1] * ((bottom + top) / 2)[:, None]
    extent = torch.maximum(right - left, top - bottom) + 2 * around / IMAGE_SIZE
    return middle, extent / (2 * _STAGE.fill * _STAGE.distance * half)


def photograph(
    toy: Toys, azimuth: Tensor, elevation: Tensor, device: torch.device, size: int = IMAGE_SIZE
) -> tuple[Tensor, Cameras]:
    """A toy [1] at rest before white as a novel-view prior sees it: images [k, size, size, 3] and cameras [k], angles
    [k] in degrees; the first is the picture, by which the others are framed."""
    middle, scale = framing(toy, torch.zeros(1), azimuth[:1], elevation[:1], device)
    cameras = orbit(azimuth, elevation, torch.tensor(_STAGE.distance), torch.tensor(_STAGE.reference_fov_y))
    each = torch.zeros(len(azimuth), dtype=torch.long)
    placed = place(cameras, middle[each], scale[each])
    rgba = draw_rgba(toy[each].to(device), torch.zeros(len(each), device=device), placed.to(device), size)
    return over(rgba, torch.ones(3, device=device)), cameras


def place(cameras: Cameras, middle: Tensor, scale: Tensor) -> Cameras:
    """Cameras [b] of a world that is `scale` times smaller and whose origin is at `middle`, as cameras of the old."""
    matrix = cameras.camera_to_world.clone()
    matrix[:, :3, 3] = middle + scale[:, None] * matrix[:, :3, 3]
    return Cameras(matrix, cameras.fov_y)


def any_examples(n: int, generator: torch.Generator, device: torch.device) -> Examples:
    """Pictures of toys at any time from anywhere, half of them textured: what the autoencoder must carry."""
    subjects, _ = random_subjects(n, generator, textured=True)
    subjects.toys.stripes[torch.rand(n, generator=generator) < 0.5, 0] = 0
    azimuth, elevation = 360 * torch.rand(n, generator=generator), uniform(n, -2, 60, generator)
    distance, fov = _framing(n, generator)
    cameras = orbit(azimuth, elevation, distance * uniform(n, 0.8, 1.15, generator), fov)
    images = _draw(subjects, torch.rand(n, generator=generator), cameras, background_images(n, generator), device)
    return Examples(images[:, None], torch.zeros(n, dtype=torch.long))


def random_toys(n: int, generator: torch.Generator, *, textured: bool, everything: bool = False) -> Toys:
    """Toys of random attributes and proportions; a third without a prop. everything: held-out combinations too."""
    def draw(size: int) -> Tensor:
        return torch.randint(size, (n,), generator=generator)

    kind, colour, motion = draw(len(KINDS)), draw(len(COLOURS)), draw(len(MOTIONS))
    prop = _sometimes(0.75, 1 + draw(len(PROPS)), NO_PROP, generator)
    if not everything:
        while (bad := _held_out_table()[kind, colour, prop]).any():
            prop = torch.where(bad, 1 + draw(len(PROPS)), prop)
            colour = torch.where(bad, draw(len(COLOURS)), colour)
    return Toys(kind, colour, prop, motion, *random_variation(n, generator, textured))


def random_subjects(n: int, generator: torch.Generator, *, textured: bool) -> tuple[Subjects, Tensor]:
    """`random_toys`, of which `NAMED` have markings of their own, and the name of each [n], `NO_NAME` of the others."""
    toys = random_toys(n, generator, textured=textured)
    name = _sometimes(NAMED, 1 + torch.randint(len(NAMES), (n,), generator=generator), NO_NAME, generator)
    return mark(toys, name != NO_NAME, generator), name


def pool(
    make: Maker, n: int, generator: torch.Generator, device: torch.device, chunk: int,
    encode: Callable[[Tensor], Tensor],
) -> Examples:
    """`n` examples made in chunks, their images through `encode` ([m, 64, 64, 3] -> [m, ...]) and kept on `device`."""
    parts: list[Examples] = []
    for first in range(0, n, chunk):
        part = make(min(chunk, n - first), generator, device)
        encoded = encode(part.images.flatten(0, 1))
        parts.append(Examples(encoded.reshape(*part.images.shape[:2], *encoded.shape[1:]), part.sentence, part.camera))
    cameras = [part.camera for part in parts if part.camera is not None]
    return Examples(
        torch.cat([part.images for part in parts]), torch.cat([part.sentence for part in parts]).to(device),
        torch.cat(cameras) if cameras else None,
    )  # fmt: skip


def to_bytes(images: Tensor) -> Tensor:
    """[0, 1] to uint8."""
    return (images.clamp(0, 1) * 255 + 0.5).to(torch.uint8)


def _describe(name: Tensor, toys: Toys, motion: Tensor, view: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of sentences for toys; now and then one leaves out the colour or the kind."""
    return Sentences.row(
        name, _sometimes(0.96, toys.colour, NO_COLOUR, generator), _sometimes(0.96, toys.kind, NO_KIND, generator),
        toys.prop, motion, view,
    )  # fmt: skip


@cache
def _held_out_table() -> Tensor:
    table = torch.zeros(len(KINDS), len(COLOURS), len(PROPS) + 1, dtype=torch.bool)
    for kind, colour, prop in held_out():
        table[KINDS.index(kind), COLOURS.index(colour), 1 + list(PROPS).index(prop)] = True
    return table


def _draw(
    toys: Toys | Subjects, time: Tensor, cameras: Cameras, backgrounds: Tensor, device: torch.device
) -> Tensor:
    """[n, 64, 64, 3]"""
    toys, time = toys.to(device), time.to(device)
    primitives = build_subjects(toys, time) if isinstance(toys, Subjects) else build(toys, time)
    return over(draw_primitives_rgba(primitives, cameras.to(device), IMAGE_SIZE), backgrounds.to(device))


def draw_each(
    toys: Toys | Subjects, times: Tensor, cameras: Cameras, backgrounds: Tensor, device: torch.device
) -> Tensor:
    """times [n, k], cameras [n] or [n k], backgrounds [n, ...] -> [n, k, 64, 64, 3]."""
    n, k = times.shape
    each = torch.arange(n).repeat_interleave(k)
    if len(cameras) == n:
        cameras = cameras[each]
    images = _draw(toys[each], times.reshape(-1), cameras, backgrounds[each], device)
    return images.reshape(n, k, *images.shape[1:])


def _framing(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Distances and fields of view as the program's cameras have them."""
    fov = uniform(n, 15, 60, generator)
    return framing_distance(fov, generator), fov


def _view(cameras: Cameras) -> Tensor:
    """Index into VIEWS [n]."""
    return torch.tensor([VIEWS.index(words) for words in view_words(cameras)])


def _sometimes(probability: float, values: Tensor, otherwise: int, generator: torch.Generator) -> Tensor:
    return torch.where(torch.rand(len(values), generator=generator) < probability, values, otherwise)
