"""Toys: what they are made of, how they vary, and how they move.

A toy is a set of round cones (capsules with two radii), each squashed along the axes and fixed to one of seven bones.
Everything is batched over toys. Lengths are scene units: a toy fits the ball of radius 1 also while it moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dream4d.toyworld.grammar import COLOURS, KINDS, MOTIONS, PROPS, Combination

PALETTE = torch.tensor([  # the colours, in the order of grammar.COLOURS
    [0.86, 0.10, 0.10], [0.98, 0.50, 0.06], [0.98, 0.86, 0.12], [0.16, 0.68, 0.20],
    [0.12, 0.30, 0.90], [0.50, 0.16, 0.72], [1.00, 0.52, 0.76], [0.96, 0.96, 0.96],
])  # fmt: skip
BODY, LIGHT, DARK = 0, 1, 2  # materials that depend on the toy's colour; the others are fixed
BLACK, WHITE, PINK, GOLD, RED, BROWN, SKY, MINT, TEAL = range(3, 12)
FIXED = torch.tensor([
    [0.05, 0.05, 0.07], [0.98, 0.98, 0.98], [0.98, 0.45, 0.55], [1.00, 0.68, 0.10],
    [0.85, 0.08, 0.15], [0.50, 0.28, 0.12], [0.20, 0.75, 0.95], [0.45, 0.95, 0.75], [0.02, 0.50, 0.55],
])  # fmt: skip

ROOT, TORSO, HEAD, ARM_L, ARM_R, LEG_L, LEG_R = range(7)
PIVOTS = torch.tensor([  # the joint of each bone in the rest pose; the left of a toy is +y
    [0.0, 0.0, -0.30], [0.0, 0.0, -0.26], [0.0, 0.0, 0.04], [0.0, 0.15, -0.03], [0.0, -0.15, -0.03],
    [0.0, 0.09, -0.30], [0.0, -0.09, -0.30],
])  # fmt: skip
_PARENT = (None, ROOT, TORSO, TORSO, TORSO, ROOT, ROOT)
_EAR = 7  # scale group of ears and tails: the bone's own scale times another


@dataclass(frozen=True)
class Cone:
    """A round cone from `a` to `b` with radii `ra` and `rb`, then squashed about its middle; rest pose."""

    bone: int
    material: int
    a: tuple[float, float, float]
    ra: float
    b: tuple[float, float, float] | None = None
    rb: float | None = None
    squash: tuple[float, float, float] = (1.0, 1.0, 1.0)
    ear: bool = False


def _both(cone: Cone) -> list[Cone]:
    """A cone and its mirror image; limbs change to the other side's bone."""
    other = {ARM_L: ARM_R, LEG_L: LEG_R}.get(cone.bone, cone.bone)

    def flip(p: tuple[float, float, float]) -> tuple[float, float, float]:
        return p[0], -p[1], p[2]

    return [cone, replace(cone, bone=other, a=flip(cone.a), b=None if cone.b is None else flip(cone.b))]


_EYE_Z = 0.30


def _body() -> list[Cone]:
    return [
        Cone(TORSO, BODY, (0, 0, -0.20), 0.20, (0, 0, -0.08), 0.15, (0.95, 1.0, 1.0)),
        Cone(HEAD, BODY, (0, 0, 0.24), 0.26, squash=(0.94, 1.06, 0.94)),
        *_both(Cone(ARM_L, BODY, (0, 0.15, -0.03), 0.08, (0.03, 0.31, -0.13), 0.078)),
        *_both(Cone(ARM_L, LIGHT, (0.035, 0.335, -0.15), 0.092)),
        *_both(Cone(LEG_L, BODY, (0, 0.10, -0.30), 0.085, (0, 0.11, -0.46), 0.075)),
    ]


def _feet(material: int = DARK) -> list[Cone]:
    return _both(Cone(LEG_L, material, (0.0, 0.11, -0.50), 0.075, (0.08, 0.12, -0.51), 0.065, (1, 1, 0.8)))


def _belly(material: int = LIGHT) -> list[Cone]:
    return [Cone(TORSO, material, (0.095, 0, -0.19), 0.135, (0.09, 0, -0.12), 0.11, (0.85, 0.95, 1))]


