"""The exact renderer of the toy world: closed-form ray and round-cone intersection, baked studio light.

`draw` is plain torch, gives everything, and runs anywhere; `draw_rgba` gives colour alone, by one Triton kernel on
NVIDIA GPUs, where the priors are trained, and by a Numba kernel on CPUs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dream4d.cameras import Cameras, Rays
from dream4d.toyworld.world import Primitives, Toys, build, world_from_rest

LIGHT = (0.53, 0.33, 0.78)  # toward the key light, fixed in the world so that light is part of a toy's colour
AMBIENT, KEY = 0.52, 0.56
_FAR = 1e9
_CHUNK = 2**14  # rays at a time, which stay in the cache


@dataclass(frozen=True)
class Picture:
    """rgba [b, h, w, 4], premultiplied; mask [b, h, w] bool; depth [b, h, w], distance along the ray, 0 where empty;
    rest [b, h, w, 3], the seen surface point in the rest pose; bone and slot [b, h, w], -1 where empty."""

    rgba: Tensor
    mask: Tensor
    depth: Tensor
    rest: Tensor
    bone: Tensor
    slot: Tensor

    def over(self, background: Tensor) -> Tensor:
        """[b, h, w, 3] before a colour [3] or [b, 3]."""
        return over(self.rgba, background)


def over(rgba: Tensor, background: Tensor) -> Tensor:
    """Premultiplied [b, h, w, 4] before a colour [3] or [b, 3], or pictures that fit it -> [b, h, w, 3]."""
    if background.ndim < 4:
        background = background.reshape(-1, 1, 1, 3)
    return rgba[..., :3] + (1 - rgba[..., 3:]) * background


def draw(toys: Toys, time: Tensor, cameras: Cameras, size: int, *, samples: int = 2) -> Picture:
    """One picture a toy: toys, times and cameras are [b]. `samples` squared rays a pixel for colour, the first of them
    for everything else."""
    return draw_primitives(build(toys, time), cameras, size, samples=samples)


def draw_primitives(primitives: Primitives, cameras: Cameras, size: int, *, samples: int = 2) -> Picture:
    """`draw`, of what `world.build` gave."""
    rays = cameras.rays(size * samples, size * samples)
    distance, slot = _trace(primitives, rays)
    mask = slot >= 0
    hit = mask.nonzero()[:, 0], slot[mask]
    at = rays.origins[mask] + distance[mask][:, None] * rays.directions[mask]
    point = _affine(primitives.to_cone[hit], at)
    rgb = _shade(primitives, hit, point)
    rgba, rest = rgb.new_zeros(*mask.shape, 4), rgb.new_zeros(*mask.shape, 3)
    rgba[mask] = torch.cat([rgb, torch.ones_like(rgb[:, :1])], dim=-1)
    rest[mask] = _affine(primitives.rest[hit], point)
    bone = torch.full_like(slot, -1)
    bone[mask] = primitives.bone[hit]
    if samples > 1:
        rgba = torch.nn.functional.avg_pool2d(rgba.permute(0, 3, 1, 2), samples).permute(0, 2, 3, 1)
    depth = torch.where(mask, distance, 0.0)
    return Picture(rgba, *(value[:, ::samples, ::samples] for value in (mask, depth, rest, bone, slot)))


def surface_motion(toys: Toys, picture: Picture, time: Tensor) -> Tensor:
    """The true backward displacement of the seen surface, [b, h, w, 3]: its place at time 0 minus that at `time`."""
    flat, bone = picture.rest.flatten(1, 2), picture.bone.clamp(min=0).flatten(1, 2)
    start = world_from_rest(toys, torch.zeros_like(time), flat, bone)
    now = world_from_rest(toys, time, flat, bone)
    return torch.where(picture.mask[..., None], (start - now).reshape(picture.rest.shape), 0.0)


def background_images(n: int, generator: torch.Generator, rows: int = 64) -> Tensor:
    """[n, rows, 1, 3]: pastel, of any colour, or grey; some change gently from top to bottom."""
    colour = torch.rand(n, 2, 3, generator=generator)
    pastel, grey = 0.55 + 0.45 * colour, colour[..., :1].expand(-1, -1, 3)
    choice = torch.rand(n, 1, 1, generator=generator)
    ends = torch.where(choice < 0.5, pastel, torch.where(choice < 0.75, colour, grey))
    flat = torch.rand(n, 1, generator=generator) < 0.6
    top, bottom = ends[:, 0], torch.where(flat, ends[:, 0], 0.6 * ends[:, 0] + 0.4 * ends[:, 1])
    ramp = torch.linspace(0, 1, rows)[None, :, None, None]
    return top[:, None, None] * (1 - ramp) + bottom[:, None, None] * ramp


def draw_rgba(toys: Toys, time: Tensor, cameras: Cameras, size: int, *, samples: int = 2) -> Tensor:
    """The colour of `draw`, [b, size, size, 4] premultiplied, by the fastest way on the toys' device."""
    return draw_primitives_rgba(build(toys, time), cameras, size, samples=samples)


def draw_primitives_rgba(primitives: Primitives, cameras: Cameras, size: int, *, samples: int = 2) -> Tensor:
    """`draw_rgba`, of what `world.build` gave."""
    if primitives.height.is_cuda:
        from dream4d.toyworld import draw_triton

        return draw_triton.draw_rgba(primitives, cameras, size, samples)
    if primitives.height.device.type == "cpu":
        from dream4d.toyworld import draw_cpu

        return draw_cpu.draw_rgba(primitives, cameras, size, samples)
    return draw_primitives(primitives, cameras, size, samples=samples).rgba


