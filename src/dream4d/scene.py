"""A moving scene: canonical radiance field, background and, once it moves, a deformation field or planes of time."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dream4d.encodings import HashGrid, HexPlane, PositionalEncoding
from dream4d.fields import Background, DeformationField, RadianceField
from dream4d.files import atomic
from dream4d.settings import DeformationShape, SceneShape

FORMAT = "dream4d-scene-1"


class Query(NamedTuple):
    """density: [n]; rgb: [n, 3]; displacement: [n, 3] in scene units, None where the scene has no deformation."""

    density: Tensor
    rgb: Tensor
    displacement: Tensor | None


class Scene(nn.Module):
    """Points are in [-1, 1]^3, time in [0, 1]. `active_levels`: levels of the 4D grid that are on, None for all.
    `thinned`: a factor of the density that is seen, for training only; it is not saved.

    It moves by a deformation of the canonical scene; on a HexPlane, the canonical scene itself changes with time.
    """

    def __init__(self, shape: SceneShape) -> None:
        super().__init__()
        self.shape = shape
        self.deformation_shape: DeformationShape | None = None
        self.active_levels: int | None = None
        self.thinned = 1.0
        grid: HashGrid | HexPlane
        if shape.field == "grid":
            grid = HashGrid(
                3, levels=shape.levels, features=shape.features, base=shape.base, growth=shape.growth,
                log2_size=shape.log2_size,
            )
        else:
            grid = HexPlane(levels=shape.plane_levels, size=shape.plane_size, features=shape.plane_features)
        self.canonical = RadianceField(
            grid, hidden=shape.hidden, blob_scale=shape.blob_scale, blob_radius=shape.blob_radius
        )
        self.background = Background(hidden=shape.hidden)
        self.deformation: DeformationField | None = None

    @property
    def hexplane(self) -> HexPlane | None:
        """What the canonical scene is on, if that is one."""
        return self.canonical.grid if isinstance(self.canonical.grid, HexPlane) else None

    @property
    def moves(self) -> bool:
        """Whether there is anything in it that depends on time."""
        return self.deformation is not None or (self.hexplane is not None and self.hexplane.time is not None)

    def add_motion(self, shape: DeformationShape) -> None:
        """Let the scene move anew, from rest: by planes of time if it is a HexPlane, else by a deformation."""
        if self.hexplane is not None:
            self.hexplane.add_time(self.shape.plane_times)
        else:
            self.add_deformation(shape)

    def motion(self) -> list[nn.Parameter]:
        """What the dynamic stage trains: the deformation (paper Sec. 3.2), or all of a HexPlane scene (MAV3D)."""
        return list((self if self.deformation is None else self.deformation).parameters())

    def add_deformation(self, shape: DeformationShape) -> None:
        """Give the scene a new deformation field, on the scene's device, whose displacement is about 0."""
        assert self.hexplane is None, "a HexPlane moves by planes of time"
        encoding: HashGrid | PositionalEncoding
        if shape.encoding == "grid":
            encoding = HashGrid(
                4, levels=shape.levels, features=shape.features, base=shape.base, growth=shape.growth,
                log2_size=shape.log2_size,
            )
        else:
            encoding = PositionalEncoding(4, frequencies=shape.frequencies)
        deformation = DeformationField(encoding, hidden=shape.hidden, layers=shape.layers, at_rest=shape.at_rest)
        self.deformation = deformation.to(next(self.parameters()).device)
        self.deformation_shape = shape

    def freeze_canonical(self) -> None:
        """From here on only the motion is trained (paper Sec. 3.2); nothing is frozen where that is the whole scene."""
        self.requires_grad_(False)
        for parameter in self.motion():
            parameter.requires_grad_(True)

    def forward(self, points: Tensor, time: float | Tensor = 0.0) -> Query:
        """points: [n, 3] of the moving scene; time: a number or [n]."""
        canonical, displacement = self._displace(points, time)
        density, rgb = self.canonical(canonical, self._moment(canonical, time))
        return Query(density if self.thinned == 1 else self.thinned * density, rgb, displacement)

    def density(self, points: Tensor, time: float | Tensor = 0.0) -> Tensor:
        """points: [n, 3] of the moving scene; time: a number or [n] -> [n]."""
        canonical = self.warp(points, time)
        return self.canonical.density(canonical, self._moment(canonical, time))

    def warp(self, points: Tensor, time: float | Tensor) -> Tensor:
        """Where points [n, 3] of the moving scene lie in the canonical one."""
        return self._displace(points, time)[0]

    def _displace(self, points: Tensor, time: float | Tensor) -> tuple[Tensor, Tensor | None]:
        """x_c = x_d + D(x_d, t), clamped to the box (paper Sec. 3.2)."""
        points = points.clamp(-1, 1)
        if self.deformation is None:
            return points, None
        displacement = self.deformation(points, _times(points, time), self.active_levels)
        return (points + displacement).clamp(-1, 1), displacement

    def _moment(self, points: Tensor, time: float | Tensor) -> Tensor | None:
        """[n], if the canonical scene itself may change with time."""
        return None if self.hexplane is None else _times(points, time)

    def save(self, path: str | Path) -> None:
        """Write the fields and their shape to one safetensors file, completely or not at all."""
        shapes = {
            "scene": asdict(self.shape),
            "deformation": asdict(self.deformation_shape) if self.deformation_shape else None,
            "active_levels": self.active_levels,
            "moves": self.moves,
        }
        tensors = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        with atomic(path) as temporary:
            save_file(tensors, temporary, metadata={"format": FORMAT, "shapes": json.dumps(shapes)})

    @classmethod
    def load(cls, path: str | Path) -> Scene:
        """A scene that `save` wrote, on the CPU.

        Raises FileNotFoundError, and ValueError where the file is damaged or not a scene.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
                shapes = json.loads(metadata["shapes"])
                scene = cls(SceneShape(**shapes["scene"]))
                if shapes["deformation"] is not None:
                    scene.add_deformation(DeformationShape(**shapes["deformation"]))
                elif shapes.get("moves"):
                    scene.add_motion(DeformationShape())
                scene.active_levels = shapes["active_levels"]
                scene.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{path} is not a complete dream4d scene ({error}): give the scene.safetensors of a run, or run again "
                "the command that wrote this file"
            ) from error
        return scene


def _times(points: Tensor, time: float | Tensor) -> Tensor:
    """A number or [n] as one for each of the points, [n]."""
    return torch.as_tensor(time, dtype=points.dtype, device=points.device).expand(len(points))