def _eyes(y: float = 0.105, z: float = _EYE_Z, x: float = 0.205, size: float = 1.0) -> list[Cone]:
    return [
        *_both(Cone(HEAD, WHITE, (x, y, z), 0.075 * size, squash=(0.55, 0.9, 1.15))),
        *_both(Cone(HEAD, BLACK, (x + 0.026, y - 0.006, z), 0.052 * size, squash=(0.6, 0.9, 1.15))),
        *_both(Cone(HEAD, WHITE, (x + 0.054, y + 0.008, z + 0.024), 0.018 * size)),
    ]


def _cheeks(z: float = 0.19) -> list[Cone]:
    return _both(Cone(HEAD, PINK, (0.185, 0.165, z), 0.045, squash=(0.6, 1, 0.8)))


def _muzzle(material: int = LIGHT, nose: int = BLACK, reach: float = 0.24) -> list[Cone]:
    return [
        Cone(HEAD, material, (reach, 0, 0.165), 0.085, squash=(0.8, 1.15, 0.8)),
        Cone(HEAD, nose, (reach + 0.07, 0, 0.195), 0.032, squash=(0.8, 1.2, 0.9)),
    ]


def _kinds() -> dict[str, list[Cone]]:
    face = [*_belly(), *_eyes(), *_cheeks()]
    return {
        "cat": [
            *face, *_feet(), *_muzzle(WHITE, PINK, 0.22),
            *_both(Cone(HEAD, BODY, (-0.01, 0.155, 0.40), 0.10, (-0.01, 0.215, 0.60), 0.012, (0.6, 1, 1), True)),
            *_both(Cone(HEAD, PINK, (0.035, 0.160, 0.42), 0.06, (0.025, 0.208, 0.56), 0.010, (0.6, 1, 1), True)),
            Cone(TORSO, BODY, (-0.17, 0, -0.24), 0.045, (-0.40, 0.10, -0.20), 0.04, ear=True),
            Cone(TORSO, DARK, (-0.40, 0.10, -0.20), 0.042, (-0.47, 0.12, 0.05), 0.035, ear=True),
        ],
        "dog": [
            *face, *_feet(), *_muzzle(LIGHT, BLACK, 0.27),
            *_both(Cone(HEAD, DARK, (-0.01, 0.24, 0.38), 0.065, (0.0, 0.335, 0.12), 0.09, (0.85, 0.6, 1), True)),
            Cone(TORSO, DARK, (-0.17, 0, -0.20), 0.06, (-0.30, 0, 0.02), 0.035, ear=True),
        ],
        "rabbit": [
            *face, *_feet(WHITE), *_muzzle(WHITE, PINK, 0.22),
            *_both(Cone(HEAD, BODY, (-0.02, 0.09, 0.44), 0.058, (-0.05, 0.135, 0.72), 0.062, (0.6, 1, 1), True)),
            *_both(Cone(HEAD, PINK, (0.015, 0.092, 0.48), 0.034, (-0.015, 0.133, 0.69), 0.036, (0.5, 1, 1), True)),
            Cone(TORSO, WHITE, (-0.21, 0, -0.26), 0.095, ear=True),
        ],
        "bear": [
            *face, *_feet(), *_muzzle(LIGHT, BLACK, 0.25),
            *_both(Cone(HEAD, BODY, (-0.01, 0.215, 0.445), 0.098, squash=(0.65, 1, 1), ear=True)),
            *_both(Cone(HEAD, LIGHT, (0.042, 0.215, 0.445), 0.06, squash=(0.5, 1, 1), ear=True)),
            Cone(TORSO, DARK, (-0.20, 0, -0.24), 0.06, ear=True),
        ],
        "elephant": [
            *_belly(), *_eyes(y=0.115, z=0.32), *_cheeks(0.20), *_feet(LIGHT),
            *_both(Cone(HEAD, BODY, (-0.03, 0.36, 0.27), 0.19, squash=(0.25, 1, 1.1), ear=True)),
            *_both(Cone(HEAD, PINK, (0.005, 0.365, 0.27), 0.135, squash=(0.2, 1, 1.1), ear=True)),
            Cone(HEAD, BODY, (0.22, 0, 0.20), 0.085, (0.36, 0, 0.06), 0.062),
            Cone(HEAD, BODY, (0.36, 0, 0.06), 0.062, (0.44, 0, -0.06), 0.05),
            Cone(TORSO, DARK, (-0.17, 0, -0.20), 0.025, (-0.27, 0, -0.36), 0.03, ear=True),
        ],
        "frog": [
            *_belly(WHITE), *_cheeks(0.20), *_feet(BODY),
            *_both(Cone(HEAD, BODY, (0.06, 0.145, 0.46), 0.105)),
            *_eyes(y=0.15, z=0.475, x=0.125, size=1.1),
            Cone(HEAD, RED, (0.225, 0.09, 0.185), 0.022, (0.25, 0, 0.165), 0.024),
            Cone(HEAD, RED, (0.225, -0.09, 0.185), 0.022, (0.25, 0, 0.165), 0.024),
        ],
        "penguin": [
            *_belly(WHITE), *_feet(GOLD), *_cheeks(0.20),
            Cone(HEAD, WHITE, (0.085, 0, 0.215), 0.175, squash=(0.95, 1.1, 0.9)),
            *_eyes(y=0.10, z=0.29, x=0.215),
            Cone(HEAD, GOLD, (0.23, 0, 0.20), 0.06, (0.37, 0, 0.18), 0.012, (1, 1.2, 0.8)),
            Cone(HEAD, DARK, (-0.06, 0, 0.47), 0.05, (-0.13, 0, 0.58), 0.02, (1, 0.8, 1), True),
        ],
    }  # fmt: skip


