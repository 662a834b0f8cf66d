"""The gatherer of speed: figures of a kind of processor, and those that peers.json gives."""

import json

import pytest

from benchmarks.pages import speed
from benchmarks.pages.gather import Part, assemble, part_figures
from benchmarks.pages.results_page import section
from benchmarks.peers import CONTESTS
from benchmarks.scenes import decoding
from benchmarks.speed.mplug_timing import build_parser, lacks, start

ZEN = {"CPU": "AMD EPYC", "bf16": "avx512_bf16", "torch": "2.13"}


@pytest.mark.parametrize(("needs", "bf16", "lacking"), [
    (None, "no CPU instructions for it", False),
    ("amx", "amx_bf16, avx512_bf16", False),
    ("amx", "avx512_bf16", True),
    ("avx512", "avx512_bf16", False),
    ("avx512", "amx_bf16, avx512_bf16", True),  # it would use AMX
    ("bf16", "avx512_bf16", False),
    ("bf16", "no CPU instructions for it", True),
])  # fmt: skip
def test_a_figure_is_that_of_the_best_instructions(needs, bf16, lacking):
    reason = lacks(needs, bf16)
    assert (reason is not None) == lacking
    assert reason is None or (needs in reason and bf16 in reason)


def test_a_processor_without_them_says_so(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.speed.mplug_timing.describe_machine", lambda: ZEN)
    with pytest.raises(SystemExit) as left:
        start(build_parser("doc", rounds=1), ["--needs", "amx"])
    assert left.value.code == 0
    assert "avx512_bf16" in json.loads(capsys.readouterr().out)["not_measured"]
    assert start(build_parser("doc", rounds=1), ["--needs", "avx512"]).rounds == 1


def test_figures_have_the_names_of_their_processor():
    read = next(part.read for part in speed.SPEED.parts if part.name == "step_avx512")
    found = read(0, json.dumps({"step_default_over_plain_fp32": 3.3, "range_fp32": [3, 4]}))
    assert found["step_default_over_plain_fp32_avx512"] == 3.3 and found["range_fp32"] == [3, 4]
    found = read(0, '{"not_measured": "no such processor"}')
    part = Part("step_avx512", ("-m", "x"), ("step_default_over_plain_fp32_avx512",))
    stored = {"output": found, "command": "x", "commit": "a", "machine": ZEN}
    figure = part_figures(part, stored)["step_default_over_plain_fp32_avx512"]
    assert figure["value"] is None and figure["not_measured"] == "no such processor"


def test_peers_give_the_figure_of_the_asked_precision(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "STORED", tmp_path / "peers.json")
    origin = {"commit": "a" * 40, "machine": ZEN, "rounds": 3, "peer": "open_clip_torch 3.3.0"}
    both = {way: {"ratio": 1.2, "range": [1.1, 1.3]} for way in ("fp32", "bf16")}
    step = {CONTESTS["itc_step"].key: 2.0, "range": [1.9, 2.1], "same_way": both} | origin
    (tmp_path / "peers.json").write_text(json.dumps({"itc_step": step}))
    figures = speed.over_peers()
    assert figures["itc_step_over_open_clip_bf16"]["value"] == 1.2
    assert figures["itc_step_over_open_clip_bf16"]["range"] == [1.1, 1.3]
    assert figures["itc_step_over_open_clip_bf16"]["commit"] == "a" * 40
    assert "not run yet" in figures["caption_over_blip_1"]["not_measured"]

    others = {
        key: {"value": 1.0, "command": "do", "commit": "b", "machine": ZEN}
        for key in speed.SPEED.asked
    }
    result = assemble(speed.SPEED, others | figures, ZEN, "b")
    assert result["figures"]["itc_step_over_open_clip_fp32"]["reached"] is True
    assert result["figures"]["itc_step_over_open_clip_bf16"]["reached"] is False
    assert result["figures"]["itm_over_blip"]["reached"] is None
    text = section(speed.SPEED, result, {})
    assert "(this contest was not run yet)" in text and ">= 1.3: **not met**" in text


def test_every_figure_over_peers_has_a_target_of_its_contest():
    for key, (name, way) in speed.OVER_PEERS.items():
        assert way in CONTESTS[name].bars and key in speed.SPEED.bars


def test_the_loader_has_a_row_a_size_and_the_recall_that_it_leads_to(tmp_path):
    training = {"ratio": 1.3, "lowest": 1.2, "highest": 1.4, "before_per_s": 380, "now_per_s": 500}
    output = {"decode_640x480": 1.3, "decode_12mp": 2.4}
    for key in tuple(output):
        output |= {f"{key}_training": training, f"{key}_bits_per_pixel": 2.46}
    origin = {"commit": "a" * 40, "machine": ZEN, "command": "python -m benchmarks.speed.decode"}
    (tmp_path / "speed_decode.json").write_text(json.dumps(origin | {"output": output}))
    text = speed.loader_block(tmp_path)
    assert "| 640 x 480 | 2.5 | 380 | 500 | 1.30, 1.20 to 1.40 | >= 1.25 met |" in text
    assert "| >= 2.5 **not met** |" in text and "Recall" not in text

    ends = {"mean": -0.01, "low": -0.03, "high": 0.02}
    recall = {"recall": {"reduced": {"mean": 0.7}, "whole": {"mean": 0.71}}, "difference": ends}
    recall |= {"factors": {"2": 0.25, "4": 0.75}, "protocol": "4,000 scenes", "seeds": 3}
    (tmp_path / "speed_decoding_recall.json").write_text(json.dumps(origin | {"output": recall}))
    text = speed.loader_block(tmp_path)
    assert "sides are divided for 25% by 2, 75% by 4 of the crops" in text
    assert "reduced 0.700, whole 0.710; reduced minus whole -0.010, 95 % interval -0.030" in text


def test_recall_is_kept_unless_its_interval_lies_below_zero():
    scores = {"recall_mean": {"mean": 0.5, "low": 0.4, "high": 0.6}}
    variants = {"reduced": {"scores": scores}, "whole": {"scores": scores}}
    for high, word in ((0.01, "yes"), (-0.01, "no")):
        pair = {"main": True, "score": "recall_mean", "mean": -0.05, "low": -0.1, "high": high}
        found = decoding.figures({"comparisons": [pair], "variants": variants, "seeds": 3})
        assert found["decoding_recall_kept"] == word
    assert sum(decoding.factors().values()) == pytest.approx(1)
    assert max(map(int, decoding.factors())) == 4  # 320 px to 64


def test_a_piece_is_worth_it_from_a_share_on(tmp_path):
    def piece(text, ratio, low, saved):
        times = {"today_ms": 12.0, "tried_ms": 12.0 / ratio, "ratio": ratio, "range": [low, 2.0]}
        return times | {"text": text, "whole": "text block", "saved": saved}

    output = {
        "pieces": {
            "a": piece("much", 1.5, 1.2, 0.04),
            "b": piece("little", 1.5, 1.2, 0.02),
            "c": piece("noisy", 1.5, 0.9, 0.04),
            "d": piece("no block", 1.5, 1.2, 0.3) | {"whole": "update"},
        },
        "wholes_ms": {"text block": 100.0, "image block, 9 tokens": 200.0},
        "head_copies": {"count": 4, "ms": 2.0},
        "stream_errors": {"fp32": 0.002, "bf16": 0.004, "norm_gradients": {"image": 0.3}},
        "compiled": False,
    }
    stored = {"command": "do", "commit": "a" * 40, "machine": ZEN, "output": output}
    path = tmp_path / "speed_step_pieces.json"
    path.write_text(json.dumps(stored))
    text = speed.pieces_block(tmp_path)
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert [row.split(" | ")[-1].strip(" |") for row in rows] == ["yes", "no", "no", "no"]
    assert "| 12.0 | 8.0 | 1.50, 1.20 to 2.00 | +4.0% of the text block |" in rows[0]
    assert "4 times, 2.0 ms or 1.0% of its time" in text and "g++ is missing" in text
    path.write_text(json.dumps(stored | {"output": {"not_measured": "needs bf16"}}))
    assert speed.pieces_block(tmp_path).startswith("Not measured: needs bf16.")
