"""`draw.draw_rgba` as one Triton kernel: a program a tile of a picture, every cone that meets it tried in registers."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.toyworld.draw import AMBIENT, KEY
from dream4d.toyworld.draw_pack import CONE, VIEW, pack
from dream4d.toyworld.world import Primitives

_TILE = 8  # pixels, in both directions


def draw_rgba(primitives: Primitives, cameras: Cameras, size: int, samples: int) -> Tensor:
    """As `draw.draw_rgba`."""
    cones, views = pack(primitives, cameras)
    batch, slots = primitives.height.shape
    out = cones.new_empty(batch, size, size, 4)
    if batch == 0:
        return out
    tiles = triton.cdiv(size, _TILE)
    _kernel[(batch, tiles * tiles)](
        cones, views, out, slots, size, tiles, AMBIENT, KEY,
        SAMPLES=samples, RAYS=triton.next_power_of_2(samples**2), TILE=_TILE, CONE=CONE, VIEW=VIEW,
    )  # fmt: skip
    return out


@triton.jit
def _kernel(
    cones, views, out, slots, size, tiles, ambient, key,
    SAMPLES: tl.constexpr, RAYS: tl.constexpr, TILE: tl.constexpr, CONE: tl.constexpr, VIEW: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    top, left = tl.program_id(1) // tiles * TILE, tl.program_id(1) % tiles * TILE
    pixel = tl.arange(0, TILE * TILE)
    row, column = top + pixel // TILE, left + pixel % TILE
    ray = tl.arange(0, RAYS)
    step = 2.0 / size
    u = (column[:, None] + (ray % SAMPLES + 0.5)[None, :] / SAMPLES) * step - 1.0
    v = 1.0 - (row[:, None] + (ray // SAMPLES + 0.5)[None, :] / SAMPLES) * step

    # d: the ray's unit direction; b: its point nearest to the world's origin, from there; both in camera axes
    view = views + image * VIEW
    tan, wx, wy, wz = tl.load(view), tl.load(view + 1), tl.load(view + 2), tl.load(view + 3)
    dz = -1.0 / tl.sqrt((u * u + v * v) * (tan * tan) + 1.0)
    dx, dy = -u * tan * dz, -v * tan * dz
    t0 = wx * dx + wy * dy + wz * dz
    bx, by, bz = t0 * dx - wx, t0 * dy - wy, t0 * dz - wz

    nearest = tl.full([TILE * TILE, RAYS], 1e9, tl.float32)
    slot = tl.full([TILE * TILE, RAYS], -1, tl.int32)
    table = cones + image * slots * CONE
    for p in range(slots):
        q = table + p * CONE
        across = (tl.load(q + 28) <= (left + TILE) * step - 1.0) & (tl.load(q + 29) >= left * step - 1.0)
        if across & (tl.load(q + 30) <= 1.0 - top * step) & (tl.load(q + 31) >= 1.0 - (top + TILE) * step):
            t = _first_hit(q, dx, dy, dz, bx, by, bz)
            slot = tl.where(t < nearest, p, slot)
            nearest = tl.minimum(t, nearest)

    hit = (slot >= 0) & (ray < SAMPLES * SAMPLES)[None, :]
    cone = table + tl.maximum(slot, 0) * CONE
    t = tl.where(hit, nearest, 0.0)
    light, red, green, blue = _shade(cone, bx + t * dx, by + t * dy, bz + t * dz, view, ambient, key)
    scale = 1.0 / (SAMPLES * SAMPLES)
    o = out + (image * size * size + row * size + column) * 4
    inside = (row < size) & (column < size)
    tl.store(o, tl.sum(tl.where(hit, tl.minimum(red * light, 1.0), 0.0), 1) * scale, mask=inside)
    tl.store(o + 1, tl.sum(tl.where(hit, tl.minimum(green * light, 1.0), 0.0), 1) * scale, mask=inside)
    tl.store(o + 2, tl.sum(tl.where(hit, tl.minimum(blue * light, 1.0), 0.0), 1) * scale, mask=inside)
    tl.store(o + 3, tl.sum(tl.where(hit, 1.0, 0.0), 1) * scale, mask=inside)


@triton.jit
def _first_hit(q, dx, dy, dz, bx, by, bz):
    """As `draw._round_cone`, for the rays b + t d and the cone at `q`."""
    l0, l1, l2 = tl.load(q), tl.load(q + 1), tl.load(q + 2)
    l3, l4, l5 = tl.load(q + 3), tl.load(q + 4), tl.load(q + 5)
    l6, l7, l8 = tl.load(q + 6), tl.load(q + 7), tl.load(q + 8)
    ox = l0 * bx + l1 * by + l2 * bz + tl.load(q + 9)
    oy = l3 * bx + l4 * by + l5 * bz + tl.load(q + 10)
    oz = l6 * bx + l7 * by + l8 * bz + tl.load(q + 11)
    ex, ey, ez = l0 * dx + l1 * dy + l2 * dz, l3 * dx + l4 * dy + l5 * dz, l6 * dx + l7 * dy + l8 * dz
    height, ra, rb = tl.load(q + 12), tl.load(q + 13), tl.load(q + 14)
    slope, cosine2, length = tl.load(q + 15), tl.load(q + 16), tl.load(q + 17)
    oo, od, dd = ox * ox + oy * oy, ox * ex + oy * ey, ex * ex + ey * ey

    whole = dd + ez * ez
    half = od + oz * ez
    root = half * half - whole * (oo + oz * oz - ra * ra)
    t = tl.where(root > 0, (-half - tl.sqrt(tl.maximum(root, 0.0))) / whole, 1e9)
    hz = oz - height
    half = od + hz * ez
    root = half * half - whole * (oo + hz * hz - rb * rb)
    t = tl.minimum(t, tl.where(root > 0, (-half - tl.sqrt(tl.maximum(root, 0.0))) / whole, 1e9))

    r0 = ra - slope * oz
    qa = cosine2 * dd - slope * ez * slope * ez
    qh = cosine2 * od + r0 * slope * ez
    root = qh * qh - qa * (cosine2 * oo - r0 * r0)
    side = (-qh - tl.sqrt(tl.maximum(root, 0.0))) / tl.where(tl.abs(qa) < 1e-9, 1e-9, qa)
    sx, sy, sz = ox + side * ex, oy + side * ey, oz + side * ez
    along = tl.sqrt(cosine2) * sz - slope * tl.sqrt(sx * sx + sy * sy)
    valid = (root > 0) & (along > 0) & (along < length) & (ra - slope * sz > 0)
    return tl.where(valid & (side < t), side, t)


@triton.jit
def _shade(q, x, y, z, view, ambient, key):
    """Light and the colour that it falls on, at points from the world's origin (camera axes), on the cones at `q`."""
    l0, l1, l2 = tl.load(q), tl.load(q + 1), tl.load(q + 2)
    l3, l4, l5 = tl.load(q + 3), tl.load(q + 4), tl.load(q + 5)
    l6, l7, l8 = tl.load(q + 6), tl.load(q + 7), tl.load(q + 8)
    hx = l0 * x + l1 * y + l2 * z + tl.load(q + 9)
    hy = l3 * x + l4 * y + l5 * z + tl.load(q + 10)
    hz = l6 * x + l7 * y + l8 * z + tl.load(q + 11)
    lean = tl.load(q + 15) * tl.sqrt((hx * hx + hy * hy) / tl.load(q + 16))
    nz = hz - tl.minimum(tl.maximum(hz - lean, 0.0), tl.load(q + 12))
    nx, ny, nz = l0 * hx + l3 * hy + l6 * nz, l1 * hx + l4 * hy + l7 * nz, l2 * hx + l5 * hy + l8 * nz
    toward = nx * tl.load(view + 4) + ny * tl.load(view + 5) + nz * tl.load(view + 6)
    wrap = 0.5 + 0.5 * toward / tl.sqrt(nx * nx + ny * ny + nz * nz + 1e-20)
    wrap = tl.minimum(tl.maximum(wrap, 0.0), 1.0)
    rest_z = tl.load(q + 24) * hx + tl.load(q + 25) * hy + tl.load(q + 26) * hz + tl.load(q + 27)
    wave = 0.5 + 0.5 * tl.sin(tl.load(q + 22) * rest_z + tl.load(q + 23))
    light = (1.0 - tl.load(q + 21) * wave * wave) * (ambient + key * wrap * tl.sqrt(wrap))
    return light, tl.load(q + 18), tl.load(q + 19), tl.load(q + 20)
