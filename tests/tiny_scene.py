"""A scene small enough for a training step of a few milliseconds."""

from __future__ import annotations

import torch

from dream4d.scene import DeformationShape, Scene, SceneShape


def tiny_scene(*, moving: bool = False, seed: int = 0) -> Scene:
    torch.manual_seed(seed)
    scene = Scene(SceneShape(levels=4, base=4, growth=1.5, log2_size=10))
    if moving:
        scene.add_deformation(DeformationShape(levels=4, base=4, growth=1.5, log2_size=10))
    return scene
