"""State apart and together: exact values, tied tensors once, clear refusals."""

import json

import pytest
import torch

from triptych.checkpoint.nested import join_tensors, split_tensors
from triptych.core.errors import CheckpointError


def _round_trip(state):
    skeleton, tensors = split_tensors(state)
    return join_tensors(json.loads(json.dumps(skeleton)), lambda key, place: tensors[key])


def test_tensors_come_back_where_they_stood():
    tensor = torch.arange(12).reshape(3, 4)
    back = _round_trip({"a": {"b": [tensor.t(), tensor[1:, 1], tensor.new_zeros(())]}})["a"]["b"]
    assert torch.equal(back[0], tensor.t())
    assert torch.equal(back[1], tensor[1:, 1])
    assert back[2].shape == ()


def test_plain_values_come_back_and_tuples_become_lists():
    state = {"f": 0.1 + 0.2, "n": None, "t": (1, "x", True), "empty": {}}
    assert _round_trip(state) == {"f": 0.1 + 0.2, "n": None, "t": [1, "x", True], "empty": {}}


def test_a_tied_tensor_is_listed_once_and_other_views_apart():
    weight = torch.arange(6.0).reshape(2, 3)
    skeleton, tensors = split_tensors({"a": weight, "tied": [weight], "flat": weight.view(-1)})
    assert skeleton["a"] == skeleton["tied"][0]
    assert sorted(tensors) == ["/a", "/flat"]
    asked = []
    join_tensors(skeleton, lambda key, place: asked.append((key, place)))
    assert asked == [("/a", "/a"), ("/a", "/tied/0"), ("/flat", "/flat")]


@pytest.mark.parametrize(
    ("state", "named"), [({"a": {"b": object()}}, "/a/b"), ({"a": {3: 1}}, "/a: key 3")]
)
def test_what_json_cannot_hold_is_refused_by_path(state, named):
    with pytest.raises(CheckpointError, match=named):
        split_tensors(state)
