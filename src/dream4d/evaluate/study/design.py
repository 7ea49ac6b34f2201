"""What is asked: which variants are compared by which question, and what each rater sees, in which order.

A study is made from a folder with one folder for each variant and that one's runs in it,
``<folder>/<variant>/<run>/{config.yaml,video.mp4}``. Runs of one prompt and seed are compared with each other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import NamedTuple, TypeVar

from dream4d.presets import suggest
from dream4d.run import read_config

T = TypeVar("T")


class Question(NamedTuple):
    """metric: its name in Table 1. text: what a rater is asked. hint: what to look at."""

    metric: str
    text: str
    hint: str


QUESTIONS = {
    "text": Question(
        "text alignment", "Which video matches the text best?",
        "Is everything there that the text names, and does it do what the text says?",
    ),
    "motion": Question(
        "motion quality", "Which video has the best motion?",
        "Does it really move, in a natural way, without trembling or tearing?",
    ),
    "visual": Question(
        "visual quality & 3D consistency", "Which video has the best look and 3D shape?",
        "Is it clear and detailed, and one sound object from every side?",
    ),
}  # fmt: skip
"""The paper's three (supplement, Sec. 4), in other words."""

PAPER = {
    "text": ("ours", "no-2d"),
    "motion": ("ours", "no-grid", "no-tv"),
    "visual": ("ours", "no-3d", "hexplane"),
}
"""The variants that Table 1 compares by each question."""


class Case(NamedTuple):
    """What all variants were given."""

    prompt: str
    seed: int


class Video(NamedTuple):
    variant: str
    case: Case


@dataclass(frozen=True)
class Trial:
    """One screen: a question about a prompt, and the videos in the order of their places.

    right: in an attention check the place of the only video of that prompt, else None.
    """

    question: str
    case: Case
    videos: tuple[Video, ...]
    right: int | None = None


@dataclass(frozen=True)
class Study:
    """Everything that raters may see.

    comparisons: question -> its variants, the reference first. files: the video of each variant and case. prompts:
    cases that a rater sees by each question. checks: attention checks besides. notes: what is left out.
    """

    comparisons: Mapping[str, tuple[str, ...]]
    files: Mapping[Video, Path]
    prompts: int = 10
    checks: int = 3
    notes: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """Names the study: it changes with the questions, the design and any byte of a video."""
        asked = {name: [QUESTIONS[name].text, *variants] for name, variants in self.comparisons.items()}
        videos = [[*video.case, video.variant, _digest(self.files[video])] for video in self._shown()]
        return sha256(json.dumps([asked, videos, self.prompts, self.checks]).encode()).hexdigest()

    def cases(self, question: str) -> list[Case]:
        """Those of which every variant that `question` compares has a video."""
        return _common(self.files, self.comparisons[question])

    def trials(self, rater: str) -> list[Trial]:
        """What `rater` is asked, in order; the same for the same rater, whenever it is called.

        Each question is asked about up to `prompts` cases, drawn at random, and each variant is in each place equally
        often, to within one. Questions and attention checks are mixed.
        """
        random = Random(f"{self.fingerprint} {rater}")
        trials = self._attention_checks(random)
        for question, variants in self.comparisons.items():
            cases = _draw(random, self.cases(question), self.prompts)
            for case, order in zip(cases, _balanced_orders(random, variants, len(cases)), strict=True):
                trials.append(Trial(question, case, tuple(Video(variant, case) for variant in order)))
        random.shuffle(trials)
        return trials

    def _attention_checks(self, random: Random) -> list[Trial]:
        """The reference's video of a prompt beside its videos of others, those with the fewest words in common."""
        reference, *others = _checked(self.comparisons)
        cases = _common(self.files, _checked(self.comparisons))
        trials = []
        for case in _draw(random, cases, self.checks):
            foreign = [other for other in _draw(random, cases, len(cases)) if other.prompt != case.prompt]
            foreign = sorted(foreign, key=lambda other: len(_words(other) & _words(case)))[: len(others)]
            if foreign:
                order = _draw(random, [case, *foreign], 1 + len(foreign))
                videos = tuple(Video(reference, shown) for shown in order)
                trials.append(Trial("text", case, videos, right=order.index(case)))
        return trials

    def _shown(self) -> list[Video]:
        """The videos that some rater may see."""
        return sorted({
            Video(variant, case) for question, variants in self.comparisons.items()
            for case in self.cases(question) for variant in variants
        })  # fmt: skip


