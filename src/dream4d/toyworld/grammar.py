"""Sentences of the toy world, and back: "a red cat wearing a top hat is waving"."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from importlib.resources import files

KINDS = ("cat", "dog", "rabbit", "bear", "elephant", "frog", "penguin")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
PROPS = {
    "top hat": "wearing a top hat",
    "scarf": "wearing a scarf",
    "cape": "wearing a cape",
    "balloon": "holding a balloon",
    "lollipop": "holding a lollipop",
    "skateboard": "riding a skateboard",
}
MOTIONS = ("jumping", "waving", "nodding", "walking", "dancing", "kicking", "bowing")
VIEWS = ("front view", "side view", "back view", "overhead view")
NAMES = (
    "zwx", "ohw", "qarb", "tams", "vex", "lum", "brik", "kod", "fip", "jun", "ygd", "neh", "sul", "wic", "doz", "erv",
)
"""Words that mean nothing. "A red vex cat" has markings of its own, which no word tells: whatever unknown word stands
before the kind, the priors expect a toy that is not like others."""
_ANY_KIND = "toy"
_FUNCTION_WORDS = ("a", "an", "the", "is", "and", "with", "on", "of", "wearing", "holding", "riding", _ANY_KIND)
_NO_PROP = "nothing"


@dataclass(frozen=True)
class Combination:
    """What a sentence says of a toy; None where it is silent (a toy has no prop, and stands still)."""

    kind: str | None
    colour: str | None
    prop: str | None
    motion: str | None = None


def sentence(combination: Combination, name: str | None = None) -> str:
    """The canonical sentence of a combination, as the priors were trained on it. name: a word for one marked toy."""
    words = [combination.colour, name, combination.kind or _ANY_KIND, PROPS.get(combination.prop or _NO_PROP)]
    motion = ["is", combination.motion] if combination.motion else []
    said = " ".join(word for word in [*words, *motion] if word)
    return f"{'an' if said[0] in 'aeiou' else 'a'} {said}"


def parse(text: str) -> Combination:
    """The combination that a sentence names, in whatever order; the first mention of each attribute counts."""
    words = _words(text)

    def first(known: tuple[str, ...]) -> str | None:
        return next((word for word in words if word in known), None)

    prop = next((prop for prop in PROPS if prop.split()[-1] in words), None)
    return Combination(first(KINDS), first(COLOURS), prop, first(MOTIONS))


def known_words() -> dict[str, list[str]]:
    """What the built-in priors know, by what it says."""
    return {"kinds": [*KINDS], "colours": [*COLOURS], "props": [*PROPS.values()], "motions": [*MOTIONS]}


def every_word() -> list[str]:
    """All words that the built-in priors' tokenizer has as one token, each once."""
    phrases = (*_FUNCTION_WORDS, *KINDS, *COLOURS, *PROPS, *MOTIONS, *VIEWS)
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def unknown_words(text: str) -> list[str]:
    """The words of a sentence that the built-in priors never saw, in order, each once."""
    known = every_word()
    return list(dict.fromkeys(word for word in _words(text) if word not in known))


def name_in(text: str) -> str | None:
    """The unknown word before the kind, which the built-in priors take for the name of a toy with its own markings."""
    words, unknown = _words(text), unknown_words(text)
    pairs = itertools.pairwise(words)
    return next((word for word, after in pairs if word in unknown and after in (*KINDS, _ANY_KIND)), None)


def held_out() -> list[tuple[str, str, str]]:
    """The (kind, colour, prop) combinations that no prior is trained on, with any motion: a tenth of all."""
    lines = files("dream4d.toyworld").joinpath("held_out.txt").read_text().splitlines()
    return [tuple(line.split(", ")) for line in lines if line and not line.startswith("#")]  # type: ignore[misc]


def evaluation_combinations(count: int = 20) -> list[Combination]:
    """`count` never-trained combinations, spread over the held-out list, their motions in turn."""
    unseen = held_out()
    chosen = [unseen[i * len(unseen) // count] for i in range(count)] if count <= len(unseen) else unseen
    return [Combination(*triple, motion) for triple, motion in zip(chosen, itertools.cycle(MOTIONS), strict=False)]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
