"""Ray casting on CPUs: a Numba kernel that goes through the tree of boxes, nearer child first."""

from __future__ import annotations

import numba
import numpy as np
import torch
from torch import Tensor

from ..threads import compiled, spread
from .reference import EDGE, FAR, LEAF, Hits, Tree

RAYS_A_RANGE = 512
_DEPTH = 64  # of the stack: more levels than any tree has


def raycast(tree: Tree, origins: Tensor, directions: Tensor, beyond: Tensor) -> Hits:
    """As `reference.raycast`, to the bit but for triangles at the same distance."""
    rays = len(origins)
    face, weights, distance = torch.empty(rays, dtype=torch.long), torch.empty(rays, 3), torch.empty(rays)
    inputs = [v.contiguous().numpy() for v in (tree.triangles, tree.order, tree.boxes, origins, directions, beyond)]
    spread(_cast, rays, RAYS_A_RANGE, *inputs, face.numpy(), weights.numpy(), distance.numpy())
    return Hits(face, weights, distance)


@numba.njit(inline="always")
def _enter(box, origin, inverse, nearest):
    """Where a ray enters a box; FAR if it does not, or only behind `nearest`."""
    near, far = 0.0, nearest
    for axis in range(3):
        low, high = (box[axis] - origin[axis]) * inverse[axis], (box[axis + 3] - origin[axis]) * inverse[axis]
        near, far = max(near, min(low, high)), min(far, max(low, high))
    return near if near <= far * (1 + 1e-12) else FAR


@compiled(fastmath=False)
def _cast(first, last, triangles, order, boxes, origins, directions, beyond, face, weights, distance):
    leaves = len(boxes) // 2
    stack, entry = np.empty(_DEPTH, np.int64), np.empty(_DEPTH, np.float64)
    origin, direction, inverse = np.empty(3), np.empty(3), np.empty(3)
    for n in range(first, last):
        for axis in range(3):
            d = np.float64(directions[n, axis])
            origin[axis], direction[axis] = np.float64(origins[n, axis]), d
            inverse[axis] = 1 / d if abs(d) >= 1e-30 else 1e30
        nearest, found, best_u, best_v = FAR, -1, 0.0, 0.0
        stack[0], entry[0], height = 1, _enter(boxes[1], origin, inverse, nearest), 1
        while height > 0:
            height -= 1
            node = stack[height]
            if entry[height] >= nearest:
                continue
            if node >= leaves:
                start = (node - leaves) * LEAF
                for k in range(start, min(start + LEAF, len(order))):
                    t, u, v = _meet(triangles[order[k]], origin, direction)
                    if np.float64(beyond[n]) < t < nearest:
                        nearest, found, best_u, best_v = t, order[k], u, v
                continue
            one, other = 2 * node, 2 * node + 1
            near, far = _enter(boxes[one], origin, inverse, nearest), _enter(boxes[other], origin, inverse, nearest)
            if near > far:
                one, other, near, far = other, one, far, near
            if far < FAR:
                stack[height], entry[height] = other, far
                height += 1
            if near < FAR:
                stack[height], entry[height] = one, near
                height += 1
        face[n], distance[n] = found, nearest
        hit = 1.0 if found >= 0 else 0.0
        weights[n, 0], weights[n, 1], weights[n, 2] = hit * (1 - best_u - best_v), best_u, best_v


@numba.njit(inline="always")
def _meet(corners, origin, direction):
    """Distance and two barycentric coordinates; -1 as distance for nothing (Möller and Trumbore 1997)."""
    ax, ay, az = np.float64(corners[0, 0]), np.float64(corners[0, 1]), np.float64(corners[0, 2])
    fx, fy, fz = corners[1, 0] - ax, corners[1, 1] - ay, corners[1, 2] - az
    gx, gy, gz = corners[2, 0] - ax, corners[2, 1] - ay, corners[2, 2] - az
    dx, dy, dz = direction
    px, py, pz = dy * gz - dz * gy, dz * gx - dx * gz, dx * gy - dy * gx
    determinant = fx * px + fy * py + fz * pz
    if determinant == 0:
        return -1.0, 0.0, 0.0
    inverse = 1 / determinant
    tx, ty, tz = origin[0] - ax, origin[1] - ay, origin[2] - az
    u = (tx * px + ty * py + tz * pz) * inverse
    qx, qy, qz = ty * fz - tz * fy, tz * fx - tx * fz, tx * fy - ty * fx
    v = (dx * qx + dy * qy + dz * qz) * inverse
    if u < -EDGE or v < -EDGE or u + v > 1 + EDGE:
        return -1.0, 0.0, 0.0
    return (gx * qx + gy * qy + gz * qz) * inverse, u, v
