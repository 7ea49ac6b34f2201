import numba
import numpy as np
import pytest

from dream4d.ops.threads import compiled, spread


def add_one(first, last, values):
    values[first:last] += 1


@pytest.mark.parametrize("items", [0, 1, 7, 1000])
def test_each_item_is_visited_once(items):
    values = np.zeros(items)
    spread(add_one, items, 7, values)
    assert (values == 1).all()


def test_errors_of_a_kernel_arrive():
    def broken(first, last):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        spread(broken, 10, 1)


def test_without_a_writable_folder_kernels_are_compiled_but_not_cached(monkeypatch):
    njit = numba.njit

    def homeless(function, *, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(function, **options)

    monkeypatch.setattr(numba, "njit", homeless)
    values = np.zeros(5)
    compiled(fastmath=False)(add_one)(0, 5, values)
    assert (values == 1).all()


