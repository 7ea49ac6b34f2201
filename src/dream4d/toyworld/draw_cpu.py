"""`draw.draw_rgba` on CPUs: a Numba kernel, a row of pixels at a time, every cone tried where its picture may be."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.ops.threads import compiled, spread
from dream4d.toyworld.draw import AMBIENT, KEY
from dream4d.toyworld.draw_pack import BORDERS, COLOUR, HEIGHT, LINEAR, OFFSET, RADII, REST, SIDE, STRIPES, pack
from dream4d.toyworld.world import Primitives

_ROWS_A_RANGE = 64
_FAR = np.float32(1e9)
_NONE, _HALF, _ONE, _TINY = np.float32(0), np.float32(0.5), np.float32(1), np.float32(1e-9)


def draw_rgba(primitives: Primitives, cameras: Cameras, size: int, samples: int) -> Tensor:
    """As `draw.draw_rgba`."""
    cones, views = pack(primitives, cameras)
    out = cones.new_zeros(len(cones), size, size, 4)
    light = np.array([AMBIENT, KEY], dtype=np.float32)
    spread(_rows, len(cones) * size, _ROWS_A_RANGE, cones.numpy(), views.numpy(), out.numpy(), light, samples)
    return out


@compiled(fastmath=True)
def _rows(first, last, cones, views, out, light, samples):
    """Rows [first, last) of all pictures. A ray's row of `rays`: its unit direction, its point nearest to the world's
    origin (from there, camera axes), the distance from that point to the first hit."""
    size = out.shape[1]
    step = np.float32(2.0 / (size * samples))
    rays, slot = np.empty((7, size * samples), np.float32), np.empty(size * samples, np.int32)
    for n in range(first, last):
        image, row = n // size, n % size
        view = views[image]
        for sub in range(samples):
            v = _ONE - np.float32(row * samples + sub + 0.5) * step
            _aim(rays, slot, v, step, view)
            for p in range(cones.shape[1]):
                cone = cones[image, p]
                if cone[BORDERS + 2] <= v <= cone[BORDERS + 3]:
                    begin = max(int((cone[BORDERS] + _ONE) / step), 0)
                    end = min(int((cone[BORDERS + 1] + _ONE) / step) + 1, size * samples)
                    if begin < end:
                        _trace(rays[:, begin:end], slot[begin:end], cone, p)
            for i in range(size * samples):
                if slot[i] >= 0:
                    _shade(out[image, row, i // samples], rays[:, i], cones[image, slot[i]], view, light)
        for i in range(size):
            for c in range(4):
                out[image, row, i, c] /= np.float32(samples * samples)


@compiled(fastmath=True)
def _aim(rays, slot, v, step, view):
    tan, wx, wy, wz = view[0], view[1], view[2], view[3]
    for i in range(len(slot)):
        u = np.float32(i + _HALF) * step - _ONE
        dz = -_ONE / np.sqrt((u * u + v * v) * (tan * tan) + _ONE)
        dx, dy = -u * tan * dz, -v * tan * dz
        t = wx * dx + wy * dy + wz * dz
        rays[0, i], rays[1, i], rays[2, i] = dx, dy, dz
        rays[3, i], rays[4, i], rays[5, i] = t * dx - wx, t * dy - wy, t * dz - wz
        rays[6, i] = _FAR
        slot[i] = -1


@compiled(fastmath=True)
def _trace(rays, slot, cone, p):
    """As `draw._round_cone`, for the cone in slot p; without branches, so that several rays are traced at once."""
    l0, l1, l2, l3, l4, l5, l6, l7, l8 = cone[LINEAR : LINEAR + 9]
    x, y, z = cone[OFFSET : OFFSET + 3]
    height, ra, rb = cone[HEIGHT], cone[RADII], cone[RADII + 1]
    slope, cosine2, length = cone[SIDE : SIDE + 3]
    a = np.sqrt(cosine2)
    for i in range(len(slot)):
        dx, dy, dz, bx, by, bz = rays[0, i], rays[1, i], rays[2, i], rays[3, i], rays[4, i], rays[5, i]
        ox = l0 * bx + l1 * by + l2 * bz + x
        oy = l3 * bx + l4 * by + l5 * bz + y
        oz = l6 * bx + l7 * by + l8 * bz + z
        ex, ey, ez = l0 * dx + l1 * dy + l2 * dz, l3 * dx + l4 * dy + l5 * dz, l6 * dx + l7 * dy + l8 * dz
        oo, od, dd = ox * ox + oy * oy, ox * ex + oy * ey, ex * ex + ey * ey
        whole = dd + ez * ez

        half = od + oz * ez
        root = half * half - whole * (oo + oz * oz - ra * ra)
        ball = (-half - np.sqrt(max(root, _NONE))) / whole
        t = ball if root > _NONE else _FAR
        hz = oz - height
        half = od + hz * ez
        root = half * half - whole * (oo + hz * hz - rb * rb)
        ball = (-half - np.sqrt(max(root, _NONE))) / whole
        t = min(t, ball if root > _NONE else _FAR)

        r0 = ra - slope * oz
        qa = cosine2 * dd - slope * ez * slope * ez
        qh = cosine2 * od + r0 * slope * ez
        root = qh * qh - qa * (cosine2 * oo - r0 * r0)
        side = (-qh - np.sqrt(max(root, _NONE))) / (_TINY if abs(qa) < _TINY else qa)
        sx, sy, sz = ox + side * ex, oy + side * ey, oz + side * ez
        along = a * sz - slope * np.sqrt(sx * sx + sy * sy)
        valid = (root > _NONE) & (along > _NONE) & (along < length) & (ra - slope * sz > _NONE)
        t = side if valid & (side < t) else t

        nearest = rays[6, i]
        slot[i] = p if t < nearest else slot[i]
        rays[6, i] = min(t, nearest)


@compiled(fastmath=True)
def _shade(pixel, ray, cone, view, light):
    """Adds the colour of a ray's hit to its pixel."""
    t = ray[6]
    x, y, z = ray[3] + t * ray[0], ray[4] + t * ray[1], ray[5] + t * ray[2]
    l0, l1, l2, l3, l4, l5, l6, l7, l8 = cone[LINEAR : LINEAR + 9]
    hx = l0 * x + l1 * y + l2 * z + cone[OFFSET]
    hy = l3 * x + l4 * y + l5 * z + cone[OFFSET + 1]
    hz = l6 * x + l7 * y + l8 * z + cone[OFFSET + 2]
    lean = cone[SIDE] * np.sqrt((hx * hx + hy * hy) / cone[SIDE + 1])
    nz = hz - min(max(hz - lean, _NONE), cone[HEIGHT])
    nx, ny, nz = l0 * hx + l3 * hy + l6 * nz, l1 * hx + l4 * hy + l7 * nz, l2 * hx + l5 * hy + l8 * nz
    toward = (nx * view[4] + ny * view[5] + nz * view[6]) / np.sqrt(nx * nx + ny * ny + nz * nz)
    wrap = max(_HALF + _HALF * toward, _NONE)
    rest_z = cone[REST] * hx + cone[REST + 1] * hy + cone[REST + 2] * hz + cone[REST + 3]
    wave = _HALF + _HALF * np.sin(cone[STRIPES + 1] * rest_z + cone[STRIPES + 2])
    bright = (_ONE - cone[STRIPES] * wave * wave) * (light[0] + light[1] * wrap * np.sqrt(wrap))
    for c in range(3):
        pixel[c] += min(cone[COLOUR + c] * bright, _ONE)
    pixel[3] += _ONE
