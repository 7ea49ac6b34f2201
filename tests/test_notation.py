import pytest

from dream4d.notation import format_schedule, parse_schedule
from dream4d.schedules import Constant, Interval, Levels, Linear, Milestones, Stairs, Switch

SCHEDULES = [
    Constant(64), Constant(0.5), Switch(64, 256, at=5000), Stairs((64, 128, 256), at=(200, 300)),
    Linear(0.98, 0.02, steps=8000),
    Levels(4, every=500, most=12), Milestones(0.001, at=(8000, 9000)), Milestones(0.001, at=()),
    Interval(Constant(0.2), Switch(0.95, 0.6, at=133)),
    Interval(Linear(0.98, 0.02, steps=8000), Linear(0.98, 0.5, steps=8000)),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=format_schedule)
def test_notation_reads_what_it_wrote(schedule):
    assert parse_schedule(format_schedule(schedule)) == schedule


@pytest.mark.parametrize("text", [
    "", "a", "1 2", "64 until x then 256", "1 until 5 then 2 until 3 then 4", "1 until 5 then 2 until", "0.1 ..",
    "1 to 2 over",
])
def test_other_text_is_refused_with_the_forms(text):
    with pytest.raises(ValueError, match="64 until 5000 then 256"):
        parse_schedule(text)


def test_whole_numbers_stay_whole():
    assert isinstance(parse_schedule("64 until 5 then 128")(9), int)
