"""The benchmark of decoding, on a small photo: both sides take the same crops."""

import json
import sys

import numpy as np

from benchmarks.speed import decode
from triptych.data.records import ImageSource

SMALL = decode.Kind("small", 600, 560, noise=8, number=2, crops=1)


def test_both_sides_take_the_same_crops(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(decode.photo(SMALL, 0))
    source = ImageSource(str(path))
    for seed in range(5):
        first = decode.before(source, np.random.default_rng(seed))
        second = decode.now(source, np.random.default_rng(seed))
        assert first.shape == second.shape == (256, 256, 3)
        assert np.abs(first.astype(int) - second).mean() < 5
    first, second = (make(source, None) for make in (decode.evaluated_before, decode.evaluated))
    assert np.array_equal(first, second)


def test_one_line_has_the_figures(monkeypatch, capsys):
    monkeypatch.setattr(decode, "KINDS", (SMALL,))
    monkeypatch.setattr(sys, "argv", ["decode", "--rounds", "1"])
    decode.main()
    figures = json.loads(capsys.readouterr().out)
    training = figures["small_training"]
    assert figures["small"] == training["ratio"] > 0
    assert training["before_per_s"] > 0 and training["now_per_s"] > 0
    assert figures["small_if_evaluation_were_reduced"]["factor"] == 2
    assert figures["batch_of_32"]["bitwise_equal"] is True