def read_study(
    folder: str | Path, *, questions: Sequence[str] = tuple(QUESTIONS), compare: Sequence[str] = (),
    prompts: int = 10, checks: int = 3,
) -> Study:
    """The study of the runs in `folder`.

    compare: comparisons such as "text=ours,no-2d" in place of the paper's, of which those variants are taken that are
    there. Raises ValueError for names that are not there, and where nothing can be compared.
    """
    if prompts < 1 or checks < 0:
        raise ValueError(f"prompts is {prompts} and checks {checks}, expected at least 1 and 0")
    files = find_videos(folder)
    variants = sorted({video.variant for video in files})
    wanted = dict(_comparison(text, variants) for text in compare)
    comparisons, notes = {}, []
    for question in dict.fromkeys(_known(name, QUESTIONS, "question") for name in questions):
        compared = wanted.get(question) or tuple(name for name in PAPER[question] if name in variants)
        cases = _common(files, compared) if len(compared) > 1 else []
        if not cases:
            names = ", ".join(wanted.get(question, PAPER[question]))
            notes.append(f"{question} is not asked: there are no two of {names} that share a prompt and seed")
            continue
        comparisons[question] = compared
        partial = {video.case for video in files if video.variant in compared} - set(cases)
        notes += [f'{question} is not asked about "{case.prompt}" (seed {case.seed}), which lacks a video of '
                  f"{', '.join(name for name in compared if Video(name, case) not in files)}"
                  for case in sorted(partial)]  # fmt: skip
    if not comparisons:
        raise ValueError(
            f"nothing can be compared in {folder}, which has {', '.join(variants)}: name variants that share prompts, "
            "e.g. --compare text=ours,no-2d"
        )
    if checks and len({case.prompt for case in _common(files, _checked(comparisons))}) < 2:
        notes.append("there is no attention check, which takes two prompts")
    return Study(comparisons, files, prompts, checks, tuple(notes))


def find_videos(folder: str | Path) -> dict[Video, Path]:
    """The videos of all finished runs below `folder`. Raises ValueError where there are none, or two for one place."""
    videos: dict[Video, Path] = {}
    for config in sorted(Path(folder).glob("*/*/config.yaml")):
        file = config.with_name("video.mp4")
        if not file.is_file():
            continue  # not finished
        video = Video(config.parent.parent.name, _case(config))
        if video in videos:
            raise ValueError(f"{videos[video].parent} and {file.parent} have the same prompt and seed: move one away")
        videos[video] = file
    if not videos:
        raise ValueError(f"there are no finished runs in {folder}: it needs VARIANT/RUN/config.yaml and video.mp4")
    return videos


def _case(config: Path) -> Case:
    values = read_config(config.parent)
    prompt, seed = values.get("prompt"), values.get("seed", 0)
    if not isinstance(prompt, str) or type(seed) is not int:
        raise ValueError(f"{config}: expected a prompt and a whole number as seed, not {prompt!r} and {seed!r}")
    return Case(prompt, seed)


def _comparison(text: str, variants: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """ "text=ours,no-2d" -> ("text", ("ours", "no-2d"))"""
    question, _, names = text.partition("=")
    compared = tuple(_known(name, variants, "variant") for name in names.split(","))
    if len(set(compared)) != len(compared) or len(compared) < 2:
        raise ValueError(f"--compare {text} needs two variants or more, each once")
    return _known(question, QUESTIONS, "question"), compared


def _known(name: str, names: Iterable[str], what: str) -> str:
    if name not in names:
        raise ValueError(f"there is no {what} {name!r}; {suggest(name, names)}")
    return name


def _checked(comparisons: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The variants among which an attention check hides: those of the text question, or of the first."""
    return comparisons.get("text") or next(iter(comparisons.values()))


def _common(files: Mapping[Video, Path], variants: Iterable[str]) -> list[Case]:
    """Cases of which all `variants` have a video."""
    return sorted(set.intersection(*({video.case for video in files if video.variant == name} for name in variants)))


def _draw(random: Random, values: Sequence[T], most: int) -> list[T]:
    """Up to `most` different ones, in random order."""
    return random.sample(values, min(most, len(values)))


def _balanced_orders(random: Random, variants: Sequence[str], count: int) -> list[list[str]]:
    """`count` orders, made of Latin squares: the rotations of random orders."""
    orders: list[list[str]] = []
    while len(orders) < count:
        first = _draw(random, variants, len(variants))
        orders += _draw(random, [first[turn:] + first[:turn] for turn in range(len(first))], len(first))
    return orders[:count]


def _digest(file: Path) -> str:
    return sha256(file.read_bytes()).hexdigest()


def _words(case: Case) -> set[str]:
    return set(case.prompt.lower().split())
