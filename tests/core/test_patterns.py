"""Patterns over dotted names."""

import pytest

from triptych.core.errors import ConfigError
from triptych.core.patterns import is_factor, name_matches, select_names

NAMES = [
    "text_encoder.blocks.1.attention.qkv",
    "text_encoder.blocks.10.attention.qkv",
    "fusion.blocks.0.mlp.up",
    "itm_head",
]


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("text_encoder", {0, 1}),
        ("attention.qkv", {0, 1}),
        ("blocks.1", {0}),
        ("blocks", {0, 1, 2}),
        ("fusion.*.up", {2}),
        ("*head", {3}),
        ("blocks.?.mlp", {2}),
        ("*", {0, 1, 2, 3}),
        ("qk", set()),
        ("", set()),
        ("text_encoder.attention", set()),
    ],
)
def test_a_pattern_covers_whole_parts_of_a_name(pattern, matched):
    assert {i for i, name in enumerate(NAMES) if name_matches(pattern, name)} == matched


def test_names_come_in_their_order_and_once():
    found = select_names(("itm_head", "blocks", "qkv"), NAMES, field="freeze", what="layer")
    assert found == NAMES


def test_an_unmatched_pattern_lists_near_names():
    with pytest.raises(ConfigError) as error:
        select_names(("atention.qvk",), NAMES, field="lora.targets", what="linear layer")
    assert "lora.targets: 'atention.qvk' matches no linear layer" in str(error.value)
    assert "attention.qkv" in str(error.value)
    with pytest.raises(ConfigError, match="its parts are text_encoder, fusion, itm_head"):
        select_names(("zzz",), NAMES, field="freeze", what="layer")


def test_factors_are_told_by_their_last_part():
    assert is_factor("model.a.lora_A") and is_factor("lora_B")
    assert not is_factor("model.lora_A.weight") and not is_factor("model.a.weight")
