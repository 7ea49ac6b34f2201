import itertools
from collections import Counter

import pytest

from dream4d.toyworld.grammar import (
    COLOURS,
    KINDS,
    MOTIONS,
    NAMES,
    PROPS,
    VIEWS,
    Combination,
    evaluation_combinations,
    held_out,
    name_in,
    parse,
    sentence,
    unknown_words,
)


def test_a_sentence_says_its_combination():
    combination = Combination("cat", "red", "top hat", "waving")
    assert sentence(combination) == "a red cat wearing a top hat is waving"


def test_parse_reads_what_sentence_wrote():
    every = itertools.product((None, *KINDS), (None, *COLOURS), (None, *PROPS), (None, *MOTIONS))
    for combination in itertools.starmap(Combination, every):
        text = sentence(combination)
        assert parse(text) == combination, text
        assert unknown_words(text) == [], text


@pytest.mark.parametrize("view", VIEWS)
def test_view_words_change_nothing(view):
    text = "a blue frog riding a skateboard is bowing"
    assert parse(f"{text}, {view}") == parse(text)
    assert unknown_words(f"{text}, {view}") == []


def test_order_and_case_do_not_matter():
    assert parse("Jumping: a BEAR, with cape, green!") == Combination("bear", "green", "cape", "jumping")


def test_the_first_mention_counts():
    assert parse("a red cat and a blue dog") == Combination("cat", "red", None, None)


def test_unknown_words_come_in_order_and_once():
    assert unknown_words("A corgi eats a red cat, the corgi barks") == ["corgi", "eats", "barks"]


def test_a_name_stands_before_the_kind():
    assert sentence(Combination("elephant", None, None), "sks") == "a sks elephant"
    assert sentence(Combination("cat", "orange", None, "waving"), "vex") == "an orange vex cat is waving"
    assert name_in("an orange Vex cat is waving") == "vex"
    assert name_in("a bob toy") == "bob"
    assert name_in("a huge red cat") is name_in("a red cat yodels") is name_in("a red cat") is None
    assert not {"sks", *KINDS, *COLOURS} & set(NAMES), "sks is to be new to the priors"


def test_held_out_is_a_tenth_without_repeats():
    unseen = held_out()
    every = set(itertools.product(KINDS, COLOURS, PROPS))
    assert len(unseen) == len(set(unseen)) == round(len(every) / 10)
    assert set(unseen) <= every


def test_training_still_shows_every_attribute_and_most_pairs():
    seen = set(itertools.product(KINDS, COLOURS, PROPS)) - set(held_out())
    for axis, names in enumerate((KINDS, COLOURS, PROPS)):
        count = Counter(triple[axis] for triple in seen)
        share = len(KINDS) * len(COLOURS) * len(PROPS) / len(names)
        assert min(count[name] for name in names) > 0.75 * share
    for first, second in itertools.combinations(range(3), 2):
        names = (KINDS, COLOURS, PROPS)
        assert {(t[first], t[second]) for t in seen} == set(itertools.product(names[first], names[second]))


def test_evaluation_uses_held_out_combinations_only():
    chosen = evaluation_combinations(20)
    assert len(set(chosen)) == 20
    assert {(c.kind, c.colour, c.prop) for c in chosen} <= set(held_out())
    assert {c.motion for c in chosen} == set(MOTIONS)
    assert {c.kind for c in chosen} == set(KINDS)
