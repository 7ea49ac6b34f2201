import json
import sys

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from toy_mesh import for_gltf, from_front, toy_mesh

from dream4d import meshfile
from dream4d.film import cameras_at
from dream4d.mesh import draw, draw_images
from dream4d.meshfile import REACH, SIZE, read_mesh

FRONT, SIDE = cameras_at([0.0], 0.0), cameras_at([90.0], 0.0)
ORANGE = (255, 128, 0, 255)


@pytest.fixture(scope="module")
def cat():
    return toy_mesh("a red cat", rings=8, segments=10)


def exported(cat, kind, folder):
    """The cat as a file of this kind, in the axes that its programs use."""
    gltf = for_gltf(cat)
    in_ply = cat.vertices[:, [1, 0, 2]] * [1, -1, 1]
    vertices = {"ply": in_ply}.get(kind, gltf.vertices)
    colours = gltf.visual.vertex_colors if kind in ("glb", "gltf") else cat.visual.vertex_colors
    mesh = trimesh.Trimesh(vertices, cat.faces, vertex_colors=colours, process=False)
    if kind == "gltf":
        for name, data in trimesh.exchange.gltf.export_gltf(trimesh.Scene(mesh)).items():
            (folder / name).write_bytes(data)
        return folder / "model.gltf"
    mesh.export(folder / f"cat.{kind}")
    return folder / f"cat.{kind}"


