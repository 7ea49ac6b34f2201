"""Time and memory of the paper's networks, full-size with random weights, beside the arithmetic they cannot do without.

The limit of a case is its floating-point operations, counted by torch on an eager call, at the speed of a measured
product of fp16 matrices. A mode is a dtype, fp16 or bf16, and what is done to the network, joined by +:

- `fused`: the quick ways of `priors.fused`, which `dream4d` takes on a GPU; without them it is as diffusers made it.
- `graph`: launched as one CUDA graph.

`warm_s` is the time of the first call.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from field import measure_ceilings, print_kernels, timed
from networks import (
    FRAMES,
    TOKENS,
    VIEWS,
    autoencoder,
    image_unet,
    pixel_unet,
    reference_unet,
    video_unet,
    width,
)
from report import RESULTS, print_table, provenance
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from dream4d.priors.fused import fuse
from dream4d.priors.graphs import Graphed
from dream4d.priors.parts import Autoencoder

WARM_UP = 2
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
UNET_MODES = ("fp16", "fp16+fused", "bf16+fused", "fp16+fused+graph")
VAE_MODES = ("fp16", "fp16+fused", "bf16+fused")

# Measured before on an H200: ms of the official design (fp16, eager) and of its fastest form.
PEER = {
    "mvdream_unet": (22.4, 9.4), "sd_unet": (45.0, 30.2), "zeroscope_unet": (205, 205), "encode_8x512": (108, 102),
    "encode_8x256": (24.9, 24.9), "encode_clip": (202, 202), "encode_clip_by_4": (255, 255), "decode_clip": (219, 219),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """build: a network. call: of the network, a device, a dtype and whether all is tiny; gives what is timed."""

    build: Callable[..., Any]
    call: Callable[[Any, torch.device, torch.dtype, bool, bool], Callable[[], Tensor]]
    modes: Sequence[str]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="PATTERN", help="names, * stands for anything")
    parser.add_argument("--modes", nargs="+", help="by default those that make sense for the network")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="a dry run with networks of a few thousand weights")
    parser.add_argument("--profile", action="store_true", help="also print the kernels that take most of the time")
    parser.add_argument("--out", type=Path, help="by default results/guidance-DEVICE.json")
    options = parser.parse_args(argv)
    device = torch.device(options.device)
    known = cases()
    chosen = [name for name in known if any(fnmatchcase(name, pattern) for pattern in options.cases)]
    if not chosen:
        parser.error(f"no such case; known: {', '.join(known)}")
    out = options.out or RESULTS / f"guidance-{device.type}.json"
    peak = measure_ceilings(device)[1]
    rows: list[dict[str, Any]] = []
    for name in chosen:
        for row in measure(name, known[name], device, peak, options):
            rows.append(row)
            print("  ".join(cells(row)), flush=True)
            out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    header = ["case", "mode", "ms", "peak GiB", "limit ms", "share", "warm s", "official ms", "times faster"]
    print_table(header, [cells(row) for row in rows])
    print(out)
    return int(any("error" in row for row in rows))


def cells(row: dict[str, Any]) -> list[str]:
    if "error" in row:
        return [row["case"], row["mode"], "failed", *["-"] * 6]
    peer = f"{row['peer_ms']} {row['peer_ms'] / row['ms']:.2f}" if "peer_ms" in row else "- -"
    numbers = f"{row['ms']:.2f} {row['peak_gib']:.2f} {row['limit_ms']:.2f} {row['share']:.1%} {row['warm_s']:.1f}"
    return [row["case"], row["mode"], *numbers.split(), *peer.split()]


def cases() -> dict[str, Case]:
    return {
        "mvdream_unet": Case(
            partial(image_unet, multiview=True), partial(image_call, size=32, camera=True), UNET_MODES
        ),
        "sd_unet": Case(image_unet, image_call, UNET_MODES),
        "encode_8x512": Case(autoencoder, encoding(8, 512, 512), VAE_MODES),
        "encode_8x256": Case(autoencoder, encoding(8, 256, 256), VAE_MODES),
        "zeroscope_unet": Case(video_unet, video_call, UNET_MODES),
        "encode_clip": Case(autoencoder, encoding(FRAMES, 320, 576), VAE_MODES),
        "encode_clip_by_4": Case(autoencoder, encoding(FRAMES, 320, 576, 4), VAE_MODES),
        "encode_clip_by_1": Case(autoencoder, encoding(FRAMES, 320, 576, 1), VAE_MODES),
        "decode_clip": Case(autoencoder, decode_call, VAE_MODES),
        "zero123_unet": Case(
            reference_unet, partial(image_call, images=12, size=32, channels=8, tokens=1, features=768), UNET_MODES
        ),
        "deepfloyd_unet": Case(
            pixel_unet, partial(image_call, images=12, channels=3, features=4096), ("fp16", "fp16+fused", "fp16+graph")
        ),
    }


def measure(
    name: str, case: Case, device: torch.device, peak: float, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A row for each mode; a mode that fails stops no other. peak: operations a second."""
    operations, tiny = 0, options.tiny
    for mode in options.modes or case.modes:
        about = provenance(str(device))
        row = {"case": name, "mode": mode, "device": about["device"], "torch": torch.__version__,
               "commit": about["commit"], "date": about["date"], "tiny": tiny}  # fmt: skip
        gc.collect()
        torch.cuda.empty_cache()  # nothing happens without CUDA
        try:
            dtype_name, *tricks = mode.split("+")
            torch.manual_seed(0)
            network = case.build(device, DTYPES[dtype_name], tiny=tiny)
            if not operations:
                eager = case.call(network, device, DTYPES[dtype_name], tiny, False)
                with FlopCounterMode(display=False) as counter:
                    eager()
                operations, eager = counter.get_total_flops(), None
            call = case.call(network, device, DTYPES[dtype_name], tiny, "graph" in tricks)
            if unknown := set(tricks) - {"fused", "graph"}:
                raise ValueError(f"unknown in a mode: {unknown}; known: fused, graph")
            if "fused" in tricks:
                fuse(network)
            start = time.perf_counter()
            timed(call, device, 1)
            row["warm_s"] = round(time.perf_counter() - start, 2)
            timed(call, device, WARM_UP)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            milliseconds = statistics.median(timed(call, device, options.repeats))
            limit = 1000 * operations / peak
            row |= {
                "ms": round(milliseconds, 3), "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3),
                "tflop": round(operations / 1e12, 3), "limit_ms": round(limit, 3),
                "share": round(limit / milliseconds, 4), "finite": bool(call().isfinite().all()),
            }  # fmt: skip
            if not tiny and (known := PEER.get(name)):
                row |= {"peer_ms": known[0], "peer_best_ms": known[1]}
            if options.profile:
                print(f"{name} {mode}")
                print_kernels(call, device, options.repeats)
        except (RuntimeError, ValueError, TypeError) as error:
            row["error"] = " ".join(str(error).split())[:300]
            print(f"{name} {mode}: {row['error']}", flush=True)
        network = call = None
        yield row


