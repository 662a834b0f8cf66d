"""Pairs of images with statements, one or many."""

import pytest

from triptych.core.errors import DataError
from triptych.serving.inputs import pair_up


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (("a", "b", "s"), (["a"], ["b"], ["s"], True)),
        (("a", "b", ["s", "t"]), (["a", "a"], ["b", "b"], ["s", "t"], False)),
        ((["a", "c"], ["b", "d"], "s"), (["a", "c"], ["b", "d"], ["s", "s"], False)),
        ((["a", "c"], ["b", "d"], ["s", "t"]), (["a", "c"], ["b", "d"], ["s", "t"], False)),
        (([], [], []), ([], [], [], False)),
    ],
)
def test_pairs_and_statements_come_to_one_length(given, expected):
    assert pair_up(*given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((["a", "b"], "c", "s"), "2 first images and 1 second ones"),
        ((["a", "b"], ["c", "d"], ["s", "t", "u"]), "2 images and 3 statements"),
    ],
)
def test_lists_that_do_not_fit(given, message):
    with pytest.raises(DataError, match=message):
        pair_up(*given)
