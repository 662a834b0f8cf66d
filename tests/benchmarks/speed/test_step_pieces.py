"""The benchmark of a step's pieces, on small blocks: both ways compute the same."""

import pytest
import torch

from benchmarks.speed import step_candidates, step_pieces

SIZES = step_pieces.Sizes(
    width=32, heads=2, images=2, tokens=9, lengths=(7, 33), texts=3, words=6, depth=2, updated=1
)


@pytest.fixture(scope="module")
def pieces():
    return dict(step_pieces.Bench(SIZES).pieces())


def test_every_way_computes_the_same(pieces):
    assert len(pieces) == 20
    for key, piece in pieces.items():
        found, expected = piece.tried(), piece.today()
        assert step_pieces.gap(found, expected) <= piece.allowed, key
        assert all(tensor.isfinite().all() for tensor in found)
        assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]


@pytest.mark.parametrize(
    "key", ["post_norm", "byte_mask", "attention_6_with_dropout", "attention_33_with_dropout"]
)
def test_other_draws_are_told(pieces, monkeypatch, key):
    draw = step_candidates.draw

    def other(x, share):
        torch.manual_seed(5)
        return draw(x, share)

    monkeypatch.setattr(step_candidates, "draw", other)
    with pytest.raises(AssertionError, match="apart"):
        step_pieces.measure_piece(pieces[key], {}, 1)


def test_a_gradient_that_is_missing_is_told(pieces, monkeypatch):
    monkeypatch.setattr(
        step_candidates, "_activate", lambda hidden, gelu: torch.relu(hidden) * (1 + gelu)
    )
    for key in ("ffn_text", "ffn_image"):
        with pytest.raises(AssertionError, match="apart"):
            step_pieces.measure_piece(pieces[key], {}, 1)


def test_the_figures_of_a_run():
    found = step_pieces.measure(step_pieces.Bench(SIZES), 1, compile_blocks=False)
    row = found["pieces"]["stream_text"]
    assert row["whole"] is None
    assert row["saved"] == pytest.approx(1 - 1 / row["ratio"], abs=1e-4)
    assert row["range"][0] <= row["ratio"] <= row["range"][1]
    part = found["pieces"]["attention_6_with_dropout"]
    assert part["whole"] in found["wholes_ms"]
    assert found["most_saved_by_a_piece"] == max(
        piece["saved"] for key, piece in found["pieces"].items() if key != "update"
    )
    # query, key, value and what they read, once in each direction at most
    assert 1 <= found["head_copies"]["count"] <= 8
    assert 0 < found["stream_errors"]["fp32"] < found["stream_errors"]["bf16"] < 0.1


def test_a_processor_without_bf16_measures_nothing(monkeypatch, capsys):
    machine = {"bf16": "no CPU instructions for it"}
    monkeypatch.setattr("benchmarks.speed.mplug_timing.describe_machine", lambda: machine)
    with pytest.raises(SystemExit):
        step_pieces.main([])
    assert "not_measured" in capsys.readouterr().out
