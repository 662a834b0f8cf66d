"""mPLUG's and FLAVA's figures: what is asked for, and the parts that take no training."""

import json
from dataclasses import replace

import pytest

from benchmarks.pages.flava import FLAVA
from benchmarks.pages.gather import assemble, run_part
from benchmarks.pages.mplug import MPLUG, read_beam
from benchmarks.pages.vlmo import VLMO
from benchmarks.speed import mplug_fusion, mplug_rerank

MACHINE = {"CPU": "one", "cores": "2"}
BARS = {
    # what the releases are held to
    "mplug": {
        "fusion_s3_over_coattention": 3.4,
        "fusion_s3_over_connected": 2.3,
        "step_fast_over_plain": 1.3,
        "step_default_over_plain_fp32": 3.5,
        "beam10_over_uncached": 10,
        "rerank_over_plain": 3.8,
    },
    "flava": {
        "parity_max_error": -1e-4,
        "grad_norm_step0": -50,
        "step_fp32_over_transformers": 1.3,
        "step_bf16_over_transformers": 1.3,
        "memory_over_transformers": -0.8,
        "masking_speedup": 20,
        "joint_minutes": -20,
        "i2t_r1": 0.65,
        "t2i_r1": 0.65,
        "probe_shape": 0.95,
    },
}
REPORTED = {
    "mplug": {"checkpointing_memory_ratio", "scst_cider_before", "step_outside_products"},
    "flava": {
        "joint_gain",
        "global_contrastive_gain",
        "speedup_over_plain_loop",
        "shape_supervised",
        "shape_supervised_compositional",
        "probe_shape_compositional",
    },
}


def verdicts(benchmark, values):
    figures = {
        key: {"value": value, "command": "x", "commit": "abc", "machine": MACHINE}
        for key, value in values.items()
    }
    found = assemble(benchmark, figures, MACHINE, "abc")["figures"]
    return {key: figure["reached"] for key, figure in found.items()}


@pytest.mark.parametrize("benchmark", [MPLUG, FLAVA], ids=lambda b: b.name)
def test_bars(benchmark):
    bars = BARS[benchmark.name]
    rest = dict.fromkeys(set(benchmark.asked) - bars.keys(), 1.0)
    just = {key: abs(limit) for key, limit in bars.items()}
    missed = {key: abs(limit) - (1e-5 if limit > 0 else -1e-5) for key, limit in bars.items()}
    assert all(verdicts(benchmark, just | rest)[key] is True for key in bars)
    assert all(verdicts(benchmark, missed | rest)[key] is False for key in bars)
    without = {key for key, reached in verdicts(benchmark, just | rest).items() if reached is None}
    assert without == REPORTED[benchmark.name]


@pytest.mark.parametrize(("before", "after", "reached"), [(1.0, 1.1, True), (1.1, 1.1, False)])
def test_scst_must_rise(before, after, reached):
    values = dict.fromkeys(MPLUG.asked, 1.0)
    values |= {"scst_cider_before": before, "scst_cider_after": after}
    assert verdicts(MPLUG, values)["scst_cider_after"] is reached


@pytest.mark.parametrize("benchmark", [MPLUG, FLAVA, VLMO], ids=lambda b: b.name)
def test_every_figure_has_one_part(benchmark):
    keys = [key for part in benchmark.parts for key in part.keys]
    assert len(keys) == len(set(keys))
    assert set(benchmark.bars) <= set(keys)


def test_ten_beams_have_a_name_of_their_own():
    line = json.dumps({"beam_cache_speedup": 11.5, "num_beams": 10})
    assert read_beam(0, line) == {"beam10_over_uncached": 11.5, "num_beams": 10}


def test_all_fusion_networks_are_timed_in_turn(capsys):
    mplug_fusion.main(["--rounds", "1", "--batch-size", "1", "--precision", "fp32"])
    found = json.loads(capsys.readouterr().out)
    names = {f"skip_connected S={s}" for s in (1, 2, 3, 6)} | {
        "connected_attention",
        "co_attention",
        "asymmetric_co_attention",
        "none",
    }
    assert found["forward_backward_ms_per_sample"].keys() == names
    both = found["forward_backward_ms_per_sample"]
    ratio = both["co_attention"] / both["skip_connected S=3"]
    assert found["fusion_s3_over_coattention"] == pytest.approx(ratio, rel=0.01)


def test_rerank_compares_equal_scores(capsys):
    mplug_rerank.main(["--rounds", "1", "--images", "1"])
    found = json.loads(capsys.readouterr().out)
    assert found["largest_gap"] < mplug_rerank.LARGEST_GAP[found["precision"]]
    assert found["texts_per_image"] == 64


def test_masking_prints_what_its_part_reads():
    part = next(part for part in FLAVA.parts if part.name == "masking")
    small = replace(part, arguments=(*part.arguments, "--batch-size", "4", "--rounds", "1"))
    assert run_part(small, MACHINE, "abc")["output"]["masking_speedup"] > 0
