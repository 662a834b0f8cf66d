"""Whole runs on two processes: equal state, exact resuming, one set of files, clean stops."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.workflows.test_flava_data import write_tokenizer
from triptych.core.config import load_yaml, save_yaml
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.tasks.pretraining.mplug import MPLUGPretrainingConfig
from triptych.train.metrics_log import WALL_CLOCK_KEYS
from triptych.train.validation import ValidationConfig
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import resume_run, train_run


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 24, num_val=2, num_test=2, num_compositional=2, formats=("captions",))
    return SceneFiles(folder)


@pytest.fixture(scope="module")
def run(scenes):
    config = build_recipe("mplug.pretrain", "smoke")
    source = DataSourceConfig(
        path=str(scenes.karpathy), reader="karpathy", image_root=str(scenes.images), split="train"
    )
    task = MPLUGPretrainingConfig(queue_size=24, momentum=0.9, alpha=0.4)
    return replace(
        config,
        data=replace(config.data, train=(source,)),
        task=task,
        weights=(),
        train=replace(
            config.train,
            max_steps=4,
            num_processes=2,
            checkpoint_every_steps=2,
            log_every_steps=1,
            keep_checkpoints=9,
            precision="fp32",
            progress="plain",
        ),
    )


def _lines(folder):
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in WALL_CLOCK_KEYS} for line in lines]


@pytest.mark.usefixtures("spawned")
def test_a_run_on_two_processes_goes_on_bitwise(run, tmp_path):
    whole = tmp_path / "whole"
    train_run(run, whole)
    lines = _lines(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    weights = load_file(whole / "model" / "model.safetensors")
    (whole / "checkpoints" / "step_4").rename(tmp_path / "step_4")  # as if killed after step 3
    resume_run(whole)
    assert _lines(whole) == lines
    again = load_file(whole / "model" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())


def test_a_mixture_on_two_processes_goes_on_bitwise(run, scenes, tmp_path):
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    pairs = run.data.train[0]
    sources = tuple(
        replace(pairs, kind=kind, name=kind, ratio=ratio)
        for kind, ratio in (("pair", 1.0), ("image", 1.0), ("text", 2.0))
    )
    joint = build_recipe("flava.joint", "smoke")
    joint = replace(
        joint,
        data=replace(joint.data, train=sources),
        task=replace(joint.task, image_tokenizer=str(tokenizer)),
        train=replace(run.train, max_steps=12, global_batch_size=4),
        weights=(),
    )
    whole = tmp_path / "whole"
    train_run(joint, whole)
    lines = _lines(whole)
    assert {"loss/gc", "loss/mim", "loss/mlm"} <= set().union(*lines)
    (whole / "checkpoints" / "step_12").rename(tmp_path / "step_12")
    assert (whole / "checkpoints" / "step_10").is_dir()
    resume_run(whole)
    assert _lines(whole) == lines


def test_another_number_of_processes_goes_on(run, tmp_path):
    """Two shards of a run of FSDP are read by one process."""
    folder = tmp_path / "run"
    train_run(replace(run, train=replace(run.train, parallel="fsdp", max_steps=2)), folder)
    assert len(list((folder / "checkpoints" / "step_2").glob("shard_*"))) == 2
    text = (folder / "config.yaml").read_text().replace("num_processes: 2", "num_processes: 1")
    (folder / "config.yaml").write_text(text.replace("max_steps: 2", "max_steps: 3"))
    assert resume_run(folder).step == 3


def test_sharded_processes_validate_together_and_train_bitwise_the_same(run, tmp_path, monkeypatch):
    monkeypatch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")
    train = replace(run.train, parallel="fsdp", max_steps=2)
    plain = replace(run, train=train)
    train_run(plain, tmp_path / "plain")
    held_out = replace(run.data.train[0], split="test")
    checked = replace(
        plain,
        data=replace(run.data, val=(held_out,)),
        validation=ValidationConfig(every_steps=1, patience=9),
    )
    result = train_run(checked, tmp_path / "run")
    weights = load_file(tmp_path / "plain" / "model" / "model.safetensors")
    again = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert all(torch.equal(again[name], tensor) for name, tensor in weights.items())
    lines = [line for line in _lines(tmp_path / "run") if "val/r_mean" in line]
    assert [line["step"] for line in lines] == [1, 2]
    best = {line["step"]: line["val/r_mean"] for line in lines}[result.best_step]
    found = evaluate_model(tmp_path / "run" / "best", "retrieval", held_out, rerank_top_k=0)
    assert {value.name: value.value for value in found}["r_mean"] == best


def test_a_run_of_torchrun_goes_on_without_it(run, tmp_path):
    """The launcher's number of processes is kept, so that a resumed run starts as many."""
    alone = replace(run, train=replace(run.train, num_processes=1, max_steps=2))
    save_yaml(alone, tmp_path / "run.yaml")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", "-m", "triptych.cli.main", "train"]
    command += [str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
    subprocess.run(command, check=True, capture_output=True)
    kept = load_yaml(RunConfig, tmp_path / "run" / "config.yaml")
    assert kept.train.num_processes == 2
    longer = replace(kept, train=replace(kept.train, max_steps=3))
    save_yaml(longer, tmp_path / "run" / "config.yaml")
    assert resume_run(tmp_path / "run").step == 3
