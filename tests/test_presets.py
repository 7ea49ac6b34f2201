import pytest
import yaml

from dream4d.presets import ABLATIONS, PRESETS, ablate, for_mesh, for_subject, merge, preset, to_mapping
from dream4d.run import flatten
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


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("ablation", "changes"), [
    ("no-2d", {"priors.image": "none"}),
    ("no-3d", {"priors.multiview": "none"}),
    ("hexplane", {"scene.field": "hexplane"}),
    ("no-grid", {"deformation.encoding": "positional"}),
    ("no-tv", {"dynamic.weight_tv": 0}),
])
def test_an_ablation_changes_one_thing_of_any_preset(name, ablation, changes):
    before, after = flatten(to_mapping(preset(name))), flatten(to_mapping(ablate(preset(name), ablation)))
    if ablation == "no-2d" and name != "builtin":
        changes = changes | {"priors.base": before["priors.image"]}
    assert {key: after[key] for key in after if after[key] != before[key]} == changes
    assert ablation in ABLATIONS


def test_without_the_image_model_others_still_take_parts_from_where_they_did():
    def base(**priors):
        return ablate(merge(preset("builtin"), {"priors": priors}), "no-2d").priors.base

    assert (base(image="models/sd"), base(image="models/sd", base="parts"), base()) == ("models/sd", "parts", None)


def test_an_unknown_ablation_is_told_the_nearest():
    with pytest.raises(ValueError, match="there is no ablation 'hexplanes'; did you mean hexplane"):
        ablate(preset("paper"), "hexplanes")


def test_a_personalised_model_has_numbers_of_its_own():
    assert for_subject(preset("paper")) == preset("paper")
    builtin = preset("builtin")
    changed = for_subject(builtin)
    assert changed.static.guidance_2d == builtin.personalize.guidance_2d != builtin.static.guidance_2d
    assert changed.dynamic == for_mesh(builtin).dynamic != builtin.dynamic
    static = {"weight_2d": 2.0, "guidance_2d": 10.0}
    back = {"static": static, "deformation": {"at_rest": False}, "dynamic": to_mapping(builtin.dynamic)}
    assert merge(changed, back) == builtin


def test_a_given_model_has_a_motion_stage_of_its_own():
    paper = for_mesh(preset("paper"))
    assert paper.dynamic == preset("paper").dynamic
    assert paper.deformation.at_rest
    free = merge(preset("builtin"), {"reconstruct": {"at_rest": False, "kept_mean": None, "levels": None}})
    assert for_mesh(free) == free
    changed = for_mesh(preset("builtin"))
    assert changed.dynamic.kept_mean == 1
    assert [changed.dynamic.levels(step) for step in (0, 19, 20, 119, 239)] == [1, 1, 2, 6, 6]
