"""Table 1 of the paper as numbers: means of variants, differences from ours, wins, and whether each claim shows.

Every interval is over sentences: seeds of one sentence are averaged first, since they are not independent.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dream4d.evaluate.ablate import OURS
from dream4d.evaluate.metrics import interval
from dream4d.evaluate.runs import METRICS
from dream4d.evaluate.study.design import PAPER
from dream4d.evaluate.study.results import wilson
from dream4d.files import atomic

Values = Mapping[str, Mapping[tuple[str, int], Mapping[str, float]]]
"""variant -> (prompt, seed) -> metrics"""


class Claim(NamedTuple):
    """Ours has more (sign 1) or less (-1) of a metric than a variant. text: what the paper says."""

    text: str
    metric: str
    sign: int
    other: str


CLAIMS = (
    Claim("the image prior brings what the sentence says (Table 1a)", "aligned", 1, "no-2d"),
    Claim("the multi-view prior keeps it one object (Table 1c)", "azimuth_error", -1, "no-3d"),
    Claim("a deformation keeps it one object, a HexPlane does not (Table 1c)", "azimuth_error", -1, "hexplane"),
    Claim("total variation makes motion smooth (Table 1b)", "jitter", -1, "no-tv"),
    Claim("the feature grid finds local motion (Table 1b)", "motion_agreement", 1, "no-grid"),
    Claim("the static scene is preserved, by a HexPlane it is not (Fig. 5)", "rest_psnr", 1, "hexplane"),
)
WINS = {"text": ("aligned", 1), "motion": ("motion_agreement", 1), "visual": ("azimuth_error", -1)}
"""By which metric a question of the paper's study is answered here, and whether more (1) or less (-1) is better."""


@dataclass(frozen=True)
class Row:
    """variant: "ours", "no-2d" ... for means, "no-2d - ours" for differences. low, high: 95 % interval of the mean. n:
    runs, or pairs of runs."""

    metric: str
    variant: str
    mean: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Win:
    """Sentences and seeds at which a variant is the best of those that a question compares; equals share them. low,
    high: 95 % Wilson interval of the share."""

    question: str
    variant: str
    share: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Verdict:
    """Whether a claim shows. apart: the intervals of both means do not overlap. difference: ours - other, paired."""

    claim: Claim
    ours: Row
    other: Row
    difference: Row

    @property
    def apart(self) -> bool:
        low, high = (self.other, self.ours) if self.claim.sign > 0 else (self.ours, self.other)
        return low.high < high.low

    @property
    def sure(self) -> bool:
        """The interval of the paired difference is on the right side of 0."""
        return self.claim.sign * (self.difference.low if self.claim.sign > 0 else self.difference.high) > 0

    @property
    def word(self) -> str:
        if self.apart:
            return "shown"
        if self.sure:
            return "shown, sentence by sentence"
        return "not shown" if self.claim.sign * self.difference.mean > 0 else "contradicted"


def means(values: Values) -> list[Row]:
    """A row for each metric and variant that has it."""
    rows = []
    for metric in METRICS:
        for variant, by_case in values.items():
            found = {case: numbers[metric] for case, numbers in by_case.items() if metric in numbers}
            rows += [_row(metric, variant, found)] if found else []
    return rows


def difference(values: Values, metric: str, one: str, other: str) -> Row | None:
    """Of runs with one sentence and seed; None where there are none."""
    a, b = values.get(one, {}), values.get(other, {})
    found = {
        case: a[case][metric] - b[case][metric]
        for case in a if case in b and metric in a[case] and metric in b[case]
    }  # fmt: skip
    return _row(metric, f"{one} - {other}", found) if found else None


def differences(values: Values) -> list[Row]:
    """Of each variant from ours, by each metric."""
    rows = [difference(values, metric, variant, OURS) for metric in METRICS for variant in values if variant != OURS]
    return [row for row in rows if row is not None]