def painted(folder, kind="glb", **material):
    """A square that faces the front, with a texture: red above, blue below."""
    picture = Image.new("RGBA", (4, 4), (0, 0, 255, material.pop("alpha", 255)))
    picture.paste((255, 0, 0, 255), (0, 0, 4, 2))
    picture.format = "PNG"
    corners = np.array([[-1.0, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    visual = trimesh.visual.TextureVisuals(
        uv=(corners[:, :2] + 1) / 2, material=trimesh.visual.material.PBRMaterial(baseColorTexture=picture, **material)
    )
    mesh = trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], visual=visual, process=False)
    mesh.export(folder / f"square.{kind}")
    return folder / f"square.{kind}"


def surface(triangles):
    """The middle of a surface and its root mean square distance from there, from 100 points on each triangle."""
    corner = torch.rand(100, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    a, b = torch.where(corner.sum(dim=1, keepdim=True) > 1, 1 - corner, corner).unbind(dim=1)
    one, two, three = triangles.double().unbind(dim=1)
    points = one + a * (two - one) + b * (three - one)
    area = torch.linalg.cross(two - one, three - one).norm(dim=-1)[:, None]
    middle = (area * points).sum(dim=(0, 1)) / area.sum() / 100
    return middle, ((area * (points - middle).square()).sum() / area.sum() / 100).sqrt()


@pytest.mark.parametrize("kind", ["glb", "gltf", "obj", "ply"])
def test_a_toy_looks_the_same_in_every_format(cat, kind, tmp_path):
    mesh = read_mesh(exported(cat, kind, tmp_path))
    own = torch.from_numpy(cat.vertices[cat.faces])
    middle, spread = surface(own)
    expected = ((own - middle) * SIZE / spread).float()
    assert (mesh.tree.triangles.mean(dim=1).sort(dim=0)[0] - expected.mean(dim=1).sort(dim=0)[0]).abs().max() < 0.01
    red = torch.from_numpy(cat.visual.vertex_colors[cat.faces] / 255).float()
    assert (mesh.colours.mean(dim=(0, 1)) - red.mean(dim=(0, 1))).abs().max() < 0.01


def test_up_and_turn(cat, tmp_path):
    file = exported(cat, "ply", tmp_path)
    straight, turned = read_mesh(file), read_mesh(file, turn=90)
    ahead, aside = draw_images(straight, FRONT, 32), draw_images(turned, SIDE, 32)
    assert (ahead.rgb - aside.rgb).abs().mean() < 1e-3
    lying = read_mesh(file, up="y").tree.triangles.reshape(-1, 3)
    assert lying[:, 0].max() == pytest.approx(straight.tree.triangles[..., 2].max().item())  # its top is in front
    with pytest.raises(ValueError, match="up is 'x': expected auto, y or z"):
        read_mesh(file, up="x")


def test_a_model_has_the_size_and_the_place_that_are_asked_for(tmp_path):
    trimesh.creation.box((1e20, 2e20, 3e20)).export(tmp_path / "box.ply")
    triangles = read_mesh(tmp_path / "box.ply", size=0.3, middle=(0.1, 0, -0.2)).tree.triangles
    middle, spread = surface(triangles[:12])
    assert middle.tolist() == pytest.approx([0.1, 0, -0.2], abs=0.01)
    assert spread.item() == pytest.approx(0.3, rel=0.02)
    large = read_mesh(tmp_path / "box.ply", size=10).tree.triangles
    assert large.norm(dim=-1).max().item() == pytest.approx(REACH)


def above_and_below(mesh):
    return draw(mesh, from_front(torch.zeros(2), torch.tensor([0.3, -0.3])))


@pytest.mark.parametrize("kind", ["glb", "obj"])
def test_textures_are_read_the_right_way_up(kind, tmp_path):
    seen = above_and_below(read_mesh(painted(tmp_path, kind)))
    assert torch.equal(seen.rgb, torch.tensor([[1.0, 0, 0], [0, 0, 1]]))


def test_factors_are_linear_and_alpha_counts_where_the_material_says_so(tmp_path):
    grey = (0.214, 0.214, 0.214, 1.0)  # 0.5 as displayed
    seen = above_and_below(read_mesh(painted(tmp_path, baseColorFactor=grey)))
    assert seen.rgb[0, 0].item() == pytest.approx(0.5, abs=0.01)
    assert above_and_below(read_mesh(painted(tmp_path, alpha=100))).opacity.tolist() == [1, 1]
    assert above_and_below(read_mesh(painted(tmp_path, alpha=100, alphaMode="BLEND"))).opacity.tolist() == [1, 0]
    mask = {"alphaMode": "MASK", "alphaCutoff": 0.2}
    assert above_and_below(read_mesh(painted(tmp_path, alpha=100, **mask))).opacity.tolist() == [1, 1]


def test_colours_of_materials_and_faces_and_none(tmp_path):
    box = trimesh.creation.box()
    (tmp_path / "box.mtl").write_text("newmtl orange\nKd 1 0.5 0\n")
    lines = [f"v {x} {y} {z}" for x, y, z in box.vertices] + [f"f {a} {b} {c}" for a, b, c in box.faces + 1]
    (tmp_path / "box.obj").write_text("\n".join(["mtllib box.mtl", *lines[:8], "usemtl orange", *lines[8:]]))
    assert (read_mesh(tmp_path / "box.obj").colours[..., 1] - 0.5).abs().max() < 0.01
    box.visual.face_colors = ORANGE
    box.export(tmp_path / "faces.ply")
    assert (read_mesh(tmp_path / "faces.ply").colours * 255).round().unique(dim=0).shape[0] == 1
    trimesh.creation.box().export(tmp_path / "plain.ply")
    assert read_mesh(tmp_path / "plain.ply").colours[..., 0].unique().tolist() == [pytest.approx(0.7)]


def test_parts_stand_where_their_scene_puts_them(tmp_path):
    scene = trimesh.Scene()
    for height in (0, 4):
        scene.add_geometry(trimesh.creation.box(), transform=trimesh.transformations.translation_matrix([0, height, 0]))
    scene.export(tmp_path / "tower.glb")
    low, high = (read_mesh(tmp_path / "tower.glb").tree.triangles.reshape(-1, 3).unbind(-1)[2].aminmax())
    spread = (2**2 + 3 * (2 / 4 + 4 / 12) / 6) ** 0.5  # two cubes' surfaces, 2 from the middle
    assert ((high - low) / SIZE).item() == pytest.approx(5 / spread)


def write(folder, name, content):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
OUTSIDE = json.dumps({"asset": {"version": "2.0"}, "buffers": [{"uri": "../secret.bin", "byteLength": 4}]})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.fbx", "", r"model\.fbx is no mesh that can be read: expected a name with \.glb, \.gltf, \.obj, \.ply"),
        ("empty.obj", "", r"empty\.obj (cannot be read|has no triangles)"),
        ("points.obj", "v 0 0 0\nv 1 0 0\n", "has no triangles"),
        ("odd.obj", TRIANGLE.replace("v 1 0 0", "v nan 0 0"), "not finite numbers: repair"),
        ("flat.obj", "v 1 1 1\nv 1 1 1\nv 1 1 1\nf 1 2 3\n", "has no extent"),
        ("holes.obj", TRIANGLE.replace("f 1 2 3", "f 1 2 9"), "cannot be read|faces of vertices that are not there"),
        ("half.glb", b"glTF\x02\0\0\0\xff\0\0\0", r"half\.glb cannot be read \(.*\): is it damaged\?"),
        ("text.ply", "hello", r"text\.ply cannot be read"),
        ("bare.obj", "mtllib gone.mtl\n" + TRIANGLE, r"needs 'gone\.mtl', which is not in its folder: put it there"),
        ("spy.obj", "mtllib ../spy.mtl\n" + TRIANGLE, r"needs '\.\./spy\.mtl', which is not in its folder"),
        ("spy.gltf", OUTSIDE, r"needs '\.\./secret\.bin', which is not in its folder"),
        ("web.gltf", OUTSIDE.replace("../secret.bin", "https://x.org/a.bin"), r"needs 'https://x\.org/a\.bin', which"),
    ],
)
def test_bad_files_are_one_line_that_names_file_and_remedy(name, content, message, tmp_path):
    for file in ("secret.bin", "spy.mtl"):
        write(tmp_path, file, "newmtl a\n")
    (tmp_path / "models").mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        read_mesh(write(tmp_path / "models", name, content))
    assert name in str(caught.value)


