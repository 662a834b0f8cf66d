"""Low-rank adaptation on two processes that share the weights, against one."""

from dataclasses import replace

import torch
from safetensors.torch import load_file

from tests.workflows.small_runs import small_run, source_of
from triptych.nn.lora import LoRAConfig
from triptych.recipes.config import GuardConfig
from triptych.scenes.write import write_scenes
from triptych.workflows.guard import BEFORE_AFTER
from triptych.workflows.run import train_run


def test_sharded_frozen_weights_learn_what_one_process_learns(tmp_path):
    scenes = write_scenes(tmp_path / "s", 16, formats=("captions", "vqa"))
    train_run(small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain")), tmp_path / "start")
    found = {}
    for number in (1, 2):
        run = small_run(
            "mplug.vqa",
            source_of(scenes, "mplug.vqa"),
            max_steps=2,
            num_processes=number,
            parallel="auto" if number == 1 else "fsdp",
        )
        run = replace(
            run,
            model=replace(run.model, init_from=str(tmp_path / "start" / "model")),
            lora=LoRAConfig(rank=2, also=("decoder.embedding",), save="beside"),
            guard=GuardConfig(data=(source_of(scenes, "mplug.pretrain", "test"),), images=4),
        )
        train_run(run, tmp_path / str(number))
        assert (tmp_path / str(number) / BEFORE_AFTER).is_file()
        found[number] = load_file(tmp_path / str(number) / "model" / "adapter_model.safetensors")
    assert found[1].keys() == found[2].keys()
    for name, value in found[1].items():
        torch.testing.assert_close(found[2][name], value, atol=1e-4, rtol=1e-3)
