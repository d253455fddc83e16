"""Which examples are held out."""

import pytest
from hypothesis import given, strategies as st

from diffkit.basics.data.splits import check_held_out, divide
from diffkit.errors import DataError

KEYS = st.lists(st.text(), min_size=3, max_size=60, unique=True)


@given(keys=KEYS, amount=st.integers(1, 2) | st.floats(0.01, 0.5))
def test_parts_are_disjoint_and_complete(keys, amount):
    try:
        train, held_out = divide(keys, amount)
    except DataError:
        return  # a fraction may by chance hold out all of very few
    assert sorted(train + held_out) == list(range(len(keys)))
    assert train == sorted(train)
    assert held_out == sorted(held_out)
    assert len(held_out) == amount if isinstance(amount, int) else len(held_out) >= 1


@given(keys=KEYS, data=st.data())
def test_more_examples_move_none_to_the_other_part(keys, data):
    """Otherwise a picture that was held out would be trained on after the folder grew."""
    extra = [f"new {i}" for i in range(5)]
    order = data.draw(st.permutations(keys + [key for key in extra if key not in keys]))
    try:
        before, after = divide(keys, 0.3), divide(order, 0.3)
    except DataError:
        return
    held_before, held_after = {keys[i] for i in before[1]}, {order[i] for i in after[1]}
    if len(held_before) > 1:  # one alone may be the substitute for none
        assert held_before == held_after & set(keys)


def test_a_fraction_is_met_on_average():
    held_out = divide([str(i) for i in range(10_000)], 0.1)[1]
    assert len(held_out) == pytest.approx(1000, abs=100)


def test_groups_get_equal_shares():
    groups = [0] * 60 + [1] * 30 + [2] * 10
    held_out = divide([str(i) for i in range(100)], 10, groups)[1]
    assert [sum(groups[i] == k for i in held_out) for k in range(3)] == [6, 3, 1]


def test_groups_with_the_largest_remainder_get_one_more():
    """5 of 18 are 1.94, 1.67 and 1.39 of groups of 7, 6 and 5."""
    groups = [0] * 7 + [1] * 6 + [2] * 5
    held_out = divide([str(i) for i in range(18)], 5, groups)[1]
    assert [sum(groups[i] == k for i in held_out) for k in range(3)] == [2, 2, 1]


@pytest.mark.parametrize("amount", [0, -1, 0.0, 1.0, 1.5, float("nan")])
def test_amounts_that_make_no_sense_are_refused(amount):
    with pytest.raises(ValueError, match="held_out"):
        check_held_out(amount)


def test_nothing_left_to_train():
    with pytest.raises(DataError) as raised:
        divide(["a", "b"], 2)
    assert raised.value.code == "DK304"