def _affine(matrix: Tensor, points: Tensor) -> Tensor:
    return (matrix[..., :3] @ points[..., None])[..., 0] + matrix[..., 3]


def _trace(primitives: Primitives, rays: Rays) -> tuple[Tensor, Tensor]:
    """Distance (`_FAR` for nothing) and slot (-1) of what each ray meets first, both [b, h, w]."""
    nearest = -(rays.origins * rays.directions).sum(-1)  # to the point that is nearest to the world's origin
    start = rays.origins + nearest[..., None] * rays.directions  # float32 resolves thin cones from there
    origins, directions = start.flatten(1, 2), rays.directions.flatten(1, 2)
    parts = [
        _trace_toy(primitives[i], origins[i, first : first + _CHUNK], directions[i, first : first + _CHUNK])
        for i in range(len(origins))
        for first in range(0, origins.shape[1], _CHUNK)
    ]
    distance, slot = (torch.cat(part).reshape(nearest.shape) for part in zip(*parts, strict=True))
    return torch.where(slot >= 0, nearest + distance, _FAR), slot


def _trace_toy(toy: Primitives, start: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Distance from `start` and slot for rays [n, 3]; `toy` has no batch."""
    (x, y, z), (dx, dy, dz) = start.T.contiguous(), directions.T.contiguous()
    distance = torch.full_like(x, _FAR)
    slot = torch.full_like(x, -1, dtype=torch.long)
    cones = zip(toy.to_cone.tolist(), toy.height.tolist(), toy.radii.tolist(), strict=True)
    for p, (to_cone, height, (ra, rb)) in enumerate(cones):
        if ra > 0:
            origin = [a * x + b * y + c * z + shift for a, b, c, shift in to_cone]
            direction = [a * dx + b * dy + c * dz for a, b, c, _ in to_cone]
            t = _round_cone(origin, direction, height, ra, rb)
            slot = torch.where(t < distance, p, slot)
            distance = torch.minimum(t, distance)
    return distance, slot


def _round_cone(origin: list[Tensor], direction: list[Tensor], height: float, ra: float, rb: float) -> Tensor:
    """The least t where origin + t direction (x, y and z of each; of any length) meets the round cone from (0, 0, 0)
    to (0, 0, height); `_FAR` for nowhere."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    oo, od, dd = ox * ox + oy * oy, ox * dx + oy * dy, dx * dx + dy * dy
    whole = dd + dz * dz
    t = torch.full_like(whole, _FAR)
    for z, radius in ((oz, ra), (oz - height, rb)):
        half = od + z * dz
        root = half**2 - whole * (oo + z * z - radius**2)
        t = torch.minimum(t, torch.where(root > 0, (-half - _sqrt(root)) / whole, _FAR))
    slope = (ra - rb) / max(height, 1e-6)  # the side is a rho + slope z = ra, and a^2 + slope^2 = 1
    if height < 1e-6 or abs(slope) >= 1:  # one ball holds the other
        return t
    a = math.sqrt(1 - slope**2)
    r0 = ra - slope * oz
    qa = a**2 * dd - (slope * dz) ** 2
    qh = a**2 * od + r0 * slope * dz
    root = qh**2 - qa * (a**2 * oo - r0**2)
    side = (-qh - _sqrt(root)) / torch.where(qa.abs() < 1e-9, 1e-9, qa)
    z = oz + side * dz
    along = a * z - slope * torch.hypot(ox + side * dx, oy + side * dy)
    valid = (root > 0) & (along > 0) & (along < a * height) & (ra - slope * z > 0)
    return torch.where(valid & (side < t), side, t)


def _sqrt(x: Tensor) -> Tensor:
    """Of positive numbers. `torch.sqrt` shares even small tensors among threads and waits long on a busy machine."""
    return x * x.rsqrt()


def _shade(primitives: Primitives, hit: tuple[Tensor, Tensor], point: Tensor) -> Tensor:
    """Colour [n, 3] of points [n, 3] in the space of the cones that they are on; `hit`: toy and slot of each."""
    ra, rb = primitives.radii[hit].unbind(-1)
    height = primitives.height[hit]
    slope = (ra - rb) / height.clamp(min=1e-6)
    lean = slope * point[:, :2].norm(dim=-1) / (1 - slope**2).clamp(min=1e-6).sqrt()
    foot = (point[:, 2] - lean).clamp(min=0).minimum(height)  # of the normal, on the axis
    normal = torch.cat([point[:, :2], (point[:, 2] - foot)[:, None]], dim=-1)
    normal = (primitives.to_cone[hit][..., :3].mT @ normal[..., None])[..., 0]
    wrap = (0.5 + 0.5 * torch.nn.functional.normalize(normal, dim=-1) @ normal.new_tensor(LIGHT)).clamp(0, 1)
    strength, frequency, phase = primitives.stripes[hit].unbind(-1)
    rest_z = _affine(primitives.rest[hit], point)[:, 2]
    stripe = 1 - strength * (0.5 + 0.5 * torch.sin(frequency * rest_z + phase)) ** 2
    light = AMBIENT + KEY * wrap**1.5
    return (primitives.colour[hit] * (stripe * light)[:, None]).clamp(0, 1)
