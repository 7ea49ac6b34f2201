"""Images of a scene, by volume rendering."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dream4d.cameras import Cameras, Rays
from dream4d.occupancy import OccupancyGrid
from dream4d.ops.composite import composite
from dream4d.ops.march import Samples, march
from dream4d.scene import Query, Scene

BUDGET = 12 * 2**20
"""Samples; one of the paper's dynamic step of a soft scene needs fewer."""
STRETCHES = (24, 64, sys.maxsize)
"""Samples of a ray after which it is looked whether anything behind them can be seen."""
FEW = {"cpu": 2**14, "cuda": 2**21}
"""Samples for which it does not pay to look."""
OPAQUE = -math.log(1e-4)
"""Density times distance behind which nothing is computed: less than 1e-4 of the light comes from there."""


@dataclass(frozen=True)
class Render:
    """What rays see, [n, ..], a picture, [h, w, ..], or pictures, [b, h, w, ..].

    rgb: [.., 3], the foreground before its background. opacity: [..]. depth: [..], the sum of weight * distance.
    displacement: [.., 3], the sum of weight * displacement, in scene units (paper Sec. 3.2). foreground: [.., 3],
    premultiplied by opacity.
    """

    rgb: Tensor
    opacity: Tensor
    depth: Tensor
    displacement: Tensor
    foreground: Tensor


def render(
    scene: Scene, rays: Rays, time: float | Tensor = 0.0, *, occupancy: OccupancyGrid, samples_per_ray: int,
    generator: torch.Generator | None = None, background: Tensor | None = None, budget: int = BUDGET,
) -> Render:
    """What `rays` ([n, 3]) see at `time`, a number in [0, 1] or one for each ray, [n].

    samples_per_ray: samples across the diagonal of the scene's cube. generator: shifts each ray's samples by a random
    part of a step; None for no shift. background: a colour [3] or [n, 3]; None for the scene's own. budget: the most
    samples for which the fields keep what their gradients need. Where there are more, nothing is kept but where the
    samples lie; the backward pass renders them again, so many at a time. That gives the same gradients, to the scene's
    parameters only, for the time of one more forward pass.
    """
    origins, directions = rays.origins, rays.directions
    jitter = None
    if generator is not None:
        jitter = torch.rand(len(origins), generator=generator, device=generator.device).to(origins)
    samples = march(
        origins, directions, occupancy.occupied, radius=occupancy.radius, samples_per_ray=samples_per_ray, jitter=jitter
    )
    if torch.is_grad_enabled() and len(samples.ray) > budget:
        pixels = _Again.apply(scene, rays, time, samples, budget, *_trained(scene))  # type: ignore[no-untyped-call]
    else:
        pixels = _composite(*_look(scene, rays, time, samples, budget), len(origins))
    values, opacity, depth = pixels
    foreground = values[:, :3]
    behind = scene.background(directions) if background is None else background
    return Render(
        rgb=foreground + (1 - opacity)[:, None] * behind,
        opacity=opacity,
        depth=depth,
        displacement=values[:, 3:] if values.shape[1] > 3 else torch.zeros_like(foreground),
        foreground=foreground,
    )


def _look(scene: Scene, rays: Rays, time: float | Tensor, samples: Samples, budget: int) -> tuple[Samples, Query]:
    """The samples that are not hidden behind others, and the scene at them.

    Goes along all rays at once, in stretches, and follows a ray only as long as light comes through.
    """
    if len(samples.ray) <= FEW.get(samples.ray.device.type, 0):
        return samples, _query(scene, rays, time, samples)
    left = torch.arange(len(samples.ray), device=samples.ray.device)
    rank = left - torch.searchsorted(samples.ray, samples.ray)  # of a sample within its ray
    thickness = samples.start.new_zeros(len(rays.origins))
    seen: list[Tensor] = []
    queries: list[Query] = []
    for end in STRETCHES:
        near = rank[left] < end
        for now in left[near].split(budget):
            seen.append(now)
            queries.append(_query(scene, rays, time, _choose(samples, now)))
            lengths = (samples.end - samples.start)[now]
            thickness.index_add_(0, samples.ray[now], queries[-1].density.detach() * lengths)
        left = left[~near]
        if not len(left):
            break
        left = left[thickness[samples.ray[left]] < OPAQUE]
    order = torch.cat(seen)
    chosen = torch.zeros(len(samples.ray), dtype=torch.bool, device=order.device).index_fill_(0, order, True)
    place = (chosen.cumsum(0) - 1)[order]

    def sort(parts: Sequence[Tensor]) -> Tensor:
        joined = torch.cat(list(parts))
        return torch.empty_like(joined).index_copy(0, place, joined)

    densities, colours, displacements = zip(*queries, strict=True)
    displacement = None if displacements[0] is None else sort(displacements)
    return _choose(samples, chosen), Query(sort(densities), sort(colours), displacement)


