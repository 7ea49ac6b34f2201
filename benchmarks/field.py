"""Time and peak memory of grids, fields and rendering, beside the official design and the machine's own limit.

The limit of a case is the larger of two times: that of the least it must move between chip and memory, at the bandwidth
of a measured copy, and that of the arithmetic of its MLPs, at the speed of a measured matrix product.

- A grid alone reads its points in each pass, writes its features and reads their gradient. It reads the rows of its
  table that it can touch, once; once more for a gradient to points, which is written. A gradient to the table is
  written, all rows of it.
- A field may keep all else on the chip: in each of two passes it reads points and table and writes its outputs or reads
  their gradients, with features computed anew; and it writes the table's gradient.
- A render step moves what its fields move; its compositing reads densities and colours in both passes and writes their
  gradients. Only samples count in front of which at least `VISIBLE` of the light is left.
- A multiplication by a weight is 2 operations forward, 2 to the input and, unless it is frozen, 2 to the weight.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from report import RESULTS, print_table, provenance
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from dream4d.cameras import Rays, orbit
from dream4d.encodings import HashGrid
from dream4d.occupancy import OccupancyGrid
from dream4d.ops.hashgrid import GridLayout, encode
from dream4d.ops.march import march
from dream4d.render import render
from dream4d.scene import Scene
from dream4d.settings import DeformationShape, SceneShape

WARM_UP, FRAMES, SAMPLES_PER_RAY = 3, 24, 512
VISIBLE = 1e-4
"""Transmittance below which a sample counts as hidden."""
OCCUPIED = 0.23
"""Density at a cell's centre from which it is occupied: 12.89 % of 32^3 cells for both blobs, the official design's."""
FOV_Y, ELEVATION, DISTANCE = 40.0, 15.0, 0.935 / math.tan(math.radians(20.0))
"""The camera: as far away as training places one (U[.8, 1] / tan(fov_y / 2)), so that the soft blob has as many samples
as the official design was measured with."""
DEFORMATION = 2.0
"""The 4D table is uniform in +-this: displacements of about a step of the march."""
BLOBS = {"soft": SceneShape(blob_radius=0.55), "opaque": SceneShape(blob_scale=400, blob_radius=0.62)}

# The official design (tiny-cuda-nn and nerfacc) on an H200, measured before this script: ms with fp32 tables and plain
# MLPs, ms of its fastest form (fp16 tables, fused MLPs), peak GiB. A case with half tables compares with the second.
PEER: dict[str, tuple[float, float, float | None]] = {
    "grid3d_rays_2p20_fwdbwd": (5.1, 3.5, None), "grid3d_rays_2p20_fwd": (0.55, 0.54, None),
    "grid3d_random_2p20_fwdbwd": (4.4, 2.9, None), "grid4d_rays_2p20_fwdbwd": (37.9, 22.3, None),
    "grid4d_rays_2p20_fwd": (0.42, 0.42, None), "grid4d_random_2p20_fwdbwd": (13.4, 8.7, None),
    "grid4d_rays_2p22_fwdbwd": (138.6, 88.6, None), "grid4d_rays_2p20_points": (1.9, 1.9, None),
    "field3d_rays_2p20_fwdbwd": (8.1, 2.8, None),
    "static_8x64_soft": (15.4, 12.3, None), "static_8x64_opaque": (8.5, 8.5, None),
    "static_4x256_soft": (140, 108, 13.4), "static_4x256_opaque": (56, 56, None),
    "dynamic_24x144x80_soft": (332, 224, 16.3), "dynamic_24x144x80_opaque": (122, 81, None),
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """step: what is timed; it gives the gradients, or the features. points: of a step. moved, operations: the least
    bytes and floating-point operations. about: further keys of the row. check: whether two steps should agree."""

    step: Callable[[], Sequence[Tensor]]
    points: int
    moved: float
    operations: float = 0.0
    about: dict[str, Any] = field(default_factory=dict)
    check: bool = False


Build = Callable[[torch.device, int], Work]  # of a device and a scale


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cuda or cpu")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN", help="names, * stands for anything")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scale", type=int, help="divides points and pixels; by default 1, on a CPU 64")
    parser.add_argument("--out", type=Path, help="by default results/field-DEVICE.json")
    parser.add_argument("--profile", metavar="CASE", help="only print the kernels that take most of this case's time")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    scale = options.scale or (1 if device.type == "cuda" else 64)
    known = cases()
    chosen = [name for name in known if any(fnmatchcase(name, pattern) for pattern in options.cases)]
    if not chosen or (options.profile and options.profile not in known):
        parser.error(f"no such case; there are {', '.join(known)}")
    if options.profile:
        print_profile(known[options.profile](device, scale), device, options.repeats)
        return 0
    ceilings = measure_ceilings(device)
    print("copy {:.1f} GB/s, matrix product {:.1f} GFLOP/s".format(*(each / 1e9 for each in ceilings)), flush=True)
    out = options.out or RESULTS / f"field-{device.type}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    failed = False
    for name in chosen:
        try:
            row = measure(name, device, scale, options.repeats, ceilings)
        except Exception as error:  # kernels under work fail in many ways; the other cases still count
            failed |= not (refused := name.endswith("_half") and isinstance(error, (ValueError, TypeError)))
            print(f"{name}: {'skipped' if refused else 'FAILED'}: {error!r:.400}", flush=True)
            continue
        rows.append(row)
        print("  ".join(cells(row)), flush=True)
        out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    header = ["case", "ms", "peak GiB", "points", "limit ms", "share", "peer ms", "fastest peer ms", "times faster"]
    print_table([*header, "two runs differ by"], [cells(row) for row in rows])
    print(out)
    return int(failed)


def cells(row: dict[str, Any]) -> list[str]:
    known = "peer_ms" in row
    peer = [f"{row['peer_ms']}", f"{row['peer_best_ms']}", f"{row['peer_ms'] / row['ms']:.1f}"] if known else ["-"] * 3
    numbers = f"{row['ms']:.3f} {row['peak_gib']:.2f} {row['points']} {row['limit_ms']:.3f} {row['share']:.1%}".split()
    return [row["case"], *numbers, *peer, f"{row['differ']:.0e}" if "differ" in row else "-"]


def cases() -> dict[str, Build]:
    """What there is, by name, half tables last."""
    found: dict[str, Build] = {}
    kinds = ((3, "rays", 20), (3, "random", 20), (4, "rays", 20), (4, "random", 20), (4, "rays", 22))
    for half, (dim, kind, log2), passes in product((False, True), kinds, ("fwdbwd", "fwd", "points")):
        name = f"grid{dim}d_{kind}_2p{log2}_{passes}{'_half' if half else ''}"
        found[name] = partial(grid_work, dim, 2**log2, kind == "rays", passes, half)
    found["field3d_rays_2p20_fwdbwd"] = field_work
    for blob, shape in BLOBS.items():
        found[f"static_8x64_{blob}"] = partial(render_work, shape, 8, 64, 64, False)
        found[f"static_4x256_{blob}"] = partial(render_work, shape, 4, 256, 256, False)
        found[f"dynamic_24x144x80_{blob}"] = partial(render_work, shape, FRAMES, 80, 144, True)
    return dict(sorted(found.items(), key=lambda item: item[0].endswith("_half")))


def measure(name: str, device: torch.device, scale: int, repeats: int, ceilings: tuple[float, float]) -> dict[str, Any]:
    """One row of the results."""
    gc.collect()
    torch.manual_seed(0)
    work = cases()[name](device, scale)
    torch.cuda.empty_cache()  # nothing happens without CUDA
    timed(work.step, device, WARM_UP)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    milliseconds = statistics.median(timed(work.step, device, repeats))
    peak = torch.cuda.max_memory_allocated() / 2**30  # 0 without CUDA
    limit = 1000 * max(work.moved / ceilings[0], work.operations / ceilings[1])
    about = provenance(str(device))
    row = {
        "case": name, "ms": round(milliseconds, 4), "peak_gib": round(peak, 3), "points": work.points,
        "device": about["device"], "torch": torch.__version__, "commit": about["commit"], "date": about["date"],
        "limit_ms": round(limit, 4), "share": round(limit / milliseconds, 4), "scale": scale, **work.about,
    }  # fmt: skip
    if work.check:
        (once,), (again,) = work.step(), work.step()
        row["differ"] = ((once - again).abs().amax() / once.abs().amax()).item()
    if scale == 1 and (peer := PEER.get(name.removesuffix("_half"))):
        row |= {"peer_ms": peer[name.endswith("_half")], "peer_best_ms": peer[1], "peer_gib": peer[2]}
    return row


def timed(step: Callable[[], Any], device: torch.device, repeats: int) -> list[float]:
    """Milliseconds of each call. On a GPU the calls follow one another without waiting, as in training."""
    if device.type != "cuda":
        seconds = [time.perf_counter(), *((step(), time.perf_counter())[1] for _ in range(repeats))]
        return [1000 * (end - start) for start, end in pairwise(seconds)]
    torch.cuda.synchronize(device)
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    marks[0].record()
    for mark in marks[1:]:
        step()
        mark.record()
    torch.cuda.synchronize(device)
    return [start.elapsed_time(end) for start, end in pairwise(marks)]


def measure_ceilings(device: torch.device) -> tuple[float, float]:
    """Bytes a second of a copy of 1 GiB, read and written, and operations a second of a product of fp16 matrices,
    8192 x 8192; on a CPU smaller ones, the matrices in fp32."""
    count, size, dtype = (2**30, 8192, torch.float16) if device.type == "cuda" else (2**26, 512, torch.float32)
    source = torch.ones(count, dtype=torch.uint8, device=device)
    target, matrix = torch.empty_like(source), torch.randn(size, size, dtype=dtype, device=device)
    steps = (lambda: target.copy_(source), lambda: matrix @ matrix)
    copy, product = (statistics.median(timed(step, device, 13)[3:]) / 1000 for step in steps)
    return 2 * count / copy, 2 * size**3 / product


def grid_work(
    dim: int, points: int, along_rays: bool, passes: str, half: bool, device: torch.device, scale: int
) -> Work:
    """A grid alone: its forward pass, or also the one backward to its table, fp16 if `half`, or to its points."""
    grid = HashGrid(3) if dim == 3 else HashGrid(4, levels=12, base=4)
    layout, table = grid.layout, grid.table.detach().to(device, torch.float16 if half else torch.float32)
    x = ray_points(dim, points // scale, device) if along_rays else torch.rand(points // scale, dim, device=device)
    leaf = (x if passes == "points" else table).requires_grad_(passes != "fwd")
    with torch.no_grad():
        gradient = torch.randn_like(encode(x, table, layout))

    def step() -> Sequence[Tensor]:
        features = encode(x, table, layout)
        return [features] if passes == "fwd" else torch.autograd.grad(features, leaf, gradient)

    n, coordinates, features = len(x), 4 * x.numel(), table.element_size() * gradient.numel()
    read, written = table_bytes(layout, n, table.element_size())
    moved = coordinates + read + features
    moved += {"fwd": 0, "fwdbwd": coordinates + features + written, "points": 2 * coordinates + features + read}[passes]
    return Work(step, n, moved, check=passes != "fwd")


def field_work(device: torch.device, scale: int) -> Work:
    """The canonical field's density and colour, forward and backward to all its weights."""
    scene, points = Scene(SceneShape()).to(device), 2 * ray_points(3, 2**20 // scale, device) - 1
    weights, n = list(scene.canonical.parameters()), len(points)
    gradients = [torch.randn(n, device=device), torch.randn(n, 3, device=device)]

    def step() -> Sequence[Tensor]:
        return torch.autograd.grad(scene.canonical(points), weights, gradients)

    return Work(step, n, *canonical_cost(scene, n))


def render_work(
    shape: SceneShape, images: int, height: int, width: int, moving: bool, device: torch.device, scale: int
) -> Work:
    """A step of a stage without its losses: views from all around, or frames of one camera and a frozen scene, whose
    deformation alone is trained."""
    scene = Scene(shape).to(device)
    rays = rays_of(torch.arange(images) * (0 if moving else 360 / images), height, width, device, scale)
    time_of: float | Tensor = 0.0
    if moving:
        scene.add_deformation(DeformationShape())
        scene.freeze_canonical()
        torch.nn.init.uniform_(scene.get_parameter("deformation.encoding.table"), -DEFORMATION, DEFORMATION)
        time_of = torch.linspace(0, 1, images, device=device).repeat_interleave(len(rays.origins) // images)
    about, occupancy = samples_of(scene, rays, time_of)
    gradients = torch.randn(2 if moving else 1, len(rays.origins), 3, device=device)
    weights = [weight for weight in scene.parameters() if weight.requires_grad]
    generator = torch.Generator().manual_seed(0)  # on the CPU, as the training's

    def step() -> Sequence[Tensor]:
        seen = render(scene, rays, time_of, occupancy=occupancy, samples_per_ray=SAMPLES_PER_RAY, generator=generator)
        outputs = [seen.rgb, seen.displacement] if moving else [seen.rgb]
        return torch.autograd.grad(outputs, weights, list(gradients))

    n = about["visible"]
    costs = [canonical_cost(scene, n, frozen=moving), (3 * 4 * (7 if moving else 4) * n, 0)]
    if scene.deformation is not None:
        grid, hidden = scene.deformation.encoding, DeformationShape().hidden
        assert isinstance(grid, HashGrid)
        costs.append(field_cost(grid, n, 3, hidden * (grid.width + (DeformationShape().layers - 1) * hidden + 3)))
    return Work(step, about.pop("samples"), sum(cost[0] for cost in costs), sum(cost[1] for cost in costs), about)


def canonical_cost(scene: Scene, points: int, *, frozen: bool = False) -> tuple[int, int]:
    """Of a density and a colour, each by an MLP with one hidden layer."""
    grid = scene.canonical.grid
    return field_cost(grid, points, 1 + 3, scene.shape.hidden * (2 * grid.width + 1 + 3), frozen=frozen)


def field_cost(grid: HashGrid, points: int, out: int, weights: int, *, frozen: bool = False) -> tuple[int, int]:
    """Bytes and operations of both passes, to the table and `weights` weights or if frozen to the points."""
    read, written = table_bytes(grid.layout, points, 4)
    coordinates = 4 * grid.layout.dim * points
    moved = 2 * (coordinates + 4 * out * points + read) + (coordinates if frozen else written)
    return moved, points * weights * (4 if frozen else 6)


def table_bytes(layout: GridLayout, points: int, size: int) -> tuple[int, int]:
    """Of the rows that so many points can touch, and of the whole gradient; `size` of a number."""
    touched = min(layout.rows, points * layout.levels * 2**layout.dim)
    return size * layout.features * touched, size * layout.features * layout.rows


def rays_of(azimuths: Tensor, height: int, width: int, device: torch.device, scale: int = 1) -> Rays:
    """Of one image for each azimuth, flat."""
    cameras = orbit(azimuths, *(torch.tensor(value) for value in (ELEVATION, DISTANCE, FOV_Y)))
    height, width = (max(1, round(side / math.sqrt(scale))) for side in (height, width))
    return cameras.to(device).rays(height, width).flatten()


def ray_points(dim: int, count: int, device: torch.device) -> Tensor:
    """[count, dim] in [0, 1]: the march through the whole cube, from 4 sides or of one camera in 24 frames, with as few
    pixels as suffice; the last image is cut off."""
    azimuths = torch.arange(4) * 90.0 if dim == 3 else torch.zeros(FRAMES)
    occupied, points = torch.ones(32, 32, 32, dtype=torch.bool, device=device), torch.empty(0)
    side = math.isqrt(count // (len(azimuths) * SAMPLES_PER_RAY))
    while len(points) < count:
        side += 1
        points, ray = march_points(rays_of(azimuths, side, side, device), occupied)
    frame = ray // (side * side) / (FRAMES - 1)
    return torch.cat([(points + 1) / 2, frame[:, None]], dim=-1)[:count, :dim].contiguous()


def march_points(rays: Rays, occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Midpoints of all samples, [m, 3], and their rays, [m]."""
    origins, directions = rays.origins.contiguous(), rays.directions.contiguous()
    jitter = torch.rand(len(origins), generator=torch.Generator().manual_seed(0)).to(origins)
    samples = march(origins, directions, occupied, radius=1.0, samples_per_ray=SAMPLES_PER_RAY, jitter=jitter)
    middle = (samples.start + samples.end) / 2
    return origins[samples.ray] + middle[:, None] * directions[samples.ray], samples.ray


@torch.no_grad()
def samples_of(scene: Scene, rays: Rays, time_of: float | Tensor) -> tuple[dict[str, Any], OccupancyGrid]:
    """What a step of these rays finds: samples, how many of them are visible, occupied cells in percent and the mean
    length of the samples' displacement; and the settled grid."""
    occupancy = OccupancyGrid(threshold=OCCUPIED).to(rays.origins.device)
    axis = (torch.arange(occupancy.resolution, device=rays.origins.device) + 0.5) / occupancy.resolution * 2 - 1
    centres, moments = torch.cartesian_prod(axis, axis, axis), torch.as_tensor(time_of).unique().tolist()
    occupancy.values = torch.stack([scene.density(centres, t) for t in moments]).amax(dim=0).view_as(occupancy.values)
    occupancy.occupied = occupancy.values > OCCUPIED

    points, ray = march_points(rays, occupancy.occupied)
    canonical = scene.warp(points, time_of[ray] if isinstance(time_of, Tensor) else time_of)
    depth = scene.canonical.density(canonical).double() * (2 * math.sqrt(3) / SAMPLES_PER_RAY)  # optical, of a sample
    before = depth.cumsum(0) - depth
    before -= before[torch.searchsorted(ray, ray)]  # the first sample of each ray has nothing in front
    return {
        "samples": len(ray), "visible": int((before < -math.log(VISIBLE)).sum()),
        "occupied": round(100 * occupancy.occupied.float().mean().item(), 2),
        "displacement": round((canonical - points).norm(dim=-1).mean().item(), 5),
    }, occupancy  # fmt: skip


def print_profile(work: Work, device: torch.device, repeats: int) -> None:
    """Where the time of so many steps goes."""
    print_kernels(work.step, device, repeats)
    print(f"{repeats} steps, {work.points} points each, {work.about}")


def print_kernels(step: Callable[[], Any], device: torch.device, repeats: int) -> None:
    """The 25 kernels (on a CPU: operators) that take most of the time."""
    timed(step, device, WARM_UP)
    with profile(activities=[getattr(ProfilerActivity, device.type.upper())]) as profiler:
        timed(step, device, repeats)
    name = f"self_{'cpu' if device.type == 'cpu' else 'device'}_time_total"
    rows = sorted(profiler.key_averages(), key=lambda row: -getattr(row, name))
    total = sum(getattr(row, name) for row in rows)
    print_table(["kernel", "ms a step", "calls a step"], [
        [row.key[:80], f"{getattr(row, name) / 1000 / repeats:.3f}", f"{row.count / repeats:.1f}"] for row in rows[:25]
    ])  # fmt: skip
    print(f"all: {total / 1000 / repeats:.3f} ms and {sum(row.count for row in rows) / repeats:.0f} calls a step")


if __name__ == "__main__":
    raise SystemExit(main())
