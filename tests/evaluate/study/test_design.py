import re
import shutil
from collections import Counter
from itertools import pairwise

import pytest

from dream4d.evaluate.study.design import PAPER, read_study

from .conftest import PROMPTS, add_run


def real(trials, question):
    return [trial for trial in trials if trial.question == question and trial.right is None]


def test_the_default_is_table_1_of_the_paper(runs):
    study = read_study(runs)
    assert study.comparisons == PAPER
    assert study.notes == ()
    trials = study.trials("someone")
    assert len(trials) == 3 * len(PROMPTS) + 3
    for question, variants in PAPER.items():
        asked = real(trials, question)
        assert sorted(trial.case.prompt for trial in asked) == sorted(PROMPTS)
        for trial in asked:
            assert {video.variant for video in trial.videos} == set(variants)
            assert {video.case for video in trial.videos} == {trial.case}


def test_a_rater_always_gets_the_same_and_raters_differ(runs):
    study = read_study(runs)
    assert study.trials("someone") == read_study(runs).trials("someone")
    orders = [study.trials(str(rater)) for rater in range(20)]
    assert all(one != other for one, other in pairwise(orders))


@pytest.mark.parametrize("rater", ["a", "b", "c"])
def test_every_variant_is_in_every_place_equally_often(runs, rater):
    trials = read_study(runs).trials(rater)
    for question, variants in PAPER.items():
        for place in range(len(variants)):
            times = Counter(trial.videos[place].variant for trial in real(trials, question))
            counts = [times[variant] for variant in variants]
            assert max(counts) - min(counts) <= 1


def test_no_place_is_favoured_over_many_raters(runs):
    study = read_study(runs, questions=["motion"])
    first = Counter(real(study.trials(str(rater)), "motion")[0].videos[0].variant for rater in range(300))
    assert all(70 < first[variant] < 130 for variant in PAPER["motion"])  # 100 expected, 3.7 standard deviations


def test_attention_checks_have_one_video_of_the_prompt(runs):
    study = read_study(runs, checks=4)
    checks = [trial for trial in study.trials("someone") if trial.right is not None]
    assert len(checks) == 4
    assert len({trial.case for trial in checks}) == 4
    for trial in checks:
        assert [video.case == trial.case for video in trial.videos].index(True) == trial.right
        assert {video.variant for video in trial.videos} == {"ours"}
        assert len(trial.videos) == len(PAPER["text"])  # looks like any other


def test_attention_checks_take_two_prompts(tmp_path):
    for variant in ("ours", "no-tv"):
        add_run(tmp_path, variant, "a pig", seed=0)
        add_run(tmp_path, variant, "a pig", seed=1)
    add_run(tmp_path, "ours", "a cat")
    study = read_study(tmp_path)
    assert "there is no attention check" in study.notes[-1]
    assert [trial.right for trial in study.trials("someone")] == [None, None]
    add_run(tmp_path, "no-tv", "a cat")
    checks = [trial for trial in read_study(tmp_path).trials("someone") if trial.right is not None]
    assert {trial.question for trial in checks} == {"text"}
    assert all({video.case.prompt for video in trial.videos} == {"a pig", "a cat"} for trial in checks)


def test_attention_checks_take_the_most_different_prompt(tmp_path):
    for variant in ("ours", "no-2d"):
        for prompt in ("a red cat is waving", "a red cat is jumping", "two green hats"):
            add_run(tmp_path, variant, prompt)
    for trial in read_study(tmp_path).trials("someone"):
        if trial.right is not None and "cat" in trial.case.prompt:
            assert trial.videos[1 - trial.right].case.prompt == "two green hats"


def test_fewer_prompts_are_drawn_for_each_rater(runs):
    study = read_study(runs, prompts=2, checks=0)
    drawn = {frozenset(trial.case for trial in real(study.trials(str(rater)), "text")) for rater in range(30)}
    assert {len(cases) for cases in drawn} == {2}
    assert len(drawn) > 2


def test_what_cannot_be_compared_is_said(runs):
    shutil.rmtree(runs / "no-2d")
    shutil.rmtree(runs / "no-grid")
    shutil.rmtree(next((runs / "hexplane").iterdir()))
    study = read_study(runs)
    assert study.comparisons == {"motion": ("ours", "no-tv"), "visual": PAPER["visual"]}
    assert len(study.cases("visual")) == len(PROMPTS) - 1
    text, visual = study.notes
    assert "text is not asked" in text
    assert visual.endswith("lacks a video of hexplane")


def test_comparisons_of_ones_own(runs):
    study = read_study(runs, questions=["text"], compare=["text=no-3d,no-2d,hexplane"])
    assert study.comparisons == {"text": ("no-3d", "no-2d", "hexplane")}


def test_a_run_that_is_not_finished_is_not_there(runs):
    (add_run(runs, "ours", "a pig") / "video.mp4").unlink()
    assert "a pig" not in {case.prompt for case in read_study(runs).cases("text")}


def test_the_fingerprint_follows_what_raters_see(runs):
    before = read_study(runs).fingerprint
    assert read_study(runs).fingerprint == before
    assert read_study(runs, checks=1).fingerprint != before
    video = next(runs.glob("ours/*/video.mp4"))
    video.write_bytes(b"rendered again")
    assert read_study(runs).fingerprint != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compare": ["text=ours,no2d"]}, "there is no variant 'no2d'; did you mean no-2d?"),
        ({"compare": ["txt=ours,no-2d"]}, "there is no question 'txt'; did you mean text?"),
        ({"compare": ["text=ours"]}, "--compare text=ours needs two variants or more"),
        ({"compare": ["text=ours,ours"]}, "each once"),
        ({"questions": []}, "nothing can be compared"),
        ({"prompts": 0}, "prompts is 0"),
        ({"checks": -1}, "checks -1"),
    ],
)
def test_bad_options(runs, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_study(runs, **options)


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="no finished runs in"):
        read_study(tmp_path)
    run = add_run(tmp_path, "ours", "a pig")
    with pytest.raises(ValueError, match=r"nothing can be compared in .*, which has ours: name variants"):
        read_study(tmp_path)
    shutil.copytree(run, run.with_name("copy"))
    with pytest.raises(ValueError, match="have the same prompt and seed"):
        read_study(tmp_path)
    (run / "config.yaml").write_text("prompt: 3\n")
    with pytest.raises(ValueError, match="expected a prompt and a whole number as seed, not 3"):
        read_study(tmp_path)
