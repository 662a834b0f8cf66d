"""The table of families: each knows its own released files and no other's."""

import gzip
import json
from pathlib import Path

import pytest

from triptych.models.families import CONVERTERS, FAMILIES, recognised_families

KEYS = Path(__file__).parents[1] / "data" / "keys"
LISTS = sorted(path for path in KEYS.glob("*.json.gz") if path.name.split("_")[0] in CONVERTERS)


def test_every_vision_language_family_can_be_converted():
    assert {"mplug", "vlmo", "flava"} <= set(CONVERTERS) <= set(FAMILIES)


@pytest.mark.parametrize("path", LISTS, ids=lambda p: p.name.removesuffix(".json.gz"))
def test_released_names_are_known_as_one_family_s(path):
    names = json.loads(gzip.decompress(path.read_bytes()))
    family = path.name.split("_")[0]
    assert recognised_families(names) == [family]


@pytest.mark.parametrize("family", list(CONVERTERS))
def test_what_every_converter_says(family):
    converter = CONVERTERS.get(family)
    assert converter.family == family
    assert "arXiv" in converter.source
    assert all(0 < m < 1 for m in (*converter.mean, *converter.std))
    assert not converter.recognises(["layer1.0.conv1.weight", "bert.embeddings.LayerNorm.weight"])
