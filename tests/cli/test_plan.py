"""`triptych plan`: what it prints of this machine and of many GPUs, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from tests.serving.tiny_folder import write_tiny_folder
from triptych.cli.main import main
from triptych.cli.plan import suggested_command
from triptych.cli.train import read_config
from triptych.recipes.registry import build_recipe
from triptych.workflows.estimate import count_run

PAPER = ("plan", "--on-paper")
LARGE = (*PAPER, "mplug.pretrain", "--scale", "large")


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


def test_parts_that_are_not_trained_have_no_gradients_on_paper(capsys, tmp_path):
    start = write_tiny_folder(tmp_path / "model", "pretraining")
    command = (*PAPER, "mplug.pretrain", "--scale", "tiny", "--init-from", str(start))
    (whole, *_) = rows(capsys, *command)
    (frozen, *_) = rows(capsys, *command, "--freeze", "visual_encoder.*")
    (low, *_) = rows(capsys, *command, "--lora.rank", "2")
    for fewer, more in ((frozen, whole), (low, frozen)):
        assert fewer["memory"]["gradients"] < more["memory"]["gradients"]
        assert fewer["memory"]["optimizer"] < more["memory"]["optimizer"]
        assert fewer["memory"]["teacher"] > more["memory"]["teacher"]
    assert low["memory"]["copies"] > low["memory"]["gradients"]  # casts of frozen blocks are kept


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
        capsys, *PAPER, "vlmo.pretrain", "--scale", "large", "--hardware", "a100", "--gpus", "8"
    )
    assert [row["recompute"] for row in found] == ["none"] * 3
    small = rows(
        capsys, *PAPER, "vlmo.pretrain", "--scale", "large", "--memory-gb", "16", "--gpus", "8"
    )
    assert small[0]["recompute"] != "none" and small[0]["fits"]
    assert small[0]["compute_s"] >= found[0]["compute_s"] * 312 / 989


def test_a_run_that_fits_nowhere_says_so(capsys):
    found = rows(
        capsys,
        *(*PAPER, "flava.joint", "--scale", "base", "--model.name", "flava_10b"),
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
    assert main([*PAPER, *arguments]) == 2
    assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------- on this machine


def test_a_plan_is_printed_and_its_command_is_one_of_train(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    arguments = ("mplug.caption", "--scale", "smoke", "--train.num-threads", "1")
    assert main(["plan", *arguments, "--as-given", "--limit-gb", "6"]) == 0
    out = capsys.readouterr().out
    words = ("activations", "optimizer", "backward", "visual_encoder", "disk:", "samples/s")
    assert all(word in out for word in words)
    command = out.splitlines()[-1].split()
    assert command[:3] == ["triptych", "train", "mplug.caption"]
    assert read_config(command[2:]).recipe == "mplug.caption"
    assert list(tmp_path.iterdir()) == []


def test_suggested_flags_replace_what_was_said_of_them():
    rest = ["run.yaml", "--train.precision", "fp32", "--data", "a.jsonl", "--task.chunk-size=8"]
    found = suggested_command(rest, {"--train.precision": "bf16", "--task.chunk-size": "4"})
    assert " ".join(found) == (
        "triptych train run.yaml --data a.jsonl --train.precision bf16 --task.chunk-size 4"
    )


def test_flags_that_a_plan_can_suggest_are_flags_of_train():
    flags = {
        "--train.precision": "bf16",
        "--train.recompute": "selective",
        "--task.chunk-size": "4",
        "--train.micro-batch-size": "8",
    }
    config = read_config(suggested_command(["mplug.pretrain"], flags)[2:])
    assert (config.train.precision, config.train.recompute) == ("bf16", "selective")
    assert (config.task.chunk_size, config.train.micro_batch_size) == (4, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mplug.pretrain", "--limit-gb", "0"], "--limit-gb 0.0: must be above 0"),
        (["mplug.pretrain", "--limit-gb", "0.01"], "not enough memory for even one sample"),
        (["mplug.pretrain", "--train.max-steps", "2"], "shorter than the 4 steps"),
        (["mplug.pretrain", "--scale", "base"], "name it with --data PATH"),
        (["dino", "--gpus", "8"], "dino does not say what one of its steps computes"),
        (["mplug.pretrian"], "there is no recipe 'mplug.pretrian'"),
    ],
)
def test_what_cannot_be_planned_is_named(capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["plan", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_no_file_behind(tmp_path, number, code):
    """It comes while steps are measured, which the command says on its terminal alone."""
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    arguments = ["-m", "triptych", "plan", "mplug.pretrain", "--scale", "smoke"]
    child = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while child.poll() is None and not list(tmp_path.glob("*/data/dataset.json")):
        time.sleep(0.05)
    child.send_signal(number)
    _, errors = child.communicate()
    assert (child.returncode, list(tmp_path.iterdir())) == (code, []), errors
    assert "Traceback" not in errors
