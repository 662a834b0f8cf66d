"""`triptych estimate`: rows for numbers of GPUs and ways to share the work, and what is refused."""

import json

import pytest

from triptych.cli.main import main
from triptych.recipes.registry import build_recipe
from triptych.workflows.estimate import count_run

LARGE = ("estimate", "mplug.pretrain", "--scale", "large")


def rows(capsys, *arguments):
    assert main([*arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_row_for_each_way_to_share_the_work(capsys):
    found = rows(capsys, *LARGE, "--gpus", "1", "8", "64")
    assert [(row["gpus"], row["parallel"]) for row in found] == [
        (1, "none"),
        *((8, kind) for kind in ("ddp", "zero2", "fsdp")),
        *((64, kind) for kind in ("ddp", "zero2", "fsdp", "hsdp")),
    ]
    assert all(row["fits"] for row in found)
    by_kind = {row["parallel"]: row["memory"] for row in found if row["gpus"] == 64}
    assert by_kind["ddp"]["optimizer"] == 64 * by_kind["fsdp"]["optimizer"]
    count = count_run(build_recipe("mplug.pretrain", "large"))
    assert by_kind["ddp"]["weights"] == 4 * count.state.all().trained
    assert by_kind["ddp"]["queue"] == 65_536 * (2 * 256 * 4 + 2 * 8) + 2 * 8


def test_the_table_says_that_it_is_paper(capsys):
    assert main([*LARGE, "--gpus", "8"]) == 0
    out = capsys.readouterr().out
    assert "565.9 M trained parameters" in " ".join(out.split())
    assert "Estimates on paper" in out
    assert [line.split()[1] for line in out.splitlines() if line.strip().startswith("8 ")] == [
        "ddp",
        "zero2",
        "fsdp",
    ]


def test_flags_of_training_and_of_the_hardware_count(capsys):
    (whole, *_) = rows(capsys, *LARGE)
    (half, *_) = rows(capsys, *LARGE, "--utilisation", "0.15")
    assert half["compute_s"] == pytest.approx(2 * whole["compute_s"])
    (plain, *_) = rows(capsys, *LARGE, "--train.precision", "fp32", "--task.momentum", "0", *(
        "--task.alpha", "0", "--task.no-distill-mlm", "--task.no-distill-prefix-lm"
    ))  # fmt: skip
    assert (plain["memory"]["copies"], plain["memory"]["teacher"]) == (0, 0)
    found = rows(capsys, *LARGE, "--memory-gb", "40")
    assert found[0]["samples_at_a_time"] < whole["samples_at_a_time"]
    (slow,) = [
        row
        for row in rows(capsys, *LARGE, "--gpus", "64", "--link-gb-per-s", "5")
        if row["parallel"] == "ddp"
    ]
    assert slow["network_s"] == pytest.approx(slow["network"]["gradients"] / 5e9, rel=0.01)
    (passed, *_) = rows(capsys, *LARGE, "--pairs", "14e6")
    assert passed["hours"] == pytest.approx(whole["hours"] * 14e6 / (410_000 * 1024))


def test_tiles_can_be_left_out(capsys):
    (tiled, *_), (whole, *_) = rows(capsys, *LARGE), rows(capsys, *LARGE, "--untiled")
    assert whole["memory"]["contrast"] > 10 * tiled["memory"]["contrast"]


def test_what_fits_recomputes_least(capsys):
    found = rows(
        capsys, "estimate", "vlmo.pretrain", "--scale", "large", "--hardware", "a100", "--gpus", "8"
    )
    assert [row["recompute"] for row in found] == ["none"] * 3
    small = rows(
        capsys, "estimate", "vlmo.pretrain", "--scale", "large", "--memory-gb", "16", "--gpus", "8"
    )
    assert small[0]["recompute"] != "none" and small[0]["fits"]
    assert small[0]["compute_s"] >= found[0]["compute_s"] * 312 / 989


def test_a_run_that_fits_nowhere_says_so(capsys):
    found = rows(
        capsys,
        *("estimate", "flava.joint", "--scale", "base", "--model.name", "flava_10b"),
    )
    assert {row["parallel"]: row["fits"] for row in found}["ddp"] is False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dino"], "dino does not say what one of its steps computes"),
        (["mplug.pretrain", "--gpus", "3"], "3 processes must share it equally"),
        (["mplug.pretrain", "--hardware", "h101"], "unknown hardware 'h101'; did you mean 'h100'"),
        (["mplug.pretrain", "--pairs", "0"], "--pairs 0.0: must be above 0"),
        (["mplug.pretrian"], "there is no recipe 'mplug.pretrian'"),
        (["vlmo.pretrain", "--model.name", "mplug_tiny"], "trains VLMo models"),
    ],
)
def test_what_cannot_be_estimated_is_named(capsys, arguments, message):
    assert main(["estimate", *arguments]) == 2
    assert message in capsys.readouterr().err
