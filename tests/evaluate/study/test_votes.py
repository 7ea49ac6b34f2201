from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest

from dream4d.evaluate.study.design import read_study
from dream4d.evaluate.study.votes import ConflictError, Votes, code


@pytest.fixture
def votes(tmp_path):
    return Votes(tmp_path / "votes.db", create=True)


@pytest.fixture
def trials(runs):
    return read_study(runs).trials("someone")


def test_a_vote_is_stored_once_and_stands(votes, trials):
    secret = votes.add_rater(len(trials))
    rater = code(secret)
    assert votes.knows(rater)
    votes.add(rater, 0, trials[0], 1)
    votes.add(rater, 0, trials[0], 1)
    with pytest.raises(ConflictError, match="answered already"):
        votes.add(rater, 0, trials[0], 0)
    with pytest.raises(ConflictError, match="not been asked"):
        votes.add(rater, 2, trials[2], 0)
    (vote,) = Votes(votes.file).all()
    assert (vote.rater, vote.number, vote.place) == (rater, 0, 1)
    assert vote.choice == vote.shown[1] == trials[0].videos[1].variant
    assert secret.encode() not in votes.file.read_bytes()


def test_attention_checks_are_judged(votes, trials):
    rater = code(votes.add_rater(2))
    check = next(trial for trial in trials if trial.right is not None)
    votes.add(rater, 0, check, check.right)
    votes.add(rater, 1, check, 1 - check.right)
    assert [vote.passed for vote in votes.all()] == [True, False]


def test_one_of_many_votes_at_once_wins(votes, trials):
    rater = code(votes.add_rater(len(trials)))
    together = Barrier(8)

    def vote(place):
        together.wait()
        try:
            votes.add(rater, 0, trials[0], place % 2)
        except ConflictError:
            return None
        return place % 2

    with ThreadPoolExecutor(8) as pool:
        accepted = set(pool.map(vote, range(8))) - {None}
    assert [vote.place for vote in votes.all()] == list(accepted)


def test_raters_at_once_lose_nothing(votes, trials):
    def everything(_):
        rater = code(votes.add_rater(len(trials)))
        for number, trial in enumerate(trials):
            votes.add(rater, number, trial, 0)
        return rater

    with ThreadPoolExecutor(4) as pool:
        raters = list(pool.map(everything, range(4)))
    assert {(vote.rater, vote.number) for vote in votes.all()} == {(r, n) for r in raters for n in range(len(trials))}


def test_a_rater_is_forgotten(votes, trials):
    kept, gone = code(votes.add_rater(1)), code(votes.add_rater(1))
    for rater in (kept, gone):
        votes.add(rater, 0, trials[0], 0)
    assert votes.forget(gone) == 1
    assert [vote.rater for vote in votes.all()] == list(votes.raters()) == [kept]
    with pytest.raises(ValueError, match=f"there is no rater '{gone}'"):
        votes.forget(gone)


def test_votes_belong_to_one_study(votes):
    votes.belong_to("one")
    Votes(votes.file).belong_to("one")
    with pytest.raises(ValueError, match="has votes on other videos or questions"):
        votes.belong_to("another")


def test_files_that_are_no_votes(tmp_path):
    with pytest.raises(ValueError, match="there are no votes in"):
        Votes(tmp_path / "absent.db")
    (tmp_path / "thesis.txt").write_text("All of it is about cats. " * 99)
    with pytest.raises(ValueError, match=r"cannot keep votes in .*choose another --votes"):
        Votes(tmp_path / "thesis.txt")
    with pytest.raises(ValueError, match="cannot keep votes in"):
        Votes(tmp_path / "absent" / "votes.db", create=True)
