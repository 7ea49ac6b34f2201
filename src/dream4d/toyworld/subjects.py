"""Subjects: toys with markings that no sentence tells, casual photos of them, and a number for who is on a picture.

    python -m dream4d.toyworld.subjects --kind cat --seed 0 --out photos

A mark is a ball inside the cone that carries it, of which only a cap sticks out: one more primitive, which every
renderer draws and which moves with its bone.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from dream4d.cameras import Cameras, framing_distance, orbit, uniform
from dream4d.media import write_png
from dream4d.toyworld.draw import background_images, draw_primitives_rgba, over
from dream4d.toyworld.grammar import COLOURS, KINDS, Combination
from dream4d.toyworld.world import BLACK, FIXED, MINT, PALETTE, SKY, Primitives, Toys, build, make_toys

PHOTOS = 5
_DYES = torch.cat([PALETTE, FIXED[[material - BLACK for material in (BLACK, SKY, MINT)]]])
_TORSO, _HEAD, _LIMBS = 0, 1, slice(2, 8)  # slots of the body; limbs: two arms, two hands, two legs
_PLACES = torch.tensor([  # slot, place along its axis from 0 to 1, azimuth and elevation in degrees; none on the face
    [_HEAD, 0, 78, 20], [_HEAD, 0, -78, 20], [_HEAD, 0, 180, 5], [_HEAD, 0, 120, 35], [_HEAD, 0, -120, 35],
    [_HEAD, 0, 30, 62], [_HEAD, 0, -30, 62],
    [_TORSO, 0, 85, 0], [_TORSO, 0, -85, 0], [_TORSO, 0.3, 160, 10], [_TORSO, 0.3, -150, 0],
    [_TORSO, 0.2, 40, 10], [_TORSO, 0.2, -40, 10],
])  # fmt: skip
_DEPTH = 0.2  # of a mark's centre on the way from the axis to the surface: it sticks out by a few hundredths
_CELLS = 16  # along a side of what two pictures are compared by


@dataclass(frozen=True)
class Subjects:
    """A batch of marked toys [b].

    dyed [b, 6] and dyes [b, 6, 3]: which limbs have a colour of their own, and it. sizes [b, places]: of the mark at
    each place, in degrees seen from the axis, 0 for none; colours [b, places, 3].
    """

    toys: Toys
    dyed: Tensor
    dyes: Tensor
    sizes: Tensor
    colours: Tensor

    def __len__(self) -> int:
        return len(self.toys)

    def __getitem__(self, index: Tensor) -> Subjects:
        return Subjects(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device | str) -> Subjects:
        return Subjects(*(getattr(self, field.name).to(device) for field in fields(self)))


def make_subjects(combinations: Sequence[Combination], generator: torch.Generator) -> Subjects:
    """One for each combination, all marked differently: two subjects of one combination answer to the same words."""
    toys = make_toys(combinations, generator, textured=False)
    return mark(toys, torch.ones(len(toys), dtype=torch.bool), generator)


def mark(toys: Toys, which: Tensor, generator: torch.Generator) -> Subjects:
    """Random markings for those of the toys [b] where `which`, [b], is true."""
    n, places = len(toys), len(_PLACES)

    def colours(count: int) -> Tensor:
        other = 1 + torch.randint(len(_DYES) - 1, (n, count), generator=generator)
        return _DYES[(toys.colour[:, None] + other) % len(_DYES)]  # never the toy's own

    def chosen(probability: float, count: int) -> Tensor:
        return (torch.rand(n, count, generator=generator) < probability) & which[:, None]

    sizes = torch.where(chosen(0.6, places), uniform(n * places, 28, 42, generator).reshape(n, places), 0.0)
    return Subjects(toys, chosen(0.6, 6), colours(6), sizes, colours(places))


def build_subjects(subjects: Subjects, time: Tensor) -> Primitives:
    """`world.build` with the markings, at scene times [b]."""
    body = build(subjects.toys, time)
    colour = body.colour.clone()
    colour[:, _LIMBS] = torch.where(subjects.dyed[..., None], subjects.dyes, colour[:, _LIMBS])

    slot, along, azimuth, elevation = _PLACES.to(colour.device).unbind(1)
    host = body[:, slot.long()]  # type: ignore[index]
    azimuth, elevation, size = torch.deg2rad(azimuth), torch.deg2rad(elevation), torch.deg2rad(subjects.sizes)
    outward = torch.stack(
        [azimuth.cos() * elevation.cos(), azimuth.sin() * elevation.cos(), elevation.sin()], dim=-1
    )
    radius = torch.lerp(host.radii[..., 0], host.radii[..., 1], along)
    centre = _DEPTH * radius[..., None] * outward
    centre[..., 2] += along * host.height
    # The ball that meets the host's surface `size` away from `outward`: the law of cosines.
    own = radius * (1 + _DEPTH**2 - 2 * _DEPTH * size.cos()).sqrt() * (size > 0)
    marks = Primitives(
        to_cone=torch.cat([host.to_cone[..., :3], host.to_cone[..., 3:] - centre[..., None]], dim=-1),
        height=torch.zeros_like(own), radii=own[..., None].expand(*own.shape, 2), colour=subjects.colours,
        rest=torch.cat([host.rest[..., :3], host.rest[..., 3:] + host.rest[..., :3] @ centre[..., None]], dim=-1),
        stripes=torch.zeros_like(host.stripes), bone=host.bone,
    )
    parts = {field.name: (getattr(body, field.name), getattr(marks, field.name)) for field in fields(Primitives)}
    parts["colour"] = colour, marks.colour
    return Primitives(**{name: torch.cat(pair, dim=1) for name, pair in parts.items()})


def draw_subjects(subjects: Subjects, cameras: Cameras, size: int, time: float = 0.0) -> Tensor:
    """One picture a subject and camera [b], at rest or at a scene time: [b, size, size, 4] premultiplied."""
    return draw_primitives_rgba(build_subjects(subjects, torch.full((len(subjects),), time)), cameras, size)


def photographs(subject: Subjects, n: int, generator: torch.Generator, size: int = 128) -> Tensor:
    """As someone takes them who walks around one subject: other backgrounds, distances and light each time,
    [n, size, size, 3]."""
    assert len(subject) == 1
    fov = uniform(n, 25, 50, generator)
    azimuth = 360 / n * torch.arange(n) + uniform(n, -25, 25, generator)
    distance = framing_distance(fov, generator) * uniform(n, 0.8, 1.05, generator)
    cameras = orbit(azimuth, uniform(n, 0, 32, generator), distance, fov)
    ramp = background_images(n, generator).permute(0, 3, 1, 2)
    background = F.interpolate(ramp, (size, 1), mode="bilinear").permute(0, 2, 3, 1)
    pictures = over(draw_subjects(subject[torch.zeros(n, dtype=torch.long)], cameras, size), background)
    light = uniform(n, 0.8, 1.1, generator)[:, None] * (1 + 0.12 * (torch.rand(n, 3, generator=generator) - 0.5))
    return (pictures * light[:, None, None]).clamp(0, 1)


def portraits(subjects: Subjects, size: int = 64, times: Sequence[float] = (0.0,)) -> Tensor:
    """Exact drawings of each subject [b] from all around, at some times of its motion, cut to the figure: [b, views,
    values], for `differences`."""
    azimuth = torch.arange(0.0, 360.0, 15.0).repeat(3)
    elevation = torch.tensor([0.0, 15.0, 30.0]).repeat_interleave(24)
    fov = torch.full_like(azimuth, 30.0)
    cameras = orbit(azimuth, elevation, 1 / torch.tan(torch.deg2rad(fov) / 2), fov)
    crowd = []
    for i in range(len(subjects)):
        same = subjects[torch.full((len(azimuth),), i)]
        drawings = torch.cat([draw_subjects(same, cameras, size, time) for time in times])
        crowd.append(torch.stack([_cut(rgba).flatten() for rgba in drawings]))
    return torch.stack(crowd)


def differences(images: Tensor, crowd: Tensor) -> Tensor:
    """How far each picture [n, h, w, 3] is from each subject of `portraits`, [b, views, values]: [n, b], the mean
    difference of colours and outlines from the nearest of its drawings, both cut to the figure. A picture of nothing
    is at 1.

    The smallest of a row says who is on the picture. Backgrounds may change from row to row, as the toy world's do.
    """
    pictures = torch.stack([_cut(rgba).flatten() for rgba in map(_matted, images)])
    far = torch.cdist(pictures, crowd.flatten(0, 1), p=1).unflatten(1, crowd.shape[:2]).amin(2) / crowd.shape[2]
    return torch.where(pictures.sum(1, keepdim=True) == 0, 1.0, far)


def _matted(image: Tensor) -> Tensor:
    """[h, w, 3] -> [h, w, 4], premultiplied: what differs from the background, which is as the ends of each row are."""
    ends = torch.cat([image[:, :2], image[:, -2:]], dim=1).median(1).values
    mask = ((image - ends[:, None]).abs().amax(-1, keepdim=True) > 0.1).float()
    return torch.cat([image * mask, mask], dim=-1)


def _cut(rgba: Tensor) -> Tensor:
    """A figure [h, w, 4] alone, stretched to [4, cells, cells]; zeros for none."""
    solid = rgba[..., 3] > 0.5
    # Rows and columns with but a pixel or two are noise.
    rows, columns = ((solid.sum(axis) > 1).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows) or not len(columns):
        return rgba.new_zeros(4, _CELLS, _CELLS)
    figure = rgba[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].permute(2, 0, 1)
    return F.adaptive_avg_pool2d(F.interpolate(figure[None], (64, 64), mode="bilinear"), _CELLS)[0]


def main() -> None:
    """Write photos of one subject."""
    parser = argparse.ArgumentParser(prog="python -m dream4d.toyworld.subjects", description=main.__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the photos")
    parser.add_argument("--kind", choices=KINDS, default="cat")
    parser.add_argument("--colour", choices=COLOURS, default="orange", help="of its body")
    parser.add_argument("--seed", type=int, default=0, help="tells subjects of one kind and colour apart")
    parser.add_argument("--photos", type=int, default=PHOTOS)
    arguments = parser.parse_args()
    generator = torch.Generator().manual_seed(arguments.seed)
    subject = make_subjects([Combination(arguments.kind, arguments.colour, None)], generator)
    for index, photo in enumerate(photographs(subject, arguments.photos, generator)):
        write_png(arguments.out / f"{index}.png", photo)


if __name__ == "__main__":
    main()
