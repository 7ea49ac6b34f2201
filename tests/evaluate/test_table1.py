import json

import pytest

from dream4d.evaluate import table1
from dream4d.evaluate.table1 import Claim, differences, document, means, tables, verdicts, wins

CASES = [(prompt, seed) for prompt in ("a", "b", "c", "d") for seed in (0, 1)]


def variant(metric, numbers):
    """One number for each of CASES."""
    return {case: {metric: number} for case, number in zip(CASES, numbers, strict=True)}


def test_seeds_of_a_sentence_are_averaged_before_the_interval():
    (row,) = means({"ours": variant("aligned", [0, 1] * 4)})
    assert (row.mean, row.low, row.high, row.n) == (0.5, 0.5, 0.5, 8)
    (row,) = means({"ours": variant("aligned", [0, 0, 0, 0, 1, 1, 1, 1])})
    assert row.mean == 0.5
    assert row.low < 0.2 < 0.8 < row.high


def test_differences_are_paired():
    """What sentences have in common, however different they are, cancels."""
    ours = variant("aligned", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    less = variant("aligned", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7])
    del less["a", 1]
    (row,) = differences({"ours": ours, "no-2d": less})
    assert row.variant == "no-2d - ours"
    assert row.n == 7
    assert [row.mean, row.low, row.high] == pytest.approx([-0.1] * 3)


def test_the_best_variant_of_a_case_wins_and_equals_share():
    ours, other = [1, 1, 1, 1, 1, 1, 0.5, 0.5], [0, 0, 0, 0, 0, 0, 0.5, 1]
    values = {"ours": variant("aligned", ours), "no-2d": variant("aligned", other)}
    ours, other = wins(values)
    assert (ours.question, ours.variant, ours.n) == ("text", "ours", 8)
    assert (ours.share, other.share) == (6.5 / 8, 1.5 / 8)
    assert ours.low < ours.share < ours.high
    assert wins({"ours": values["ours"]}) == [], "nothing to compare with"


def test_less_is_better_where_it_is():
    values = {name: variant("azimuth_error", [error] * 8) for name, error in (("ours", 5), ("no-3d", 60))}
    assert [(win.variant, win.share) for win in wins(values)] == [("ours", 1.0), ("no-3d", 0.0)]


@pytest.mark.parametrize(("ours", "other", "word"), [
    ([0.9, 0.8] * 4, [0.1, 0.2] * 4, "shown"),
    ([0.1, 0.1, 0.4, 0.4, 0.6, 0.6, 0.9, 0.9], [0.0, 0.0, 0.3, 0.3, 0.5, 0.5, 0.8, 0.8], "shown, sentence by sentence"),
    ([0.5, 0.5, 0.6, 0.6, 0.4, 0.4, 0.9, 0.9], [0.5, 0.5, 0.7, 0.7, 0.5, 0.5, 0.6, 0.6], "not shown"),
    ([0.4] * 8, [0.6] * 8, "contradicted"),
])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_claim_shows_or_does_not(monkeypatch, ours, other, word, sign):
    monkeypatch.setattr(table1, "CLAIMS", (Claim("more is better", "aligned", sign, "no-2d"),))
    one, two = ("ours", "no-2d") if sign > 0 else ("no-2d", "ours")
    (verdict,) = verdicts({one: variant("aligned", ours), two: variant("aligned", other)})
    assert verdict.word == word
    (line,) = document({one: variant("aligned", ours), two: variant("aligned", other)})["claims"]
    assert line["verdict"] == word


def test_the_numbers_are_written_for_people_and_for_programs(tmp_path):
    values = {"ours": variant("aligned", [0.9] * 8), "no-2d": variant("aligned", [0.1] * 8)}
    numbers, text = table1.write(values, tmp_path / "new")
    rows = json.loads(numbers.read_text())["rows"]
    assert rows[0] == {"metric": "aligned", "variant": "ours", "mean": 0.9, "low": 0.9, "high": 0.9, "n": 8}
    assert text.read_text().rstrip() == tables(values)
    assert "| aligned | 0.90 (0.90 to 0.90) | 0.10 (0.10 to 0.10) |" in tables(values)
    assert "| text | aligned | ours | 100.0% (68% to 100%) | 8 |" in tables(values)
    assert "no-2d: 0.10 (0.10 to 0.10) | 0.80 (0.80 to 0.80) | shown |" in tables(values)


def test_every_claim_names_what_is_there():
    from dream4d.evaluate.runs import METRICS
    from dream4d.presets import ABLATIONS

    assert all(claim.metric in METRICS and claim.other in ABLATIONS for claim in table1.CLAIMS)
    assert {claim.other for claim in table1.CLAIMS} == set(ABLATIONS)
