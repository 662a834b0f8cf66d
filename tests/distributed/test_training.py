"""Whole runs on two processes: equal state, exact resuming, one set of files, clean stops."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.averaging import average_gradients
from tests.workflows.test_flava_data import write_tokenizer
from triptych.core.config import load_yaml, save_yaml
from triptych.data.source import DataSourceConfig
from triptych.distributed.collectives import all_reduce_mean
from triptych.distributed.env import rank, run_processes, world_size
from triptych.models.families import build_model, model_config
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.train.metrics_log import WALL_CLOCK_KEYS
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
    folder = tmp_path / "run"
    train_run(replace(run, train=replace(run.train, max_steps=2)), folder)
    text = (folder / "config.yaml").read_text().replace("num_processes: 2", "num_processes: 1")
    (folder / "config.yaml").write_text(text.replace("max_steps: 2", "max_steps: 3"))
    assert resume_run(folder).step == 3


ROWS = 8


def _batch():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([5, 7, 3, 8, 4, 8, 6, 2])
    ids = torch.randint(5, 64, (ROWS, 8), generator=generator)
    mask = torch.arange(8) < lengths[:, None]
    labels = torch.full((ROWS, 8), -100)
    labels[:, 1] = ids[:, 1]
    labels[:3, 0] = 7  # rows differ in how many words they hide
    return {
        "image": torch.randn(ROWS, 3, 64, 64, generator=generator),
        "token_ids": ids,
        "text_mask": mask,
        "mlm_token_ids": ids.masked_fill(labels >= 0, 4),
        "mlm_labels": labels.masked_fill(~mask, -100),
        "prefix_token_ids": ids[:, :3],
        "prefix_mask": mask[:, :3],
        "target_token_ids": ids,
        "target_mask": mask,
        "image_key": torch.arange(ROWS),
        "caption_key": torch.tensor([0, 1, 2, 3, 4, 5, 6, 0]),  # two rows share a caption
    }


def _losses_and_gradients(config):
    torch.manual_seed(0)
    task = MPLUGPretraining(build_model(model_config("mplug_tiny", vocab_size=64)), config)
    share = ROWS // world_size()
    own = {k: v[rank() * share : (rank() + 1) * share] for k, v in _batch().items()}
    losses = task.losses(own, active=frozenset({"itc", "mlm", "prefix_lm"}))
    torch.stack(list(losses.values())).sum().backward()
    named = [(n, p) for n, p in task.modules.named_parameters() if p.requires_grad]
    average_gradients([p for _, p in named])
    task.after_step(1)
    queue = task.modules["queue"].text if "queue" in task.modules else torch.zeros(1)
    return (
        {name: all_reduce_mean(loss).item() for name, loss in losses.items()},
        {n: p.grad.clone().numpy() for n, p in named if p.grad is not None},
        queue.clone().numpy(),
    )


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_two_processes_equal_one_with_the_joined_batch(momentum):
    config = MPLUGPretrainingConfig(
        queue_size=8 if momentum else 0,
        momentum=momentum,
        alpha=0.4 if momentum else 0.0,
        distill_mlm=momentum > 0,
        distill_prefix_lm=momentum > 0,
    )
    losses, gradients, queue = run_processes(_losses_and_gradients, 2, config)
    expected, expected_gradients, expected_queue = _losses_and_gradients(config)
    assert losses == pytest.approx(expected, abs=1e-5)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        assert abs(gradient - expected_gradients[name]).max() < 1e-5, name
    assert abs(queue - expected_queue).max() < 1e-6


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
