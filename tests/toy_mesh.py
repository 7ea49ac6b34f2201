"""A toy of the toy world at rest as triangles with a colour at each vertex, in light as the world draws it."""

from __future__ import annotations

import math

import numpy as np
import torch
import trimesh

from dream4d.cameras import Rays
from dream4d.toyworld.draw import _shade
from dream4d.toyworld.grammar import parse
from dream4d.toyworld.world import build, make_toys


def toy_mesh(sentence: str, *, rings: int = 20, segments: int = 28, textured: bool = True) -> trimesh.Trimesh:
    """In our own axes and scale: +z up, the front is +x. Each round cone is a surface of its own."""
    toys = make_toys([parse(sentence)], textured=textured)
    primitives = build(toys, torch.zeros(1))
    vertices, colours, faces, count = [], [], [], 0
    grid = torch.arange((rings + 1) * segments).view(rings + 1, segments)
    beside = grid.roll(-1, dims=1)
    quads = torch.stack([grid[:-1], beside[:-1], beside[1:], grid[1:]], dim=-1).reshape(-1, 4)
    triangles = torch.cat([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    around = torch.arange(segments) * (2 * math.pi / segments)
    for slot, (ra, rb) in enumerate(primitives.radii[0].tolist()):
        if not ra:
            continue
        height = primitives.height[0, slot].item()
        lean = math.asin(min(max((ra - rb) / max(height, 1e-6), -1), 1))  # of the side's normals
        below, above = torch.linspace(-math.pi / 2, lean, rings // 2), torch.linspace(lean, math.pi / 2, rings // 2 + 1)
        radius = torch.cat([ra * below.cos(), rb * above.cos()])
        z = torch.cat([ra * below.sin(), height + rb * above.sin()])
        points = torch.stack([
            radius[:, None] * around.cos(), radius[:, None] * around.sin(), z[:, None].expand(-1, segments),
        ], dim=-1).reshape(-1, 3)
        hit = torch.zeros(len(points), dtype=torch.long), torch.full((len(points),), slot)
        to_cone = primitives.to_cone[0, slot]
        vertices.append((points - to_cone[:, 3]) @ to_cone[:, :3].inverse().T)
        colours.append(_shade(primitives, hit, points))
        faces.append(triangles + count)
        count += len(points)
    rgba = np.pad(torch.cat(colours).mul(255).round().byte().numpy(), ((0, 0), (0, 1)), constant_values=255)
    return trimesh.Trimesh(
        torch.cat(vertices).numpy(), torch.cat(faces).numpy(), vertex_colors=rgba, process=False
    )


def for_gltf(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    """The same in glTF's axes and with its linear colours."""
    rgb = mesh.visual.vertex_colors[:, :3] / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    colours = np.column_stack([(linear * 255).round(), np.full(len(rgb), 255)]).astype(np.uint8)
    return trimesh.Trimesh(mesh.vertices[:, [1, 2, 0]], mesh.faces, vertex_colors=colours, process=False)


def from_front(y: torch.Tensor, z: torch.Tensor) -> Rays:
    """Parallel rays toward the front, at [n] places."""
    origins = torch.stack([torch.full_like(y, 3.0), y, z], dim=-1)
    return Rays(origins, torch.tensor([-1.0, 0, 0]).expand_as(origins))
