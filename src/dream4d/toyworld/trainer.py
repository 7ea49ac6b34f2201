"""Training one of the toy world's networks: mixed precision, a weight average, checkpoints, a log, a time limit; on
several GPUs under torchrun, each with examples of its own."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn

from dream4d.files import atomic
from dream4d.progress import track


@dataclass(frozen=True)
class Plan:
    """How long and how fast one network trains."""

    steps: int
    batch: int
    seconds: float | None = None
    """Ends training early, with the learning rate decayed as at the end."""
    learning_rate: float = 1e-3
    warm_up: int = 200
    average: float = 0.999
    checkpoint_seconds: float = 120.0

    def rate(self, step: int, elapsed: float) -> float:
        """Linear warm-up, constant, then half a cosine over the second half."""
        progress = max(step / self.steps, elapsed / (self.seconds or math.inf))
        decay = 0.5 + 0.5 * math.cos(math.pi * min(max(2 * progress - 1, 0.0), 1.0))
        return self.learning_rate * min(1.0, (step + 1) / self.warm_up) * max(decay, 0.01)


class Trainer:
    """AdamW on fp32 masters of `networks`, which themselves compute in bf16 on a GPU, and a running average of them.

    folder: gets ``<name>.jsonl``, the log, and ``<name>.checkpoint.safetensors``, from which training goes on.
    """

    def __init__(self, name: str, networks: Sequence[nn.Module], plan: Plan, folder: Path, device: torch.device):
        self.name, self.plan, self.folder, self.device = name, plan, folder, device
        self.networks = networks
        for network in networks:
            network.to(device).requires_grad_(True).eval()
        parameters = [p for network in networks for p in network.parameters()]
        self.masters = [p.detach().clone().float() for p in parameters]
        for master in self.masters:
            master.grad = torch.zeros_like(master)
        self.averages = [p.clone() for p in self.masters]
        if device.type == "cuda":
            for network in networks:
                network.bfloat16()
        self.parameters = [p for network in networks for p in network.parameters()]
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=plan.learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=device.type == "cuda"
        )
        self.step, self.elapsed = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def checkpoint(self) -> Path:
        return self.folder / f"{self.name}.checkpoint.safetensors"

    def fit(self, loss: Callable[[], dict[str, Tensor]], *, log_every: int = 50) -> None:
        """Minimise the sum of what `loss` returns, to the end of the plan. Every process of a team ends with the same
        weights; the first one writes the log and the checkpoints."""
        if self.checkpoint.exists():
            self._resume()
        already, begin = self.elapsed, time.monotonic()
        saved, first = begin, rank() == 0
        target = self.folder / f"{self.name}.jsonl" if first else Path(os.devnull)
        with target.open("a", encoding="utf-8") as log:
            about = {"seed": torch.initial_seed(), "processes": team(), "device": _device_name(self.device)}
            _write(log, plan=asdict(self.plan), **about, torch=torch.__version__)
            steps = self._steps()
            for _ in track(steps, self.name, self.plan.steps, done=self.step) if first else steps:
                values = loss()
                total = torch.stack(list(values.values())).sum()
                total.backward()
                self._update(already + time.monotonic() - begin)
                if first and (self.step % log_every == 0 or self.step == self.plan.steps):
                    floats = {name: value.item() for name, value in values.items()}
                    _write(log, step=self.step, seconds=round(self.elapsed, 2), **floats)
                    if not math.isfinite(sum(floats.values())):
                        raise RuntimeError(f"{self.name} diverged at step {self.step}: {floats}")
                    if time.monotonic() - saved > self.plan.checkpoint_seconds:
                        self._save()
                        saved = time.monotonic()
        if first:
            self._save()

    def use_average(self) -> None:
        """Put the averaged weights into the networks, in fp32."""
        for network in self.networks:
            network.float().requires_grad_(False)
        parameters = [p for network in self.networks for p in network.parameters()]
        torch._foreach_copy_([p.data for p in parameters], self.averages)

    def _steps(self) -> Iterator[int]:
        while self.step < self.plan.steps and self.elapsed < (self.plan.seconds or math.inf):
            yield self.step

    @torch.no_grad()
    def _update(self, elapsed: float) -> None:
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        own = [master.grad for master in self.masters if master.grad is not None]
        torch._foreach_copy_(own, gradients)
        self.elapsed = average_over_team(own, elapsed)
        nn.utils.clip_grad_norm_(self.masters, 1.0, foreach=True)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate(self.step, self.elapsed)
        self.optimizer.step()
        self.step += 1
        torch._foreach_copy_([p.data for p in self.parameters], self.masters)
        torch._foreach_lerp_(self.averages, self.masters, 1 - min(self.plan.average, self.step / (self.step + 10)))
        for p in self.parameters:
            p.grad = None

    def _save(self) -> None:
        state = self.optimizer.state_dict()["state"]
        tensors = {"step": torch.tensor(self.step), "elapsed": torch.tensor(self.elapsed, dtype=torch.float64)}
        for i, (master, average) in enumerate(zip(self.masters, self.averages, strict=True)):
            tensors[f"master.{i}"], tensors[f"average.{i}"] = master, average
            for key in ("exp_avg", "exp_avg_sq"):
                tensors[f"{key}.{i}"] = state[i][key]
        with atomic(self.checkpoint) as file:
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, file)

    def _resume(self) -> None:
        tensors = load_file(self.checkpoint, device=str(self.device))
        self.step, self.elapsed = int(tensors["step"]), float(tensors["elapsed"])
        for i in range(len(self.masters)):
            self.masters[i].copy_(tensors[f"master.{i}"])
            self.averages[i].copy_(tensors[f"average.{i}"])
        groups = self.optimizer.state_dict()["param_groups"]
        step = torch.tensor(float(self.step))
        moments = {
            i: {"step": step.clone(), "exp_avg": tensors[f"exp_avg.{i}"], "exp_avg_sq": tensors[f"exp_avg_sq.{i}"]}
            for i in range(len(self.masters))
        }
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        torch._foreach_copy_([p.data for p in self.parameters], self.masters)


def join_team(device: torch.device) -> torch.device:
    """Where torchrun started this process: meet the others. Returns the device of this one."""
    if "LOCAL_RANK" not in os.environ:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def team() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def average_over_team(tensors: Sequence[Tensor], number: float) -> float:
    """Average fp32 `tensors` in place, and the `number`, over all processes: they agree on both then."""
    if team() == 1:
        return number
    flat = torch.cat([*(tensor.flatten() for tensor in tensors), tensors[0].new_tensor([number])])
    distributed.all_reduce(flat)
    flat /= team()
    *means, mean = flat.split([*(tensor.numel() for tensor in tensors), 1])
    torch._foreach_copy_(list(tensors), [part.view_as(tensor) for part, tensor in zip(means, tensors, strict=True)])
    return float(mean)


def graphed(network: nn.Module, *inputs: Tensor) -> Any:
    """`network` as CUDA graphs of its forward and backward pass for inputs of just these shapes; itself on a CPU.

    Small networks are held back by the launching of their kernels; this removes it.
    """
    if not inputs[0].is_cuda:
        return network
    torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)  # each step waits for its graphs anyway
    return torch.cuda.make_graphed_callables(network, inputs, allow_unused_input=True)


def _write(log: TextIO, **values: Any) -> None:
    log.write(json.dumps(values) + "\n")
    log.flush()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