def wins(values: Values) -> list[Win]:
    """The paper's questions, of which each case is one vote."""
    rows = []
    for question, compared in PAPER.items():
        metric, sign = WINS[question]
        there = [variant for variant in compared if variant in values]
        cases = [
            case for case in values.get(OURS, {})
            if len(there) > 1 and all(metric in values[variant].get(case, {}) for variant in there)
        ]  # fmt: skip
        votes: dict[str, float] = defaultdict(float)
        for case in cases:
            scores = {variant: sign * values[variant][case][metric] for variant in there}
            best = [variant for variant in there if scores[variant] == max(scores.values())]
            for variant in best:
                votes[variant] += 1 / len(best)
        n = len(cases)
        rows += [
            Win(question, variant, votes[variant] / n, *wilson(votes[variant], n), n) for variant in there if cases
        ]
    return rows


def verdicts(values: Values) -> list[Verdict]:
    """Of the claims for which there are runs of both sides."""
    by_name = {(row.metric, row.variant): row for row in means(values)}
    found = []
    for claim in CLAIMS:
        between = difference(values, claim.metric, OURS, claim.other)
        if between is not None:
            ours, other = by_name[claim.metric, OURS], by_name[claim.metric, claim.other]
            found.append(Verdict(claim, ours, other, between))
    return found


def document(values: Values) -> dict[str, Any]:
    """All of it as plain values. ``rows`` has what ``benchmarks/results/table1.json`` is read for."""
    return {
        "rows": [asdict(row) for row in [*means(values), *differences(values)]],
        "wins": [asdict(win) for win in wins(values)],
        "claims": [
            {"claim": each.claim.text, "metric": each.claim.metric, "other": each.claim.other, "verdict": each.word,
             "ours": each.ours.mean, "theirs": each.other.mean, "difference": asdict(each.difference)}
            for each in verdicts(values)
        ],
    }  # fmt: skip


def write(values: Values, folder: str | Path) -> tuple[Path, Path]:
    """`document` as table1.json and `tables` as table1.md in the folder."""
    texts = {"table1.json": json.dumps(document(values), indent=1, allow_nan=False), "table1.md": tables(values)}
    for name, text in texts.items():
        with atomic(Path(folder) / name) as file:
            file.write_text(text + "\n", encoding="utf-8")
    return Path(folder) / "table1.json", Path(folder) / "table1.md"


def tables(values: Values) -> str:
    """For people, in Markdown."""
    variants = list(values)
    rows = {(row.metric, row.variant): row for row in means(values)}
    metrics = [metric for metric in METRICS if any(key[0] == metric for key in rows)]
    runs = ", ".join(f"{variant} {len(by_case)}" for variant, by_case in values.items())
    lines = [f"Means and 95 % intervals over sentences (runs: {runs}):", ""]
    lines += _markdown(["", *variants], [
        [f"{metric}{f' ({unit})' if (unit := METRICS[metric].unit) else ''}",
         *(_number(rows.get((metric, variant)), METRICS[metric].digits) for variant in variants)]
        for metric in metrics
    ])  # fmt: skip
    lines += ["", "The paper's questions, answered by a number in place of people (wins, 95 % Wilson interval):", ""]
    lines += _markdown(["question", "by", "variant", "wins", "of"], [
        [win.question, WINS[win.question][0], win.variant,
         f"{win.share:.1%} ({win.low:.0%} to {win.high:.0%})", str(win.n)]
        for win in wins(values)
    ])  # fmt: skip
    lines += ["", "The paper's claims:", ""]
    lines += _markdown(["claim", "by", "ours", "other", "difference", "verdict"], [
        [each.claim.text, each.claim.metric, _number(each.ours, METRICS[each.claim.metric].digits),
         f"{each.claim.other}: {_number(each.other, METRICS[each.claim.metric].digits)}",
         _number(each.difference, METRICS[each.claim.metric].digits), each.word]
        for each in verdicts(values)
    ])  # fmt: skip
    return "\n".join(lines)


def _row(metric: str, variant: str, by_case: Mapping[tuple[str, int], float]) -> Row:
    by_prompt: dict[str, list[float]] = defaultdict(list)
    for (prompt, _), value in by_case.items():
        by_prompt[prompt].append(value)
    mean, low, high = interval([sum(each) / len(each) for each in by_prompt.values()])
    return Row(metric, variant, mean, low, high, len(by_case))


def _number(row: Row | None, digits: int) -> str:
    return "" if row is None else f"{row.mean:.{digits}f} ({row.low:.{digits}f} to {row.high:.{digits}f})"


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *rows)]
