"""VLMo's figures: their assembler, and the parts that take no training."""

import json

import pytest

from benchmarks.pages.gather import assemble, part_figures, result_table
from benchmarks.pages.vlmo import STUDIES, VLMO
from benchmarks.parity import vlmo_golden
from benchmarks.speed import vlmo_dual, vlmo_step
from triptych.core.errors import DataError

MACHINE = {"CPU": "one", "cores": "2"}
GOOD = {
    "golden_max_error": 4e-6,
    "step_fast_over_plain": 1.3,
    "stagewise_minutes": 18.0,
    "i2t_r1": 0.8,
    "t2i_r1": 0.69,
    "vqa": 0.7,
    "stagewise_gain": 0.1,
    "multiway_gain": 0.02,
    "global_negatives_gain": 0.01,
    "dual_over_fusion_speed": 5000,
    "i2t_r1_dual": 0.88,
    "t2i_r1_dual": 0.87,
    "i2t_r1_itm": 0.85,
    "t2i_r1_itm": 0.86,
}


def figures(values):
    found = {}
    for key in STUDIES:
        found[key] = {"value": values[key], "command": "x", "commit": "abc", "machine": MACHINE}
    for part in VLMO.parts:
        output = {key: values[key] for key in part.keys if key in values}
        stored = {"machine": MACHINE, "commit": "abc", "command": part.command, "output": output}
        found |= part_figures(part, stored)
    return found


def test_every_figure_stands_beside_its_bar():
    result = assemble(VLMO, figures(GOOD), MACHINE, "abc")["figures"]
    assert {key: figure["value"] for key, figure in result.items()} == GOOD
    reached = {key: figure["reached"] for key, figure in result.items()}
    assert reached["t2i_r1"] is False
    assert all(reached[key] for key in VLMO.bars if key != "t2i_r1")
    assert reached["stagewise_gain"] is None
    assert "t2i_r1" in "".join(
        str(c) for c in result_table(VLMO, {"figures": result}).columns[0].cells
    )


def test_a_missing_figure_is_an_error():
    with pytest.raises(DataError, match="vqa"):
        assemble(VLMO, figures({k: v for k, v in GOOD.items() if k != "vqa"}), MACHINE, "abc")


def test_outputs_are_within_a_tenth_of_the_bar_of_the_released_ones(capsys):
    vlmo_golden.main()
    found = json.loads(capsys.readouterr().out)
    assert len(found["errors"]) == 2 * 13
    assert found["golden_max_error"] == max(found["errors"].values()) < 1e-5


def test_both_paths_of_a_step_agree_and_are_timed(capsys):
    vlmo_step.main(["--variant", "vlmo_tiny", "--one-contrast", "--rounds", "1", "--batch", "3",
                    "--precision", "fp32"])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["loss_gap"] < vlmo_step.LARGEST_LOSS_GAP
    assert found["median_ms"].keys() == {"fast", "plain"}


def test_times_are_extrapolated_to_all_pairs(capsys, monkeypatch):
    monkeypatch.setattr(vlmo_dual, "NUM_IMAGES", 50)
    monkeypatch.setattr(vlmo_dual, "NUM_TEXTS", 250)
    vlmo_dual.main(["--variant", "vlmo_tiny", "--batch", "2", "--rounds", "1",
                    "--precision", "fp32"])  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    dual = 50 * found["image_s"] + 250 * found["text_s"] + found["search_s"]
    assert found["dual_over_fusion_speed"] == round(50 * 250 * found["pair_s"] / dual)
