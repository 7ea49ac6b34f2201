"""A scene small enough for a training step of a few milliseconds."""

from __future__ import annotations

from typing import Literal

import torch

from dream4d.scene import DeformationShape, Scene, SceneShape

Field = Literal["grid", "hexplane"]
Encoding = Literal["grid", "positional"]


def tiny_scene(*, moving: bool = False, seed: int = 0, field: Field = "grid", encoding: Encoding = "grid") -> Scene:
    torch.manual_seed(seed)
    planes = {"plane_levels": 2, "plane_size": 16, "plane_features": 4, "plane_times": 5}
    scene = Scene(SceneShape(field=field, levels=4, base=4, growth=1.5, log2_size=10, **planes))
    if moving:
        scene.add_motion(DeformationShape(encoding, levels=4, base=4, growth=1.5, log2_size=10))
    return scene