def _props() -> dict[str, list[Cone]]:
    hand = (0.035, 0.335, -0.15)  # the left one
    return {
        "top hat": [
            Cone(HEAD, BLACK, (0, 0, 0.47), 0.25, squash=(1, 1, 0.13)),
            Cone(HEAD, BLACK, (0, 0, 0.50), 0.15, (0, 0, 0.72), 0.165, (1, 1, 0.25)),
            Cone(HEAD, RED, (0, 0, 0.50), 0.158, (0, 0, 0.55), 0.163, (1, 1, 0.25)),
        ],
        "scarf": [
            Cone(TORSO, RED, (0, 0, 0.0), 0.225, squash=(0.95, 1.0, 0.30)),
            Cone(TORSO, WHITE, (0, 0, -0.035), 0.215, squash=(0.95, 1.0, 0.24)),
            Cone(TORSO, RED, (0.20, 0.09, -0.03), 0.05, (0.235, 0.11, -0.15), 0.055, (0.6, 1, 1)),
            Cone(TORSO, WHITE, (0.235, 0.11, -0.15), 0.056, (0.235, 0.115, -0.20), 0.058, (0.6, 1, 1)),
            Cone(TORSO, RED, (0.235, 0.115, -0.20), 0.058, (0.235, 0.12, -0.27), 0.06, (0.6, 1, 1)),
        ],
        "cape": [
            Cone(TORSO, TEAL, (-0.19, 0, -0.02), 0.16, (-0.30, 0, -0.38), 0.27, (0.2, 1.0, 1)),
            Cone(TORSO, TEAL, (0, 0, 0.0), 0.205, squash=(0.95, 1.0, 0.26)),
            Cone(TORSO, GOLD, (0.19, 0, -0.02), 0.05),
        ],
        "balloon": [
            Cone(ARM_L, WHITE, hand, 0.014, (0.05, 0.47, 0.30), 0.014),
            Cone(ARM_L, SKY, (0.05, 0.49, 0.47), 0.18, (0.05, 0.48, 0.39), 0.14),
            Cone(ARM_L, SKY, (0.05, 0.47, 0.25), 0.03),
        ],
        "lollipop": [
            Cone(ARM_L, WHITE, (0.05, 0.34, -0.25), 0.02, (0.08, 0.42, 0.06), 0.02),
            Cone(ARM_L, MINT, (0.085, 0.45, 0.17), 0.155, squash=(0.36, 1, 1)),
            Cone(ARM_L, PINK, (0.09, 0.45, 0.17), 0.10, squash=(0.66, 1, 1)),
            Cone(ARM_L, MINT, (0.095, 0.45, 0.17), 0.05, squash=(1.5, 1, 1)),
        ],
        "skateboard": [
            Cone(ROOT, BROWN, (-0.28, 0, -0.60), 0.16, (0.30, 0, -0.60), 0.16, (1, 1, 0.22)),
            *_both(Cone(ROOT, GOLD, (-0.24, 0.09, -0.655), 0.055)),
            *_both(Cone(ROOT, GOLD, (0.26, 0.09, -0.655), 0.055)),
        ],
    }


