"""Reads models of triangles from files of others and brings them to where our scenes stand.

Such files are data from strangers: trimesh parses them, nothing in them is run, and they get no other files than those
in their own folder. What moves in a file (skins, morph targets, animations) is read as it rests.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dream4d.mesh import Mesh
from dream4d.ops.raycast import build

Up = Literal["auto", "y", "z"]
Array = NDArray[np.floating[Any]]
FORMATS = {".glb": "y", ".gltf": "y", ".obj": "y", ".ply": "z"}
"""What can be read, and the axis that is up in it."""
SIZE = 0.36
"""Root mean square distance of a model's surface from its middle, in scene units: as large as generated toys."""
REACH = 0.75
"""How far from there any of it may be, in scene units, so that there is room to move; long ones become smaller."""
MOST_BYTES, MOST_FACES, MOST_PIXELS = 512 * 2**20, 2_000_000, 2**26
"""Of a file and what it refers to; of all its parts; of a texture."""
TEXTURE = 1024
"""Textures are reduced to at most so many pixels along a side."""
_IMAGES = {"PNG", "JPEG", "WEBP", "BMP", "TGA", "TIFF", "GIF"}  # whose decoders run nothing
_TO_OURS = {  # front, left and up of a file as +x, +y, +z: glTF's front is +z, Blender's -y
    "y": ((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)),
    "z": ((0.0, -1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)),
}
_GREY = np.array([0.7, 0.7, 0.7, 1.0])


def read_mesh(
    path: str | Path, *, up: Up = "auto", turn: float = 0.0, size: float = SIZE, middle: Sequence[float] = (0.0,) * 3
) -> Mesh:
    """A GLB, glTF, OBJ or PLY with its materials' colours and textures, or the colours of its vertices or faces.

    up: the axis that is up in the file; y for GLB, glTF and OBJ, whose front is then +z, and z for PLY, whose front is
    then -y, as in Blender. turn: degrees by which the model is turned, counter-clockwise seen from above, where its
    front is elsewhere. size, middle: root mean square distance of its surface from the surface's middle, and where that
    comes to stand, in scene units; it becomes smaller if any of it would be farther than `REACH` from there.

    Raises ValueError for what cannot be read as a model: an unknown or damaged file, one that is too large, that refers
    to files which are missing or not in its folder, or that has no triangles or none of finite size.
    """
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in FORMATS:
        raise ValueError(f"{path} is no mesh that can be read: expected a name with {', '.join(FORMATS)}")
    if up != "auto" and up not in _TO_OURS:
        raise ValueError(f"up is {up!r}: expected auto, y or z")
    if not path.is_file():
        raise ValueError(f"there is no mesh {path}")
    trimesh = _trimesh()
    parts = list(_parts(path, _load(path, kind, trimesh), trimesh, gltf=kind in (".glb", ".gltf")))
    if not parts:
        raise ValueError(f"{path} has no triangles: export the model as a mesh with faces")
    corners = np.concatenate([part.corners for part in parts])
    if not np.isfinite(corners).all():
        raise ValueError(f"{path} has vertices that are not finite numbers: repair the mesh and export it again")
    triangles = _placed(corners, FORMATS[kind] if up == "auto" else up, turn, size, middle)
    if triangles is None:
        raise ValueError(f"{path} has no extent, as compressed files seem to: export it without compression")
    images = [part.image for part in parts if part.image is not None]
    index = iter(range(len(images)))
    texture = [np.full(len(p.corners), -1 if p.image is None else next(index)) for p in parts]
    sizes = torch.tensor([image.shape[:2] for image in images], dtype=torch.long).reshape(-1, 2)
    ends = sizes.prod(dim=1).cumsum(0)
    return Mesh(
        tree=build(triangles),
        colours=torch.from_numpy(np.concatenate([part.colours for part in parts])).float(),
        uv=torch.from_numpy(np.concatenate([part.uv for part in parts])).float(),
        texture=torch.from_numpy(np.concatenate(texture)),
        pixels=torch.from_numpy(np.concatenate([i.reshape(-1, 4) for i in images] or [np.zeros((0, 4), np.uint8)])),
        places=torch.cat([(ends - sizes.prod(dim=1))[:, None], sizes], dim=1),
    )


