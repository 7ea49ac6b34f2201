import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_scene import tiny_scene

from dream4d.scene import DeformationShape, Scene, SceneShape


def points(n=200):
    return torch.rand(n, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1


def move(scene, amount=3.0):
    """Give the deformation something to do."""
    with torch.no_grad():
        scene.deformation.encoding.table.normal_(generator=torch.Generator().manual_seed(2))
        scene.deformation.mlp[-1].weight.mul_(amount)
    return scene


def blur_time(scene):
    """Give a HexPlane's planes of space and time something to say."""
    with torch.no_grad():
        for planes in scene.hexplane.parameters():
            planes.normal_(generator=torch.Generator().manual_seed(2))


def test_a_point_is_looked_up_where_the_displacement_takes_it():
    scene = move(tiny_scene(moving=True))
    density, rgb, displacement = scene(points(), 0.3)
    assert displacement.abs().max() > 0.05
    canonical = (points() + displacement).clamp(-1, 1)
    torch.testing.assert_close(density, scene.canonical(canonical)[0])
    torch.testing.assert_close(rgb, scene.canonical(canonical)[1])
    assert torch.equal(scene.density(points(), 0.3), density)


def test_one_time_or_one_for_each_point():
    scene = move(tiny_scene(moving=True))
    assert torch.equal(scene.density(points(), 0.25), scene.density(points(), torch.full((200,), 0.25)))
    assert not torch.equal(scene.density(points(), 0.25), scene.density(points(), 0.75))


@pytest.mark.parametrize("field", ["grid", "hexplane"])
def test_a_static_scene_has_no_displacement_and_no_time(field):
    scene = tiny_scene(field=field)
    assert not scene.moves
    assert scene(points(), 0.1).displacement is None
    assert torch.equal(scene.density(points(), 0.0), scene.density(points(), 1.0))


def test_active_levels_mask_the_deformation_only():
    scene = move(tiny_scene(moving=True))
    whole = scene(points(), 0.5)
    scene.active_levels = 1
    assert not torch.equal(scene(points(), 0.5).displacement, whole.displacement)
    scene.active_levels = 4
    assert torch.equal(scene(points(), 0.5).displacement, whole.displacement)


def test_a_hexplane_begins_to_move_from_rest():
    scene = tiny_scene(field="hexplane")
    still = scene(points(), 0.5)
    scene.add_motion(DeformationShape())
    assert scene.moves
    torch.testing.assert_close(scene(points(), 0.5)[:2], still[:2])
    blur_time(scene)
    begin, end = scene(points(), 0.0), scene(points(), torch.ones(200))
    assert not torch.equal(begin.density, end.density)
    assert not torch.equal(begin.rgb, end.rgb)
    assert begin.displacement is None
    torch.testing.assert_close(scene.density(points(), 1.0), end.density)


def test_all_of_a_hexplane_scene_is_its_motion():
    scene = tiny_scene(moving=True, field="hexplane")
    scene.freeze_canonical()
    assert all(p.requires_grad for p in scene.parameters())
    assert {id(p) for p in scene.motion()} == {id(p) for p in scene.parameters()}


@pytest.mark.parametrize("encoding", ["grid", "positional"])
def test_freezing_leaves_the_deformation_to_train(encoding):
    scene = tiny_scene(moving=True, encoding=encoding)
    scene.freeze_canonical()
    assert {id(p) for p in scene.motion()} == {id(p) for p in scene.deformation.parameters()}
    trained = {name.split(".")[0] for name, value in scene.named_parameters() if value.requires_grad}
    assert trained == {"deformation"}
    scene.density(points(), 0.5).sum().backward()
    assert {name.split(".")[0] for name, value in scene.named_parameters() if value.grad is not None} == {"deformation"}


@pytest.mark.parametrize("deformation", [None, "grid", "positional"])
def test_saved_scenes_load_to_the_bit(tmp_path, deformation):
    scene = Scene(SceneShape(levels=3, base=4, log2_size=8, blob_radius=0.7, hidden=32))
    if deformation:
        scene.add_deformation(DeformationShape(encoding=deformation, levels=2, log2_size=8, frequencies=2, layers=2))
        scene.active_levels = 1
    scene.save(tmp_path / "scene.safetensors")
    loaded = Scene.load(tmp_path / "scene.safetensors")
    assert (loaded.shape, loaded.deformation_shape) == (scene.shape, scene.deformation_shape)
    assert loaded.active_levels == scene.active_levels
    results = zip(scene(points(), 0.4), loaded(points(), 0.4), strict=True)
    assert all(a is b is None or torch.equal(a, b) for a, b in results)
    assert [path.name for path in tmp_path.iterdir()] == ["scene.safetensors"]


@pytest.mark.parametrize("moving", [False, True])
def test_a_saved_hexplane_moves_as_before(tmp_path, moving):
    scene = tiny_scene(moving=moving, field="hexplane")
    if moving:
        blur_time(scene)
    scene.save(tmp_path / "scene.safetensors")
    loaded = Scene.load(tmp_path / "scene.safetensors")
    assert (loaded.shape, loaded.moves) == (scene.shape, moving)
    assert torch.equal(loaded.density(points(), 0.8), scene.density(points(), 0.8))


@pytest.mark.parametrize("moving", [False, True])
def test_files_from_before_there_were_hexplanes_load(tmp_path, moving):
    scene, path = tiny_scene(moving=moving), tmp_path / "scene.safetensors"
    scene.save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    shapes = json.loads(metadata["shapes"])
    del shapes["moves"]
    shapes["scene"] = {k: v for k, v in shapes["scene"].items() if k != "field" and not k.startswith("plane_")}
    save_file(tensors, path, metadata=metadata | {"shapes": json.dumps(shapes)})
    loaded = Scene.load(path)
    assert loaded.moves == moving
    assert torch.equal(loaded.density(points(), 0.8), scene.density(points(), 0.8))


def test_files_that_are_no_scenes_are_named(tmp_path):
    path = tmp_path / "scene.safetensors"
    tiny_scene().save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"not a scene", whole[:50], whole[:-10]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"scene\.safetensors is not a complete dream4d scene"):
            Scene.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="its format is None"):
        Scene.load(path)
    with pytest.raises(FileNotFoundError):
        Scene.load(tmp_path / "missing.safetensors")
