"""What the votes say: Table 1 of the paper with intervals, how far raters agree, and the votes themselves."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from pathlib import Path

from dream4d.evaluate.study.design import QUESTIONS
from dream4d.evaluate.study.votes import Vote, Votes


@dataclass(frozen=True)
class Share:
    """Votes that a variant got of those that it could get; low, high: the 95 % Wilson interval of the share."""

    variant: str
    votes: int
    of: int
    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Answers:
    """A question's row of Table 1. alpha: Krippendorff's, 1 is full agreement and 0 is chance; None where no case has
    two votes."""

    question: str
    metric: str
    raters: int
    alpha: float | None
    shares: tuple[Share, ...]


@dataclass(frozen=True)
class Rater:
    """asked, answered: trials, attention checks among them. checks, missed: attention checks answered, and wrongly.
    counted: whether the votes are in the table. agreement: share of the counted votes of others on the same cases that
    are the same; None where there are none."""

    rater: str
    asked: int
    answered: int
    checks: int
    missed: int
    counted: bool
    agreement: float | None


def results(file: str | Path, *, misses: int = 0, form: str = "table") -> str:
    """The result of the votes in `file`.

    misses: attention checks that a rater may miss; who missed more is left out of the table. form: `table` to read,
    `json` (table, raters and votes) or `csv` (a line for each vote, of everyone).

    Raises ValueError where there is no such file.
    """
    votes = Votes(file)
    cast = votes.all()
    if form == "csv":
        return _csv(cast)
    raters = judge_raters(cast, votes.raters(), misses)
    counted = {rater.rater for rater in raters if rater.counted}
    answers = tally(vote for vote in cast if vote.rater in counted)
    if form == "json":
        lines = {"table": [asdict(answer) for answer in answers], "raters": [asdict(rater) for rater in raters],
                 "votes": [vote._asdict() for vote in cast]}  # fmt: skip
        return json.dumps(lines, indent=2, ensure_ascii=False)
    return _table(answers, raters)


def tally(votes: Iterable[Vote]) -> list[Answers]:
    """Table 1: shares of `votes` by question, attention checks aside.

    A variant's votes are counted against those on screens that showed it.
    """
    real = [vote for vote in votes if vote.passed is None]
    answers = []
    for question in (name for name in QUESTIONS if any(vote.question == name for vote in real)):
        here = [vote for vote in real if vote.question == question]
        chosen, shown = Counter(vote.choice for vote in here), Counter(name for vote in here for name in vote.shown)
        shares = tuple(
            Share(variant, chosen[variant], of, chosen[variant] / of, *wilson(chosen[variant], of))
            for variant, of in sorted(shown.items(), key=lambda item: (-chosen[item[0]] / item[1], item[0]))
        )
        alpha = krippendorff([[vote.choice for vote in unit] for unit in _by_case(here).values()])
        answers.append(Answers(question, QUESTIONS[question].metric, len({v.rater for v in here}), alpha, shares))
    return answers


def judge_raters(votes: Sequence[Vote], asked: Mapping[str, int], misses: int) -> list[Rater]:
    """Those who voted. asked: rater -> trials in all. misses: as in `results`."""
    own = defaultdict(list)
    for vote in votes:
        own[vote.rater].append(vote)
    missed = Counter(vote.rater for vote in votes if vote.passed is False)
    cases = _by_case(vote for vote in votes if vote.passed is None and missed[vote.rater] <= misses)
    raters = []
    for rater in (name for name in asked if own[name]):
        checks = sum(vote.passed is not None for vote in own[rater])
        same = [vote.choice == other.choice for vote in own[rater] if vote.passed is None
                for other in cases.get(_case(vote), ()) if other.rater != rater]  # fmt: skip
        agreement = sum(same) / len(same) if same else None
        counted = missed[rater] <= misses
        raters.append(Rater(rater, asked[rater], len(own[rater]), checks, missed[rater], counted, agreement))
    return raters


def wilson(hits: float, of: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), which holds for small numbers and for shares near 0 and 1."""
    z = 1.959963984540054  # 97.5 % of a normal distribution is below
    share, spread = hits / of, z * z / of
    middle = share + spread / 2
    half = z * sqrt(share * (1 - share) / of + spread / (4 * of))
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def krippendorff(units: Iterable[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for names: 1 - observed / expected disagreement. units: the choices of all raters on a case.

    None where no case has two choices. 1 where everyone chose the same throughout.
    """
    paired = [unit for unit in units if len(unit) > 1]
    count = sum(map(len, paired))
    if not count:
        return None
    observed = sum(_unlike_pairs(unit) / (len(unit) - 1) for unit in paired) / count
    expected = _unlike_pairs([choice for unit in paired for choice in unit]) / (count * (count - 1))
    return 1 - observed / expected if expected else 1.0


def _unlike_pairs(choices: Sequence[str]) -> int:
    """Ordered pairs of different choices."""
    return len(choices) ** 2 - sum(count**2 for count in Counter(choices).values())


def _case(vote: Vote) -> tuple[str, str, int]:
    return vote.question, vote.prompt, vote.seed


def _by_case(votes: Iterable[Vote]) -> dict[tuple[str, str, int], list[Vote]]:
    cases = defaultdict(list)
    for vote in votes:
        cases[_case(vote)].append(vote)
    return cases


def _table(answers: Sequence[Answers], raters: Sequence[Rater]) -> str:
    lines = []
    for answer in answers:
        total = sum(share.votes for share in answer.shares)
        alpha = "" if answer.alpha is None else f", agreement (Krippendorff's alpha) {answer.alpha:.2f}"
        lines += [answer.metric, *(
            f"  {each.variant:16}{each.share:7.2%}   {each.low:7.2%} to {each.high:7.2%}   {each.votes} of {each.of}"
            for each in answer.shares
        ), f"  {_count(total, 'vote')} of {_count(answer.raters, 'rater')}{alpha}", ""]  # fmt: skip
    lines.append(f"{'rater':14}{'answered':>10}{'checks passed':>15}{'agreement':>11}")
    for rater in raters:
        agreement = "-" if rater.agreement is None else f"{rater.agreement:.0%}"
        lines.append(
            f"{rater.rater:14}{f'{rater.answered} of {rater.asked}':>10}"
            f"{f'{rater.checks - rater.missed} of {rater.checks}':>15}{agreement:>11}"
            f"{'' if rater.counted else '   left out: missed attention checks'}"
        )
    out = sum(not rater.counted for rater in raters)
    unfinished = sum(rater.answered < rater.asked for rater in raters)
    lines += ["", f"Shares with 95 % Wilson intervals. {_count(len(raters), 'rater')} voted, {out} left out for missed "
              f"attention checks, {unfinished} not finished (their votes count)."]  # fmt: skip
    return "\n".join(lines)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _csv(votes: Sequence[Vote]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Vote._fields)
    writer.writerows(vote._replace(shown=" ".join(vote.shown)) for vote in votes)  # type: ignore[arg-type]
    return text.getvalue().rstrip("\n")