def _placed(corners: Array, up: str, turn: float, size: float, middle: Sequence[float]) -> Tensor | None:
    """Corners [f, 3, 3] of a file in our axes, as `read_mesh` says; None if they have no surface."""
    angle = math.radians(turn)
    about_z = np.array([
        [math.cos(angle), -math.sin(angle), 0], [math.sin(angle), math.cos(angle), 0], [0, 0, 1],
    ])
    points = corners @ (about_z @ np.array(_TO_OURS[up])).T
    points = points / max(np.abs(points).max(), 1e-30)  # whose squares are neither too large nor too small
    area = np.linalg.norm(np.cross(points[:, 1] - points[:, 0], points[:, 2] - points[:, 0]), axis=-1)
    if not area.sum() > 0:
        return None
    share = area / area.sum()
    points = points - share @ points.mean(axis=1)
    squares = np.square(points).sum(axis=-1).sum(axis=-1) + 9 * np.square(points.mean(axis=1)).sum(axis=-1)
    spread = math.sqrt(share @ squares / 12)  # the integral of |x|^2 over a triangle is its area times that
    scale = min(size / spread, REACH / np.linalg.norm(points, axis=-1).max())
    return torch.from_numpy(points * scale + np.asarray(middle)).float()


@dataclass(frozen=True)
class _Part:
    """corners [f, 3, 3]; colours [f, 3, 4]; uv [f, 3, 2]; image [h, w, 4], uint8, or None."""

    corners: Array
    colours: Array
    uv: Array
    image: NDArray[np.uint8] | None


def _trimesh() -> ModuleType:
    try:
        import trimesh
    except ImportError:
        raise ValueError("meshes are read by trimesh, which is not here: pip install trimesh") from None
    return trimesh


def _load(path: Path, kind: str, trimesh: ModuleType) -> Any:
    """The file as trimesh's scene."""
    folder = _Folder(path)
    try:
        with path.open("rb") as file:
            folder.count(path)
            scene = trimesh.load_scene(file, file_type=kind[1:], resolver=folder, process=False)
    except Exception as error:  # a parser of untrusted files may raise anything
        if folder.refused is None:
            said = f"{type(error).__name__} {error}".strip()
            raise ValueError(f"{path} cannot be read ({said}): is it damaged? Export it again, as GLB") from error
    if folder.refused is not None:
        raise ValueError(f"{path} {folder.refused}")
    return scene


class _Folder:
    """What trimesh may ask for by name: files in the folder of a model. It goes on without what it does not get, so the
    first refusal is kept."""

    def __init__(self, path: Path) -> None:
        self.root, self.bytes = path.resolve().parent, 0
        self.refused: str | None = None

    def get(self, name: str) -> bytes:
        for file in (self.root / name.strip(), self.root / unquote(name.strip())):
            found = file.resolve()
            if found.is_relative_to(self.root) and found.is_file():
                self.count(found)
                return found.read_bytes()
        self.refused = self.refused or f"needs {name[:200]!r}, which is not in its folder: put it there"
        raise FileNotFoundError(name)

    __getitem__ = get

    def count(self, file: Path) -> None:
        self.bytes += file.stat().st_size
        if self.bytes > MOST_BYTES:
            self.refused = f"takes more than {MOST_BYTES >> 20} MiB with its textures: simplify it first"
            raise ValueError(self.refused)


