"""The contests of decoding and search: both sides give the same, on small sizes."""

import numpy as np
import pytest

from benchmarks.peers import CONTESTS
from benchmarks.speed import decode, peers_data


@pytest.fixture
def small(monkeypatch, tmp_path):
    kinds = [decode.Kind(name, 320, 300, 8, 1, 1) for name in ("a", "b")]
    monkeypatch.setattr(peers_data, "KINDS", kinds)
    monkeypatch.setattr(peers_data, "VECTORS", 50_000)
    monkeypatch.setattr(peers_data.tempfile, "mkdtemp", lambda **options: str(tmp_path))


@pytest.mark.parametrize("name", [n for n in CONTESTS if "decode" in n])
def test_both_sides_give_images_of_one_size(small, name):
    work = CONTESTS[name].work()
    ours, theirs = (next(iter(side.values()))() for side in (work.ours, work.peer))
    assert np.shape(ours) == np.shape(theirs) == (1, 256, 256, 3)
    if name == "decode_pillow":
        assert np.array_equal(ours, theirs)


def test_faiss_finds_the_same(small):
    work = CONTESTS["search_faiss_64"].work()
    assert work.facts["same_share"] > 0.99 and work.facts["queries"] == 64
    assert work.peer["Flat"]() is not None


def test_usearch_finds_the_same(small):
    assert CONTESTS["search_usearch_1"].work().facts["same_share"] > 0.9
