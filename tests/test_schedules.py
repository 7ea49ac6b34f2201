import pytest

from dream4d.schedules import Constant, Interval, Levels, Linear, Milestones, Stairs, Switch


@pytest.mark.parametrize(("schedule", "values"), [
    (Constant(3), {0: 3, 99: 3}),
    (Linear(0.98, 0.5, steps=8000), {0: 0.98, 4000: 0.74, 8000: 0.5, 9999: 0.5}),
    (Switch(64, 256, at=5000), {0: 64, 4999: 64, 5000: 256}),
    (Stairs((64, 128, 256), at=(200, 300)), {0: 64, 199: 64, 200: 128, 299: 128, 300: 256}),
    (Levels(4, every=500, most=12), {0: 4, 499: 4, 500: 5, 3999: 11, 4000: 12, 9999: 12}),
    (Milestones(1e-3, at=(8000, 9000)), {0: 1e-3, 7999: 1e-3, 8000: 5e-4, 9000: 2.5e-4}),
])
def test_values(schedule, values):
    assert {step: schedule(step) for step in values} == pytest.approx(values)


def test_whole_numbers_stay_whole():
    assert isinstance(Switch(64, 256, at=1)(1), int)
    assert isinstance(Levels(4, every=1, most=5)(9), int)


def test_interval_gives_both_ends():
    assert Interval(Constant(0.2), Linear(0.6, 0.4, steps=2))(1) == pytest.approx((0.2, 0.5))


def test_schedules_are_values():
    assert Linear(1, 0, 10) == Linear(1, 0, 10)
    assert len({Constant(1), Constant(1)}) == 1
