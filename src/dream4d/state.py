"""What a stage of training changes from step to step, and how it becomes tensors to save."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from dream4d.encodings import HashGrid, HexPlane
from dream4d.occupancy import OccupancyGrid
from dream4d.scene import Scene


@dataclass
class State:
    """A stage that stopped after `step` steps. All randomness comes from `generator`, which lives on the CPU: the same
    state takes the same steps."""

    scene: Scene
    occupancy: OccupancyGrid
    optimizer: AdamW
    generator: torch.Generator
    step: int = 0

    def to_tensors(self) -> dict[str, Tensor]:
        """A copy of everything that changes, flat, for safetensors; the frozen part of a scene is left out."""
        tensors = {f"scene.{name}": value for name, value in _trained(self.scene).items()}
        tensors |= {f"occupancy.{name}": value for name, value in self.occupancy.state_dict().items()}
        tensors |= moments_of(self.optimizer)
        tensors |= {"generator": self.generator.get_state(), "step": torch.tensor(self.step)}
        return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `to_tensors` gave for a state that was started in the same way.

        Raises ValueError where names or shapes do not fit.
        """
        names = {name for name in self.to_tensors() if not name.startswith("optimizer.")}
        saved = {name for name in tensors if not name.startswith("optimizer.")}
        if names != saved:
            raise ValueError(f"the saved state is not of this scene and stage: differing {sorted(names ^ saved)[:3]}")
        for name, value in _trained(self.scene).items():
            saved_value = tensors[f"scene.{name}"]
            if value.shape != saved_value.shape:
                raise ValueError(f"{name} is {list(value.shape)} in this scene, {list(saved_value.shape)} as saved")
            value.data.copy_(saved_value)
        prefix = "occupancy."
        self.occupancy.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
        load_moments(self.optimizer, tensors)
        self.generator.set_state(tensors["generator"])
        self.step = int(tensors["step"])


    def set_learning_rates(self, **rates: float) -> None:
        """One for each kind of parameters that `adamw` knows."""
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["kind"]]


@dataclass(frozen=True)
class StepReport:
    """The losses of step `step` (counted from 0) by name, unweighted scalars still on the device: `floats` waits."""

    step: int
    losses: dict[str, Tensor]

    def floats(self) -> dict[str, float]:
        return {name: value.item() for name, value in self.losses.items()}


def start(scene: Scene, *, seed: int, occupancy: OccupancyGrid | None = None) -> State:
    """The state before the first step, for what is not frozen of the scene. Each step sets its learning rates.

    occupancy: a fresh grid, which moves to the scene's device; the paper's if None.
    """
    grid = (occupancy or OccupancyGrid()).to(next(scene.parameters()).device)
    return State(scene, grid, adamw(scene), torch.Generator().manual_seed(seed))


def moments_of(optimizer: AdamW) -> dict[str, Tensor]:
    """What an optimiser remembers of each parameter, flat."""
    return {
        f"optimizer.{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items() for name, value in values.items()
    }


def load_moments(optimizer: AdamW, tensors: dict[str, Tensor]) -> None:
    """Take over what `moments_of` gave, from among other tensors."""
    by_parameter: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            by_parameter.setdefault(int(index), {})[key] = value.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": by_parameter})


def adamw(module: nn.Module) -> AdamW:
    """The optimiser of both stages (supplement 3) over the parameters of `module` that are not frozen: of feature grids
    and planes of space ("grid"), planes of time ("time") and MLPs ("mlp").

    Only MLPs decay their weights: a cell that no ray visits keeps its value.
    """
    parts = list(module.modules())
    times = {id(p) for part in parts if isinstance(part, HexPlane) and part.time for p in part.time}
    grids = {id(p) for part in parts if isinstance(part, HashGrid | HexPlane) for p in part.parameters()} - times
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in grids], "kind": "grid", "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) in times], "kind": "time", "weight_decay": 0.0},
        {"params": [p for p in trained if id(p) not in grids | times], "kind": "mlp", "weight_decay": 0.01},
    ]
    return AdamW([g for g in groups if g["params"]], betas=(0.9, 0.99), eps=1e-15, fused=True)


def _trained(scene: Scene) -> dict[str, Tensor]:
    return {name: p for name, p in scene.named_parameters() if p.requires_grad}
