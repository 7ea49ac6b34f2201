"""The exact renderer of the toy world: closed-form ray and round-cone intersection, baked studio light.

`draw` is plain torch, gives everything, and runs anywhere; `draw_rgba` gives colour alone and uses one Triton kernel on
NVIDIA GPUs, where the priors are trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dream4d.cameras import Cameras, Rays
from dream4d.toyworld.world import Primitives, Toys, build, world_from_rest

LIGHT = (0.53, 0.33, 0.78)  # toward the key light, fixed in the world so that light is part of a toy's colour
AMBIENT, KEY = 0.52, 0.56
_FAR = 1e9


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
    """Premultiplied [b, h, w, 4] before a colour [3] or [b, 3] -> [b, h, w, 3]."""
    background = background.reshape(-1, 1, 1, 3)
    return rgba[..., :3] + (1 - rgba[..., 3:]) * background


def draw(toys: Toys, time: Tensor, cameras: Cameras, size: int, *, samples: int = 2) -> Picture:
    """One picture a toy: toys, times and cameras are [b]. `samples` squared rays a pixel for colour, the first of them
    for everything else."""
    primitives = build(toys, time)
    rays = cameras.rays(size * samples, size * samples)
    hit = _trace(primitives, rays)
    rgb, alpha = _shade(primitives, hit)
    rgba = torch.cat([rgb * alpha[..., None], alpha[..., None]], -1)
    if samples > 1:
        rgba = torch.nn.functional.avg_pool2d(rgba.permute(0, 3, 1, 2), samples).permute(0, 2, 3, 1)
        first = slice(None, None, samples)
        hit = _Hit(*(getattr(hit, name)[:, first, first] for name in hit.__dataclass_fields__))
    mask = hit.slot >= 0
    slot = hit.slot.clamp(min=0)
    batch = torch.arange(len(toys), device=slot.device)[:, None, None].expand_as(slot)
    rest = _affine(primitives.rest[batch, slot], hit.point)
    zero = torch.zeros((), device=slot.device)
    return Picture(
        rgba=rgba, mask=mask, depth=torch.where(mask, hit.distance, zero), rest=torch.where(mask[..., None], rest, zero),
        bone=torch.where(mask, primitives.bone[batch, slot], -1), slot=hit.slot,
    )  # fmt: skip


def surface_motion(toys: Toys, picture: Picture, time: Tensor) -> Tensor:
    """The true backward displacement of the seen surface, [b, h, w, 3]: its place at time 0 minus its place at `time`."""
    flat, bone = picture.rest.flatten(1, 2), picture.bone.clamp(min=0).flatten(1, 2)
    start = world_from_rest(toys, torch.zeros_like(time), flat, bone)
    now = world_from_rest(toys, time, flat, bone)
    return torch.where(picture.mask[..., None], (start - now).reshape(picture.rest.shape), 0.0)


def draw_rgba(toys: Toys, time: Tensor, cameras: Cameras, size: int, *, samples: int = 2) -> Tensor:
    """The colour of `draw`, [b, size, size, 4] premultiplied, by the fastest way on the toys' device."""
    if toys.kind.is_cuda:
        from dream4d.toyworld import draw_triton

        return draw_triton.draw_rgba(build(toys, time), cameras, size, samples)
    return draw(toys, time, cameras, size, samples=samples).rgba


@dataclass(frozen=True)
class _Hit:
    distance: Tensor  # [b, h, w]
    slot: Tensor  # [b, h, w], -1: nothing
    point: Tensor  # [b, h, w, 3] in the cone's space
    normal: Tensor  # [b, h, w, 3] in the cone's space, outward, not unit


def _affine(matrix: Tensor, points: Tensor) -> Tensor:
    return (matrix[..., :3] @ points[..., None])[..., 0] + matrix[..., 3]


