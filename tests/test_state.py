import pytest
import torch
from tiny_scene import tiny_scene

from dream4d.dynamic import start_dynamic
from dream4d.encodings import HashGrid, HexPlane
from dream4d.state import StepReport
from dream4d.static import start_static


@pytest.mark.parametrize("field", ["grid", "hexplane"])
def test_grids_learn_faster_and_do_not_decay(field):
    scene = tiny_scene(field=field)
    state = start_static(scene, seed=0)
    state.set_learning_rates(grid=0.01, mlp=0.001, time=0.1)
    grid, mlp = state.optimizer.param_groups
    expected = {p for part in scene.modules() if isinstance(part, HashGrid | HexPlane) for p in part.parameters()}
    assert set(grid["params"]) == expected
    assert {*grid["params"], *mlp["params"]} == set(scene.parameters())
    assert (grid["lr"], grid["weight_decay"], mlp["lr"], mlp["weight_decay"]) == (0.01, 0.0, 0.001, 0.01)
    assert grid["betas"] == (0.9, 0.99)


def test_planes_of_time_have_a_learning_rate_of_their_own():
    state = start_dynamic(tiny_scene(moving=True, field="hexplane"), seed=0)
    state.set_learning_rates(grid=0.01, mlp=0.001, time=0.1)
    groups = {group["lr"]: {id(p) for p in group["params"]} for group in state.optimizer.param_groups}
    plane = state.scene.hexplane
    assert groups[0.1] == {id(p) for p in plane.time}
    assert groups[0.01] == {id(p) for p in plane.space}
    assert sum(map(len, groups.values())) == len(list(state.scene.parameters()))


def test_tensors_survive_safetensors(tmp_path):
    from safetensors.torch import load_file, save_file

    state = start_static(tiny_scene(), seed=3)
    for p in state.scene.parameters():
        p.grad = torch.ones_like(p)
    state.optimizer.step()
    torch.rand(5, generator=state.generator)
    state.step = 7
    save_file(state.to_tensors(), tmp_path / "state.safetensors")
    fresh = start_static(tiny_scene(seed=9), seed=4)
    fresh.load_tensors(load_file(tmp_path / "state.safetensors"))
    assert fresh.step == 7
    assert torch.equal(torch.rand(5, generator=fresh.generator), torch.rand(5, generator=state.generator))
    again = fresh.to_tensors()
    for name, value in state.to_tensors().items():
        assert torch.equal(value, again[name]), name


def test_copies_do_not_change_with_the_state():
    state = start_static(tiny_scene(), seed=0)
    saved = state.to_tensors()
    before = {name: value.clone() for name, value in saved.items()}
    for p in state.scene.parameters():
        p.data.add_(1)
    assert all(torch.equal(saved[name], before[name]) for name in saved)


def test_a_state_of_another_stage_or_size_is_refused():
    state = start_static(tiny_scene(), seed=0)
    tensors = state.to_tensors()
    name = next(name for name in tensors if name.startswith("scene."))
    with pytest.raises(ValueError, match="differing"):
        state.load_tensors({k: v for k, v in tensors.items() if k != name})
    with pytest.raises(ValueError, match="as saved"):
        state.load_tensors({**tensors, name: torch.zeros(1, 2, 3)})


def test_report_gives_numbers():
    assert StepReport(3, {"2d": torch.tensor(1.5)}).floats() == {"2d": 1.5}
