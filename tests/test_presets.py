import pytest
import yaml

from dream4d.presets import PRESETS, merge, preset, to_mapping
from dream4d.schedules import Constant


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_yaml(name):
    text = yaml.safe_dump(to_mapping(preset(name)))
    assert merge(PRESETS["paper"], yaml.safe_load(text)) == preset(name)


def test_the_defaults_are_the_papers_numbers():
    paper = preset("paper")
    assert (paper.static.steps, paper.static.guidance_2d, paper.static.guidance_3d) == (10_000, 100, 50)
    assert (paper.dynamic.steps, paper.dynamic.weight_tv, paper.dynamic.weight_pixels) == (10_000, 1000, 0.1)
    assert round(paper.scene.base * paper.scene.growth ** (paper.scene.levels - 1)) == 4096
    assert int(paper.deformation.base * paper.deformation.growth ** 11) == 233


def test_merge_reaches_any_depth_and_converts():
    merged = merge(preset("builtin"), {"seed": 3, "static": {"steps": 7, "resolution": 64, "fov_y": [20, 4e1]}})
    assert (merged.seed, merged.static.steps, merged.static.fov_y) == (3, 7, (20.0, 40.0))
    assert merged.static.resolution == Constant(64)
    assert merge(merged, {"static": {"weight_2d": "1e-3"}}).static.weight_2d == 1e-3  # what YAML makes of 1e-3
    assert merge(merged, {"static": {"images_2d": None}}).static.images_2d is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"static": {"stpes": 1}}, r"unknown key static\.stpes; did you mean static\.steps\?"),
        ({"statik": {}}, r"unknown key statik; did you mean static\?"),
        ({"static": 3}, r"static: expected `key: value` lines"),
        ({"static": {"steps": 1.5}}, r"static\.steps: expected int, not 1\.5"),
        ({"static": {"steps": True}}, r"static\.steps: expected int, not True"),
        ({"static": {"weight_2d": "much"}}, r"static\.weight_2d: expected a number, not 'much'"),
        ({"static": {"fov_y": [1]}}, r"static\.fov_y: expected a list of 2"),
        ({"static": {"resolution": "small"}}, r"static\.resolution: 'small' is not a schedule"),
        ({"deformation": {"encoding": "hex"}}, r"deformation\.encoding: expected grid or positional, not 'hex'"),
        ({"priors": {"precision": "low"}}, r"priors\.precision: expected auto or half or bf16 or full, not 'low'"),
    ],
)
def test_merge_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        merge(preset("builtin"), values)


def test_an_unknown_preset_is_told_the_nearest():
    with pytest.raises(ValueError, match="did you mean paper"):
        preset("papr")
