"""`draw.draw_rgba` as one Triton kernel: a program a block of pixels of a picture, every cone tried in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dream4d.cameras import Cameras
from dream4d.toyworld.draw import AMBIENT, KEY, LIGHT
from dream4d.toyworld.world import Primitives

_NUMBERS = 28  # a cone
_BLOCK = 128


def draw_rgba(primitives: Primitives, cameras: Cameras, size: int, samples: int) -> Tensor:
    """As `draw.draw_rgba`."""
    batch, slots = primitives.height.shape
    packed = torch.cat([
        primitives.to_cone.flatten(2), primitives.height[..., None], primitives.radii, primitives.colour,
        primitives.stripes, primitives.rest[..., 2, :],
        primitives.height.new_zeros(batch, slots, _NUMBERS - 25),
    ], dim=-1).contiguous()  # fmt: skip
    tan = torch.tan(torch.deg2rad(cameras.fov_y) / 2)
    camera = torch.cat([cameras.camera_to_world[:, :3].flatten(1), tan[:, None]], dim=1).float().contiguous()
    out = packed.new_empty(batch, size, size, 4)
    grid = (batch, triton.cdiv(size * size, _BLOCK))
    _kernel[grid](packed, camera, out, slots, size, *LIGHT, AMBIENT, KEY, SAMPLES=samples, BLOCK=_BLOCK, NUMBERS=_NUMBERS)
    return out


@triton.jit
def _kernel(
    packed, camera, out, slots, size, lx, ly, lz, ambient, key,
    SAMPLES: tl.constexpr, BLOCK: tl.constexpr, NUMBERS: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size * size
    row, column = pixel // size, pixel % size
    c = camera + image * 13
    m00, m01, m02, px = tl.load(c), tl.load(c + 1), tl.load(c + 2), tl.load(c + 3)
    m10, m11, m12, py = tl.load(c + 4), tl.load(c + 5), tl.load(c + 6), tl.load(c + 7)
    m20, m21, m22, pz = tl.load(c + 8), tl.load(c + 9), tl.load(c + 10), tl.load(c + 11)
    tan = tl.load(c + 12)
    red = tl.zeros([BLOCK], tl.float32)
    green = tl.zeros([BLOCK], tl.float32)
    blue = tl.zeros([BLOCK], tl.float32)
    cover = tl.zeros([BLOCK], tl.float32)
    for sample in tl.static_range(SAMPLES * SAMPLES):
        v = 1.0 - (row + (sample // SAMPLES + 0.5) / SAMPLES) * 2.0 / size
        u = (column + (sample % SAMPLES + 0.5) / SAMPLES) * 2.0 / size - 1.0
        u, v = u * tan, v * tan
        dx, dy, dz = m00 * u + m01 * v - m02, m10 * u + m11 * v - m12, m20 * u + m21 * v - m22
        unit = 1.0 / tl.sqrt(dx * dx + dy * dy + dz * dz)
        dx, dy, dz = dx * unit, dy * unit, dz * unit
        nearest = tl.full([BLOCK], 1e9, tl.float32)
        r = tl.zeros([BLOCK], tl.float32)
        g = tl.zeros([BLOCK], tl.float32)
        b = tl.zeros([BLOCK], tl.float32)
        for p in range(slots):
            q = packed + (image * slots + p) * NUMBERS
            a00, a01, a02, a03 = tl.load(q), tl.load(q + 1), tl.load(q + 2), tl.load(q + 3)
            a10, a11, a12, a13 = tl.load(q + 4), tl.load(q + 5), tl.load(q + 6), tl.load(q + 7)
            a20, a21, a22, a23 = tl.load(q + 8), tl.load(q + 9), tl.load(q + 10), tl.load(q + 11)
            height, ra, rb = tl.load(q + 12), tl.load(q + 13), tl.load(q + 14)
            ox = a00 * px + a01 * py + a02 * pz + a03
            oy = a10 * px + a11 * py + a12 * pz + a13
            oz = a20 * px + a21 * py + a22 * pz + a23
            ex, ey, ez = a00 * dx + a01 * dy + a02 * dz, a10 * dx + a11 * dy + a12 * dz, a20 * dx + a21 * dy + a22 * dz
            dd = ex * ex + ey * ey + ez * ez
            oo = ox * ox + oy * oy
            od = ox * ex + oy * ey

            half = od + oz * ez
            root = half * half - dd * (oo + oz * oz - ra * ra)
            t = tl.where(root > 0, (-half - tl.sqrt(tl.maximum(root, 0.0))) / dd, 1e9)
            centre = tl.zeros([BLOCK], tl.float32)
            hz = oz - height
            half = od + hz * ez
            root = half * half - dd * (oo + hz * hz - rb * rb)
            other = tl.where(root > 0, (-half - tl.sqrt(tl.maximum(root, 0.0))) / dd, 1e9)
            centre = tl.where(other < t, height, centre)
            t = tl.minimum(t, other)

            slope = (ra - rb) / tl.maximum(height, 1e-6)
            a2 = tl.maximum(1 - slope * slope, 1e-6)
            a = tl.sqrt(a2)
            r0 = ra - slope * oz
            qa = a2 * (ex * ex + ey * ey) - slope * ez * slope * ez
            qh = a2 * od + r0 * slope * ez
            root = qh * qh - qa * (a2 * oo - r0 * r0)
            side = (-qh - tl.sqrt(tl.maximum(root, 0.0))) / tl.where(tl.abs(qa) < 1e-9, 1e-9, qa)
            sx, sy, sz = ox + side * ex, oy + side * ey, oz + side * ez
            rho = tl.sqrt(sx * sx + sy * sy)
            along = a * sz - slope * rho
            valid = (root > 0) & (along > 0) & (along < a * height) & (ra - slope * sz > 0)
            lateral = valid & (height > 1e-6) & (tl.abs(slope) < 1) & (side < t)
            t = tl.where(lateral, side, t)
            nearer = (t < nearest) & (ra > 0)

            hx, hy, hz = ox + t * ex, oy + t * ey, oz + t * ez
            nz = tl.where(lateral, slope / a * rho, hz - centre)
            wx, wy, wz = a00 * hx + a10 * hy + a20 * nz, a01 * hx + a11 * hy + a21 * nz, a02 * hx + a12 * hy + a22 * nz
            shade = (wx * lx + wy * ly + wz * lz) / tl.sqrt(wx * wx + wy * wy + wz * wz + 1e-20)
            wrap = tl.minimum(tl.maximum(0.5 + 0.5 * shade, 0.0), 1.0)
            rest_z = tl.load(q + 21) * hx + tl.load(q + 22) * hy + tl.load(q + 23) * hz + tl.load(q + 24)
            wave = 0.5 + 0.5 * tl.sin(tl.load(q + 19) * rest_z + tl.load(q + 20))
            light = (1 - tl.load(q + 18) * wave * wave) * (ambient + key * wrap * tl.sqrt(wrap))
            nearest = tl.where(nearer, t, nearest)
            r = tl.where(nearer, tl.minimum(tl.load(q + 15) * light, 1.0), r)
            g = tl.where(nearer, tl.minimum(tl.load(q + 16) * light, 1.0), g)
            b = tl.where(nearer, tl.minimum(tl.load(q + 17) * light, 1.0), b)
        red += r
        green += g
        blue += b
        cover += tl.where(nearest < 1e8, 1.0, 0.0)
    o = out + (image * size * size + pixel) * 4
    scale = 1.0 / (SAMPLES * SAMPLES)
    tl.store(o, red * scale, mask=inside)
    tl.store(o + 1, green * scale, mask=inside)
    tl.store(o + 2, blue * scale, mask=inside)
    tl.store(o + 3, cover * scale, mask=inside)
