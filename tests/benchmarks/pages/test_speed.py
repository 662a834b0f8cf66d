"""The gatherer of speed: figures of a kind of processor, and those that peers.json gives."""

import json

import pytest

from benchmarks.pages import speed
from benchmarks.pages.gather import Part, assemble, part_figures
from benchmarks.pages.results_page import section
from benchmarks.peers import CONTESTS
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