def _choose(samples: Samples, which: Tensor) -> Samples:
    return Samples(samples.ray[which], samples.start[which], samples.end[which])


def _query(scene: Scene, rays: Rays, time: float | Tensor, samples: Samples) -> Query:
    """The scene at the samples' midpoints."""
    middle = (samples.start + samples.end) / 2
    points = torch.addcmul(rays.origins[samples.ray], rays.directions[samples.ray], middle[:, None])
    return Query(*scene(points, time[samples.ray] if isinstance(time, Tensor) and time.ndim else time))


def _composite(samples: Samples, query: Query, rays: int) -> tuple[Tensor, Tensor, Tensor]:
    """Colours and, if the scene moves, displacements [rays, 3 or 6], opacities [rays] and depths [rays]."""
    values = query.rgb if query.displacement is None else torch.cat([query.rgb, query.displacement], dim=-1)
    pixels = composite(query.density, samples.start, samples.end, values, samples.ray, rays)
    return pixels.values, pixels.opacity, pixels.depth


def _trained(scene: Scene) -> list[Tensor]:
    return [parameter for parameter in scene.parameters() if parameter.requires_grad]


class _Again(torch.autograd.Function):
    """What rays see, of which nothing is kept but the samples that count: the backward pass renders these again."""

    @staticmethod
    def forward(
        ctx: Any, scene: Scene, rays: Rays, time: float | Tensor, samples: Samples, budget: int, *_: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        samples, query = _look(scene, rays, time, samples, budget)
        ctx.scene, ctx.rays, ctx.time, ctx.samples, ctx.budget = scene, rays, time, samples, budget
        return _composite(samples, query, len(rays.origins))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        weights, parts = _trained(ctx.scene), _parts(ctx.rays, ctx.time, ctx.samples, ctx.budget)
        sums: list[Tensor | None] = [None] * len(weights)
        for which, rays, time, samples in parts:
            with torch.enable_grad():
                seen = _composite(samples, _query(ctx.scene, rays, time, samples), len(rays.origins))
            mine = torch.autograd.grad(seen, weights, [g[which] for g in gradients], allow_unused=True)
            sums = [b if a is None else a if b is None else a.add_(b) for a, b in zip(sums, mine, strict=True)]
        return None, None, None, None, None, *sums


def _parts(
    rays: Rays, time: float | Tensor, samples: Samples, budget: int
) -> Iterator[tuple[slice, Rays, float | Tensor, Samples]]:
    """Consecutive rays with about `budget` samples together: which they are, they themselves, and their own."""
    counts = torch.arange(0, len(samples.ray), budget, device=samples.ray.device)[1:]
    cuts = sorted({0, len(rays.origins), *samples.ray[counts].tolist()})
    firsts = torch.searchsorted(samples.ray, torch.tensor(cuts, device=samples.ray.device)).tolist()
    for (start, stop), (first, last) in zip(pairwise(cuts), pairwise(firsts), strict=True):
        which, own = slice(start, stop), slice(first, last)
        yield (
            which, Rays(rays.origins[which], rays.directions[which]),
            time[which] if isinstance(time, Tensor) and time.ndim else time,
            Samples(samples.ray[own] - start, samples.start[own], samples.end[own]),
        )


@torch.no_grad()
def render_images(
    scene: Scene, cameras: Cameras, height: int, width: int, time: float = 0.0, *, occupancy: OccupancyGrid,
    samples_per_ray: int, chunk: int = 65536, background: Tensor | None = None,
) -> Render:
    """Pictures from all cameras, [b, height, width, ..], without gradients.

    chunk: rays rendered at a time. background: a colour [3], or one for each ray, [b * height * width, 3].
    """
    rays = cameras.rays(height, width).flatten()

    def behind(part: slice) -> Tensor | None:
        return background if background is None or background.ndim == 1 else background[part]

    parts = [
        render(
            scene, Rays(rays.origins[part], rays.directions[part]), time, occupancy=occupancy,
            samples_per_ray=samples_per_ray, background=behind(part),
        )
        for part in (slice(first, first + chunk) for first in range(0, len(rays.origins), chunk))
    ]
    joined = {field.name: torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Render)}
    return Render(**{name: value.unflatten(0, (-1, height, width)) for name, value in joined.items()})


def render_image(scene: Scene, camera: Cameras, height: int, width: int, time: float = 0.0, **options: Any) -> Render:
    """A picture, [height, width, ..], from a single camera; options as those of `render_images`."""
    pictures = render_images(scene, camera, height, width, time, **options)
    return Render(**{field.name: getattr(pictures, field.name)[0] for field in fields(Render)})
