import csv
import json
from itertools import count

import pytest

from dream4d.evaluate.study.design import Case, Trial, Video
from dream4d.evaluate.study.results import krippendorff, results, tally, wilson
from dream4d.evaluate.study.votes import Votes, code


@pytest.mark.parametrize(
    ("hits", "of", "low", "high"),  # Newcombe 1998, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_against_published_intervals(hits, of, low, high):
    assert wilson(hits, of) == pytest.approx((low, high), abs=5e-5)


def test_krippendorff_against_a_published_value():
    observers = "*****34121133*3", "1*213343*******", "**21344*21133*4"  # Krippendorff's example, of names
    units = [[value for value in unit if value != "*"] for unit in zip(*observers, strict=True)]
    assert krippendorff(units) == pytest.approx(0.691, abs=5e-4)


def test_krippendorff_at_its_ends():
    assert krippendorff([["ours", "ours"], ["no-2d", "no-2d"]]) == 1
    assert krippendorff([["ours", "no-2d"], ["ours", "no-2d"]]) < 0
    assert krippendorff([["ours"], ["no-2d"]]) is None


@pytest.fixture(scope="module")
def voted(tmp_path_factory):
    """Nine raters find ours better in the motion of two prompts; a tenth does not, and misses the attention check."""
    votes = Votes(tmp_path_factory.mktemp("study") / "votes.db", create=True)
    cases = Case("a cat, waving", 0), Case("a dog", 0)
    check = Trial("text", cases[0], tuple(Video("ours", case) for case in cases), right=0)
    for careless in (*[False] * 9, True):
        rater, number = code(votes.add_rater(3)), count()
        for case in cases:
            videos = Video("no-tv", case), Video("ours", case), Video("no-grid", case)
            votes.add(rater, next(number), Trial("motion", case, videos), 0 if careless else 1)
        votes.add(rater, next(number), check, 1 if careless else 0)
    return votes


def test_the_table_leaves_out_who_missed_attention_checks(voted):
    shown = results(voted.file)
    assert "motion quality" in shown
    assert "text alignment" not in shown  # of which only the attention check was
    ours, *others = (line.split() for line in shown.splitlines()[1:4])
    assert ours == ["ours", "100.00%", "82.41%", "to", "100.00%", "18", "of", "18"]
    assert {line[0]: line[1] for line in others} == {"no-grid": "0.00%", "no-tv": "0.00%"}
    assert shown.count("left out: missed attention checks") == 1
    assert "10 raters voted, 1 left out" in shown


def test_missed_checks_can_be_allowed(voted):
    assert "18 of 20" in results(voted.file, misses=1)


def test_json_has_table_raters_and_votes(voted):
    document = json.loads(results(voted.file, form="json"))
    (motion,) = document["table"]
    assert sum(share["votes"] for share in motion["shares"]) == 18
    assert motion["alpha"] == 1
    assert [rater["counted"] for rater in document["raters"]].count(False) == 1
    assert {(rater["counted"], rater["agreement"]) for rater in document["raters"]} == {(True, 1), (False, 0)}
    assert len(document["votes"]) == 30


def test_csv_has_every_vote(voted):
    rows = list(csv.DictReader(results(voted.file, form="csv").splitlines()))
    assert len(rows) == 30
    assert rows[0]["prompt"] == "a cat, waving"
    assert {row["choice"] for row in rows if row["question"] == "motion"} == {"ours", "no-tv"}
    assert {row["shown"] for row in rows if row["question"] == "motion"} == {"no-tv ours no-grid"}


def test_a_variant_is_counted_where_it_was_shown(voted):
    votes = [vote for vote in voted.all() if vote.question == "motion"]
    half = [vote if vote.number else vote._replace(shown=vote.shown[:2]) for vote in votes]
    assert {share.variant: share.of for share in tally(half)[0].shares} == {"ours": 20, "no-tv": 20, "no-grid": 10}


def test_no_votes_yet(tmp_path):
    Votes(tmp_path / "votes.db", create=True)
    assert "0 raters voted" in results(tmp_path / "votes.db")