@dataclass(frozen=True)
class Toys:
    """A batch of toys [b]: attributes as indices into the grammar's lists (prop 0 is none), and what no word says.

    scales [b, 8]: of each bone and of ears and tails. stripes [b, 3]: strength, frequency, phase.
    """

    kind: Tensor
    colour: Tensor
    prop: Tensor
    motion: Tensor
    scales: Tensor
    stripes: Tensor

    def __len__(self) -> int:
        return len(self.kind)

    def __getitem__(self, index: Tensor | slice) -> Toys:
        return Toys(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def to(self, device: torch.device | str) -> Toys:
        return Toys(*(getattr(self, name).to(device) for name in self.__dataclass_fields__))


def make_toys(
    combinations: Sequence[Combination], generator: torch.Generator | None = None, *, textured: bool = True
) -> Toys:
    """Toys of the given combinations, with random proportions and stripes, or the average ones without a generator."""
    props = [None, *PROPS]
    index = [
        (KINDS.index(c.kind or "cat"), COLOURS.index(c.colour or "red"), props.index(c.prop),
         MOTIONS.index(c.motion or MOTIONS[0]))
        for c in combinations
    ]  # fmt: skip
    kind, colour, prop, moving = torch.tensor(index, dtype=torch.long).reshape(-1, 4).unbind(1)
    return Toys(kind, colour, prop, moving, *random_variation(len(index), generator, textured))


def random_variation(n: int, generator: torch.Generator | None, textured: bool) -> tuple[Tensor, Tensor]:
    spread = torch.tensor([0.0, 0.05, 0.07, 0.07, 0.07, 0.06, 0.06, 0.10])
    if generator is None:
        return torch.ones(n, 8), torch.tensor([0.3 if textured else 0.0, 30.0, 0.0]).expand(n, 3)
    scales = 1 + spread * (2 * torch.rand(n, 8, generator=generator) - 1)
    scales[:, ARM_R], scales[:, LEG_R] = scales[:, ARM_L], scales[:, LEG_L]
    u = torch.rand(n, 3, generator=generator)
    strength = 0.45 * u[:, 0] if textured else torch.zeros(n)
    return scales, torch.stack([strength, 24 + 16 * u[:, 1], 2 * math.pi * u[:, 2]], dim=1)


@dataclass(frozen=True)
class Primitives:
    """What the renderer draws: the cones of a batch of posed toys, [b, p, ...].

    to_cone [3, 4]: world to the cone's own space, where it stands on the origin along +z. height, radii [2] there;
    an unused slot has radii 0. colour [3]. rest [3, 4]: from the cone's space to the rest pose. stripes [3]. bone.
    """

    to_cone: Tensor
    height: Tensor
    radii: Tensor
    colour: Tensor
    rest: Tensor
    stripes: Tensor
    bone: Tensor

    def __getitem__(self, index: int | Tensor | slice) -> Primitives:
        return Primitives(*(getattr(self, name)[index] for name in self.__dataclass_fields__))


def _table(parts: list[list[Cone]]) -> dict[str, Tensor]:
    slots = max(len(part) for part in parts)
    empty = Cone(ROOT, BODY, (0, 0, 0), 0.0)
    rows = [part + [empty] * (slots - len(part)) for part in parts]

    def tensor(get) -> Tensor:  # type: ignore[no-untyped-def]
        return torch.tensor([[get(cone) for cone in row] for row in rows])

    return {
        "a": tensor(lambda c: [float(x) for x in c.a]),
        "b": tensor(lambda c: [float(x) for x in (c.b or c.a)]),
        "radii": tensor(lambda c: [float(c.ra), float(c.ra if c.rb is None else c.rb)]),
        "squash": tensor(lambda c: [float(x) for x in c.squash]),
        "bone": tensor(lambda c: c.bone),
        "material": tensor(lambda c: c.material),
        "ear": tensor(lambda c: c.ear),
    }


_KIND_TABLE = _table([_body() + cones for cones in (_kinds()[kind] for kind in KINDS)])
_PROP_TABLE = _table([[], *(_props()[prop] for prop in PROPS)])
_MIDDLE = 0.08  # height of the rest pose that comes to the origin, so that hats and feet are equally far from it


def build(toys: Toys, time: Tensor) -> Primitives:
    """The primitives of toys [b] at scene times [b] in [0, 1]."""
    device = toys.kind.device
    part = {
        key: torch.cat([_KIND_TABLE[key].to(device)[toys.kind], _PROP_TABLE[key].to(device)[toys.prop]], dim=1)
        for key in _KIND_TABLE
    }
    bone = part["bone"]
    pivot = PIVOTS.to(device)[bone]
    scale = torch.gather(toys.scales, 1, bone)
    ear = torch.where(part["ear"], toys.scales[:, _EAR:], 1.0)
    a = pivot + (part["a"] - pivot) * scale[..., None]
    b = a + (part["b"] - part["a"]) * (scale * ear)[..., None]
    radii = part["radii"] * (scale * ear)[..., None]

    middle = (a + b) / 2
    squash = part["squash"]
    half = (b - a) / 2 / squash  # in the squashed space
    height = 2 * half.norm(dim=-1)
    axis = torch.where(height[..., None] > 1e-6, half, half.new_tensor([0.0, 0.0, 1.0]))
    frame = _frame(axis / axis.norm(dim=-1, keepdim=True))  # columns: the cone's axes, [.., 3, 3]
    to_rest = squash[..., :, None] * frame
    rest_origin = middle - (squash * half)  # the cone's own origin: the centre of its first ball
    from_rest = frame.transpose(-1, -2) / squash[..., None, :]

    rotation, translation = pose(toys, time)  # rest to world, of each bone
    rotation = torch.gather(rotation, 1, bone[..., None, None].expand(*bone.shape, 3, 3))
    translation = torch.gather(translation, 1, bone[..., None].expand(*bone.shape, 3))
    inverse = rotation.transpose(-1, -2)
    linear = from_rest @ inverse
    offset = from_rest @ (-(inverse @ translation[..., None]) - rest_origin[..., None])
    strength, frequency, phase = (toys.stripes[:, None, i].expand(bone.shape) for i in range(3))
    striped = (part["material"] == BODY).float() * strength
    return Primitives(
        to_cone=torch.cat([linear, offset], dim=-1), height=height, radii=radii,
        colour=_colours(toys.colour, part["material"]),
        rest=torch.cat([to_rest, rest_origin[..., None]], dim=-1),
        stripes=torch.stack([striped, frequency, phase], dim=-1), bone=bone,
    )  # fmt: skip


def _frame(z: Tensor) -> Tensor:
    """A right-handed orthonormal frame with the given third axis, as columns."""
    helper = torch.where(z[..., :1].abs() < 0.7, z.new_tensor([1.0, 0.0, 0.0]), z.new_tensor([0.0, 1.0, 0.0]))
    x = torch.linalg.cross(helper, z)
    x = x / x.norm(dim=-1, keepdim=True)
    return torch.stack([x, torch.linalg.cross(z, x), z], dim=-1)


def _colours(colour: Tensor, material: Tensor) -> Tensor:
    body = PALETTE.to(colour.device)[colour]
    own = torch.stack([body, 0.35 * body + 0.65, 0.62 * body], dim=1)
    every = torch.cat([own, FIXED.to(colour.device).expand(len(colour), -1, -1)], dim=1)
    return torch.gather(every, 1, material[..., None].expand(*material.shape, 3))


def world_from_rest(toys: Toys, time: Tensor, rest: Tensor, bone: Tensor) -> Tensor:
    """Where points [b, n, 3] of the rest pose, on bones [b, n], are at times [b]."""
    rotation, translation = pose(toys, time)
    rotation = torch.gather(rotation, 1, bone[..., None, None].expand(*bone.shape, 3, 3))
    translation = torch.gather(translation, 1, bone[..., None].expand(*bone.shape, 3))
    return (rotation @ rest[..., None])[..., 0] + translation


def pose(toys: Toys, time: Tensor) -> tuple[Tensor, Tensor]:
    """Rotation [b, 7, 3, 3] and translation [b, 7, 3] of each bone, rest pose to world."""
    angles, shift = motion(toys.motion, time)
    shift = shift - shift.new_tensor([0.0, 0.0, _MIDDLE])
    local = _euler(angles)
    pivots = PIVOTS.to(time.device)
    rotations: list[Tensor] = []
    translations: list[Tensor] = []
    for bone, parent in enumerate(_PARENT):
        own = local[:, bone]
        about = pivots[bone] - own @ pivots[bone]
        if parent is None:
            rotations.append(own)
            translations.append(about + shift)
        else:
            up = rotations[parent]
            rotations.append(up @ own)
            translations.append((up @ about[..., None])[..., 0] + translations[parent])
    return torch.stack(rotations, 1), torch.stack(translations, 1)


def _euler(angles: Tensor) -> Tensor:
    """Degrees about x (roll to the right side), y (pitch forward), z (yaw to the left), [..., 3] -> [..., 3, 3]."""
    x, y, z = torch.deg2rad(angles).unbind(-1)
    one, zero = torch.ones_like(x), torch.zeros_like(x)

    def matrix(*rows: Tensor) -> Tensor:
        return torch.stack(rows, -1).reshape(*x.shape, 3, 3)

    roll = matrix(one, zero, zero, zero, x.cos(), -x.sin(), zero, x.sin(), x.cos())
    pitch = matrix(y.cos(), zero, y.sin(), zero, one, zero, -y.sin(), zero, y.cos())
    yaw = matrix(z.cos(), -z.sin(), zero, z.sin(), z.cos(), zero, zero, zero, one)
    return yaw @ pitch @ roll


def motion(which: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Joint angles [b, 7, 3] in degrees and the shift of the root [b, 3] at times [b]; all rest at times 0 and 1.

    Raising the left arm is a positive roll, the right arm a negative one; a leg's negative pitch swings it forward.
    """
    angles = torch.zeros(len(time), 7, 3, device=time.device)
    shift = torch.zeros(len(time), 3, device=time.device)
    x, y, z = 0, 1, 2

    def on(name: str) -> Tensor:
        return (which == MOTIONS.index(name)).to(time.dtype)

    once = torch.sin(math.pi * time) ** 2  # one swell
    twice = torch.sin(2 * math.pi * time) ** 2  # two swells
    swing = torch.sin(4 * math.pi * time) * _ease(time)  # two swings to and fro
    sway = torch.sin(2 * math.pi * time)  # one way, then the other
    raised = _ease(time)

    shift[:, z] += on("jumping") * 0.20 * twice
    angles[:, ARM_L, x] += on("jumping") * 15 * twice
    angles[:, ARM_R, x] -= on("jumping") * 15 * twice

    angles[:, ARM_R, x] -= on("waving") * raised * (45 + 30 * torch.sin(6 * math.pi * time))

    angles[:, HEAD, y] += on("nodding") * 26 * twice

    angles[:, LEG_L, y] += on("walking") * 42 * swing
    angles[:, LEG_R, y] -= on("walking") * 42 * swing
    angles[:, ARM_L, y] -= on("walking") * 30 * swing
    angles[:, ARM_R, y] += on("walking") * 30 * swing

    angles[:, ROOT, x] += on("dancing") * 17 * sway
    shift[:, y] -= on("dancing") * 0.10 * sway
    angles[:, ARM_L, x] += on("dancing") * 40 * raised
    angles[:, ARM_R, x] -= on("dancing") * 40 * raised

    angles[:, LEG_R, y] -= on("kicking") * 75 * twice

    angles[:, TORSO, y] += on("bowing") * 48 * once
    angles[:, HEAD, y] += on("bowing") * 14 * once
    return angles, shift


def _ease(time: Tensor) -> Tensor:
    """0 at both ends of the clip, 1 from .2 to .8, smooth between."""
    u = (torch.minimum(time, 1 - time) / 0.2).clamp(0, 1)
    return u * u * (3 - 2 * u)