def image_call(
    unet: Any, device: torch.device, dtype: torch.dtype, tiny: bool, graph: bool, *, images: int = 2 * VIEWS,
    size: int = 64, camera: bool = False, channels: int = 4, tokens: int = TOKENS, features: int = 1024,
) -> Callable[[], Tensor]:
    """Both predictions of guidance. tokens, features: of the text, or of what is in its place."""
    batch, size, features = (2 * VIEWS, 8, width(tiny)) if tiny else (2 * images, size, features)
    noisy = torch.randn(batch, channels, size, size, device=device).to(dtype)
    timestep = torch.full((batch,), 500, device=device)
    text = torch.randn(batch, tokens, features, device=device).to(dtype)
    labels = torch.randn(batch, 16, device=device).to(dtype) if camera else None
    return _unet_call(unet, (noisy, timestep, text, labels), graph)


def video_call(unet: Any, device: torch.device, dtype: torch.dtype, tiny: bool, graph: bool) -> Callable[[], Tensor]:
    """Both predictions for a clip."""
    shape = (2, 4, 3, 8, 8) if tiny else (2, 4, FRAMES, 40, 72)
    noisy, timestep = torch.randn(shape, device=device).to(dtype), torch.full((2,), 500, device=device)
    text = torch.randn(2, TOKENS, width(tiny), device=device).to(dtype)
    return _unet_call(unet, (noisy, timestep, text, None), graph)


def _unet_call(unet: Any, inputs: tuple[Tensor | None, ...], graph: bool) -> Callable[[], Tensor]:
    def predict(noisy: Tensor, timestep: Tensor, text: Tensor, labels: Tensor | None) -> Tensor:
        sample: Tensor = unet(noisy, timestep, text, **({} if labels is None else {"class_labels": labels})).sample
        return sample

    function = Graphed(predict) if graph else predict

    @torch.no_grad()
    def call() -> Tensor:
        return function(*inputs)

    return call


def encoding(images: int, height: int, width: int, chunk: int | None = None) -> Callable[..., Callable[[], Tensor]]:
    """Forward and backward to the images."""
    def build(vae: Any, device: torch.device, dtype: torch.dtype, tiny: bool, graph: bool) -> Callable[[], Tensor]:
        n, scale = (2, 16) if tiny else (images, 1)
        pixels = torch.rand(n, height // scale, width // scale, 3, device=device).requires_grad_()
        coder = Autoencoder(vae, min(chunk, n) if chunk else None)
        with torch.no_grad():
            gradient = torch.randn_like(coder.encode(pixels))
        return lambda: torch.autograd.grad(coder.encode(pixels), pixels, gradient)[0]

    return build


def decode_call(vae: Any, device: torch.device, dtype: torch.dtype, tiny: bool, graph: bool) -> Callable[[], Tensor]:
    latents = torch.randn((2, 4, 4, 4) if tiny else (FRAMES, 4, 40, 72), device=device)
    coder = Autoencoder(vae)
    return lambda: coder.decode(latents)


if __name__ == "__main__":
    raise SystemExit(main())