def _trace(primitives: Primitives, rays: Rays) -> _Hit:
    shape = rays.origins.shape[:-1]
    distance = torch.full(shape, _FAR, device=rays.origins.device)
    slot = torch.full(shape, -1, dtype=torch.long, device=distance.device)
    point, normal = torch.zeros_like(rays.origins), torch.zeros_like(rays.origins)
    for p in range(primitives.height.shape[1]):
        linear = primitives.to_cone[:, p, None, None, :, :3]
        origin = _affine(primitives.to_cone[:, p, None, None], rays.origins)
        direction = (linear @ rays.directions[..., None])[..., 0]
        ra, rb = (primitives.radii[:, p, i, None, None] for i in range(2))
        height = primitives.height[:, p, None, None]
        t, z, lateral, lean = _round_cone(origin, direction, height, ra, rb)
        nearer = (t < distance) & (ra > 0)
        at = origin + t[..., None] * direction
        axial = torch.stack([at[..., 0], at[..., 1], torch.where(lateral, lean, at[..., 2] - z)], -1)
        distance = torch.where(nearer, t, distance)
        slot = torch.where(nearer, p, slot)
        point = torch.where(nearer[..., None], at, point)
        normal = torch.where(nearer[..., None], axial, normal)
    return _Hit(distance, slot, point, normal)


def _round_cone(o: Tensor, d: Tensor, height: Tensor, ra: Tensor, rb: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First hit of rays o + t d (d of any length) with the round cone from (0, 0, 0) to (0, 0, height).

    Returns t (`_FAR` for none), the height of the ball's centre that was hit, whether the side was hit instead, and
    there the z of the normal whose xy are the point's.
    """
    dd = (d * d).sum(-1)
    t, z = torch.full_like(dd, _FAR), torch.zeros_like(dd)
    for centre, radius in ((torch.zeros_like(height), ra), (height, rb)):
        oz = o[..., 2] - centre
        half = (o[..., :2] * d[..., :2]).sum(-1) + oz * d[..., 2]
        c = (o[..., :2] ** 2).sum(-1) + oz**2 - radius**2
        root = half**2 - dd * c
        ball = torch.where(root > 0, (-half - root.clamp(min=0).sqrt()) / dd, _FAR)
        z = torch.where(ball < t, centre.expand_as(z), z)
        t = torch.minimum(t, ball)
    slope = (ra - rb) / height.clamp(min=1e-6)  # b of the tangent line a rho + b z = ra
    a2 = (1 - slope**2).clamp(min=1e-6)
    r0 = ra - slope * o[..., 2]
    qa = a2 * (d[..., :2] ** 2).sum(-1) - (slope * d[..., 2]) ** 2
    qh = a2 * (o[..., :2] * d[..., :2]).sum(-1) + r0 * slope * d[..., 2]
    qc = a2 * (o[..., :2] ** 2).sum(-1) - r0**2
    root = qh**2 - qa * qc
    safe = torch.where(qa.abs() < 1e-9, 1e-9, qa)
    side = (-qh - root.clamp(min=0).sqrt()) / safe
    at = o + side[..., None] * d
    rho, a = at[..., :2].norm(dim=-1), a2.sqrt()
    along = a * at[..., 2] - slope * rho
    valid = (root > 0) & (along > 0) & (along < a * height) & (ra - slope * at[..., 2] > 0) & (height > 1e-6)
    lateral = valid & (slope.abs() < 1) & (side < t)
    return torch.where(lateral, side, t), z, lateral, slope / a * rho


def _shade(primitives: Primitives, hit: _Hit) -> tuple[Tensor, Tensor]:
    """Colour [b, h, w, 3] and coverage [b, h, w] of hits."""
    mask, slot = hit.slot >= 0, hit.slot.clamp(min=0)
    batch = torch.arange(len(slot), device=slot.device)[:, None, None].expand_as(slot)
    linear = primitives.to_cone[batch, slot][..., :3]
    normal = torch.nn.functional.normalize((linear.transpose(-1, -2) @ hit.normal[..., None])[..., 0], dim=-1)
    rest_z = (primitives.rest[batch, slot][..., 2, :3] * hit.point).sum(-1) + primitives.rest[batch, slot][..., 2, 3]
    strength, frequency, phase = primitives.stripes[batch, slot].unbind(-1)
    stripe = 1 - strength * (0.5 + 0.5 * torch.sin(frequency * rest_z + phase)) ** 2
    wrap = (0.5 + 0.5 * (normal * normal.new_tensor(LIGHT)).sum(-1)).clamp(0, 1)
    light = AMBIENT + KEY * wrap**1.5
    rgb = (primitives.colour[batch, slot] * (stripe * light)[..., None]).clamp(0, 1)
    return rgb, mask.to(rgb.dtype)