def _parts(path: Path, scene: Any, trimesh: ModuleType, *, gltf: bool) -> Iterator[_Part]:
    """The meshes that stand in the scene, each where it stands."""
    nodes = [scene.graph[name] for name in scene.graph.nodes_geometry]
    placed = [(pose, scene.geometry[name]) for pose, name in nodes]
    meshes = [(pose, mesh) for pose, mesh in placed if isinstance(mesh, trimesh.Trimesh) and len(mesh.faces)]
    if (faces := sum(len(mesh.faces) for _, mesh in meshes)) > MOST_FACES:
        raise ValueError(f"{path} has {faces} triangles, more than {MOST_FACES}: simplify it first")
    for pose, mesh in meshes:
        if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
            raise ValueError(f"{path} has faces of vertices that are not there: export it again")
        vertices = np.asarray(mesh.vertices) @ pose[:3, :3].T + pose[:3, 3]
        colours, image = _paint(path, mesh, gltf=gltf)
        uv = getattr(mesh.visual, "uv", None)
        if uv is None or len(uv) != len(vertices):
            uv, image = np.zeros((len(vertices), 2)), None
        yield _Part(vertices[mesh.faces], colours, np.nan_to_num(uv)[mesh.faces], image)


def _paint(path: Path, mesh: Any, *, gltf: bool) -> tuple[Array, NDArray[np.uint8] | None]:
    """Colours of the corners, [f, 3, 4], and the texture that they are multiplied with."""
    visual, shape, image = mesh.visual, (len(mesh.faces), 3, 4), None
    if visual.kind == "face":
        return np.broadcast_to(visual.face_colors[:, None] / 255, shape), None
    colours: Array = np.ones(4)
    if visual.kind == "texture":
        colours, image = _material(path, visual.material, gltf=gltf)
        of_vertices = visual.vertex_attributes.get("color")
    else:
        of_vertices = visual.vertex_colors if visual.kind == "vertex" else None
        colours = _GREY if of_vertices is None else colours
    if of_vertices is None:
        return np.broadcast_to(colours, shape), image
    whole = np.iinfo(of_vertices.dtype).max if of_vertices.dtype.kind in "iu" else 1
    rgb = np.nan_to_num(of_vertices[:, :3] / whole).clip(0, 1)
    rgba = np.concatenate([_display(rgb) if gltf else rgb, np.ones((len(rgb), 1))], axis=1)
    return (colours * rgba)[mesh.faces], image


def _material(path: Path, material: Any, *, gltf: bool) -> tuple[Array, NDArray[np.uint8] | None]:
    """RGBA of a material and its texture, of which one has no say where the other is missing."""
    if not gltf:  # an OBJ's Kd counts where there is no map_Kd, as in most programs
        image = material.image
        return (np.ones(4) if image is not None else material.diffuse / 255), _pixels(path, image, opaque=True)
    factor = np.full(4, 255) if material.baseColorFactor is None else material.baseColorFactor
    colour = np.append(_display(factor[:3] / 255), factor[3] / 255)
    opaque = material.alphaMode in (None, "OPAQUE")
    if opaque:
        colour[3] = 1
    elif material.alphaMode == "MASK" and material.alphaCutoff:
        colour[3] *= 0.5 / material.alphaCutoff
    return colour, _pixels(path, material.baseColorTexture, opaque=opaque)


def _pixels(path: Path, image: Any, *, opaque: bool) -> NDArray[np.uint8] | None:
    """[h, w, 4] of a texture, which Pillow has opened but not decoded."""
    if image is None:
        return None
    if image.format not in _IMAGES:
        raise ValueError(f"{path} has a texture of format {image.format}: expected {', '.join(sorted(_IMAGES))}")
    if image.width * image.height > MOST_PIXELS:
        raise ValueError(f"{path} has a texture of {image.width}x{image.height}: reduce it to 8192x8192 or less")
    try:
        whole = image.convert("RGBA")
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"{path} has a texture that is damaged ({error}): export it again") from error
    whole.thumbnail((TEXTURE, TEXTURE))
    pixels = np.array(whole)
    if opaque:
        pixels[..., 3] = 255
    return pixels


def _display(linear: Array) -> Array:
    """Colours as glTF multiplies them, linear, as they are displayed (sRGB)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)