def test_limits(cat, tmp_path, monkeypatch):
    file = exported(cat, "ply", tmp_path)
    with pytest.raises(ValueError, match="there is no mesh absent"):
        read_mesh("absent.ply")
    monkeypatch.setattr(meshfile, "MOST_FACES", 100)
    with pytest.raises(ValueError, match="triangles, more than 100: simplify it"):
        read_mesh(file)
    monkeypatch.setattr(meshfile, "MOST_BYTES", 2**20 >> 4)
    with pytest.raises(ValueError, match="takes more than 0 MiB"):
        read_mesh(file)
    monkeypatch.setattr(meshfile, "MOST_BYTES", 2**29)
    monkeypatch.setattr(meshfile, "MOST_PIXELS", 8)
    with pytest.raises(ValueError, match="texture of 4x4: reduce it"):
        read_mesh(painted(tmp_path))


def test_no_program_is_started_for_a_texture(tmp_path):
    """Pillow would hand PostScript to an interpreter."""
    write(tmp_path, "a.eps", "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    write(tmp_path, "a.mtl", "newmtl a\nmap_Kd a.eps\n")
    text = "mtllib a.mtl\n" + TRIANGLE.replace("f", "vt 0 0\nusemtl a\nf").replace("f 1 2 3", "f 1/1 2/1 3/1")
    with pytest.raises(ValueError, match="texture of format EPS"):
        read_mesh(write(tmp_path, "a.obj", text))


def test_without_trimesh_one_line_says_what_to_install(cat, tmp_path, monkeypatch):
    file = exported(cat, "ply", tmp_path)
    monkeypatch.setitem(sys.modules, "trimesh", None)
    with pytest.raises(ValueError, match="pip install trimesh"):
        read_mesh(file)
