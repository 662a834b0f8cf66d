"""Models whose parameters two gloo processes share (FSDP2) against one on the joined batch.

Each block is a unit of its own, entered by the methods that it names; what lies outside blocks is
gathered once a step. A part of a block used from outside its entries would be a mere shard, a unit
that returned a view would warn, and units entered in another order by the process whose texts are
shorter would exchange what does not belong together.
"""

import warnings
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch.distributed.tensor import DTensor

from tests.tasks.finetuning.tiny import images, tiny_config, tiny_model, tiny_tokenizer
from tests.tasks.pretraining.test_dino import HEAD, small_config
from tests.tasks.pretraining.test_vlmo import VARIANTS, make_batch
from triptych.core.errors import ConfigError
from triptych.core.rng import seed_step
from triptych.distributed import engine
from triptych.distributed.collectives import all_reduce_mean
from triptych.distributed.engine import Engine
from triptych.distributed.env import rank, run_processes, world_size
from triptych.generation.search import BeamConfig
from triptych.models.families import build_model, model_config
from triptych.nn import packing
from triptych.objectives import IGNORE_INDEX
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.finetuning.nlvr2 import NLVR2, NLVR2Config
from triptych.tasks.finetuning.scst import SCST, SCSTConfig
from triptych.tasks.pretraining.dino import DINO
from triptych.tasks.pretraining.flava import (
    BATCH_KINDS,
    FLAVAPretraining,
    FLAVAPretrainingConfig,
)
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.tasks.pretraining.vlmo import VLMoPretraining

ROWS = 8


def train(task, batches, generate=None):
    """Return the losses of some steps, the weights after them, and texts of images.

    Args:
        task: On several processes it is sharded.
        batches: One a step, of all processes together, with its objectives.
        generate: Images that each process gets texts for after each step.
    """
    task.modules.train()
    shared = Engine(task, parallel="fsdp")
    trained = [p for p in task.modules.parameters() if p.requires_grad]
    found, texts, size = [], [], ROWS // world_size()
    for step, (batch, active) in enumerate(batches, start=1):
        own = {
            key: value.narrow(1 if key.endswith("crops") else 0, rank() * size, size)
            for key, value in batch.items()
        }
        seed_step(0, step, rank())  # negatives are drawn by the rows of the joined batch
        losses = shared.losses(own, active)
        torch.stack(list(losses.values())).sum().backward()
        shared.reduce(trained, torch.zeros(1))
        with torch.no_grad():
            for parameter in trained:
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
                parameter.grad = None
        task.after_step(step)
        found.append({name: float(all_reduce_mean(loss)) for name, loss in losses.items()})
        if generate is None:
            continue
        with shared.whole():
            batch = {"image": generate, "index": torch.arange(len(generate))}
            texts += task.predict(batch).texts
    state = {**dict(task.modules.named_parameters()), **dict(task.modules.named_buffers())}
    weights = {name: _whole(value.detach()).numpy() for name, value in state.items()}
    return found, texts, weights


def _whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def batch_of(length=9):
    """A batch for all families; the second half's texts are shorter."""
    batch = make_batch(ROWS, length=length)
    batch["text_mask"][4:, 4:] = False
    batch["mlm_labels"] = batch["mlm_labels"].masked_fill(~batch["text_mask"], IGNORE_INDEX)
    ids, mask = batch["token_ids"], batch["text_mask"]
    batch |= {"prefix_token_ids": ids[:, :3], "prefix_mask": mask[:, :3]}
    return batch | {"target_token_ids": ids, "target_mask": mask}


def mplug_run(fusion, memory, pre_norm, chunk_size=None):
    config = tiny_config(40, memory=memory, pre_norm=pre_norm)
    config = replace(config, fusion=fusion, vision=replace(config.vision, image_size=32))
    options = MPLUGPretrainingConfig(
        queue_size=12,
        momentum=0.9,
        alpha=0.4,
        distill_mlm=True,
        distill_prefix_lm=True,
        chunk_size=chunk_size,
    )
    task = MPLUGPretraining(build_model(config), options)
    return train(task, [(batch_of(), task.objective_names)] * 2)


def vlmo_run(name, chunk_size=None):
    model, config = VARIANTS[name]
    task = VLMoPretraining(build_model(model), replace(config, chunk_size=chunk_size))
    return train(task, [(batch_of(), task.objective_names)] * 2)


def flava_run(chunk_size):
    config = model_config("flava_tiny", vocab_size=40, image_size=32)
    task = FLAVAPretraining(build_model(config), FLAVAPretrainingConfig(chunk_size=chunk_size))
    batch, generator = batch_of(), torch.Generator().manual_seed(0)
    shape = ROWS, (32 // config.vision.patch_size) ** 2
    batch |= {
        "hidden_patches": torch.rand(shape, generator=generator) < 0.4,
        "image_codes": torch.randint(0, config.num_codes, shape, generator=generator),
        "itm_labels": torch.tensor([1, 1, 0, 1, 1, 1, 1, 0]),
    }
    steps = [
        ({key: batch[key] for key in (*kind.batch_keys, "image_codes")}, kind.objectives)
        for kind in BATCH_KINDS.values()
    ]
    return train(task, steps)


def dino_run():
    """Small crops go through the blocks that read the large ones."""
    task = DINO(build_model(small_config("vlmo_tiny")), HEAD)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "large_crops": torch.randn(2, ROWS, 3, 64, 64, generator=generator),
        "small_crops": torch.randn(2, ROWS, 3, 32, 32, generator=generator),
    }
    return train(task, [(batch, task.objective_names)] * 2)


def caption_run():
    """The decoder's memory is projected at once and kept; texts are generated between the steps."""
    tokenizer = tiny_tokenizer()
    task = Captioning(
        tiny_model(tokenizer), CaptioningConfig(beam=BeamConfig(max_tokens=9)), tokenizer
    )
    batch = {"image": images(ROWS), "target_token_ids": batch_of()["target_token_ids"]}
    batch["target_mask"] = batch_of()["target_mask"]
    return train(task, [(batch, task.objective_names)] * 2, generate=batch["image"])


def pairs_run():
    """The fusion network lends its blocks to second branches."""
    task = NLVR2(tiny_model(tiny_tokenizer()), NLVR2Config(merge="linear"))
    batch = {"image": images(2 * ROWS).unflatten(0, (ROWS, 2)), "label": torch.arange(ROWS) % 2}
    batch |= {key: value for key, value in batch_of().items() if key in task.batch_keys - {"image"}}
    return train(task, [(batch, task.objective_names)])


CASES = {
    "mplug skip_connected": (mplug_run, "skip_connected", "fused", False),
    "mplug co_attention": (mplug_run, "co_attention", "image", True),
    "mplug asymmetric": (mplug_run, "asymmetric_co_attention", "fused", True),
    "mplug connected": (mplug_run, "connected_attention", "image", False),
    "vlmo fused_itc": (vlmo_run, "fused_itc"),
    "vlmo in chunks": (vlmo_run, "relative", 3),
    "mplug in chunks": (mplug_run, "skip_connected", "image", False, 3),
    "flava": (flava_run, None),
    "flava in chunks": (flava_run, 2),
    "dino": (dino_run,),
    "captioning": (caption_run,),
    "nlvr2": (pairs_run,),
}


def run_all():
    """Return what each case gives on this process."""
    torch.set_num_threads(1)
    found = {}
    with (
        warnings.catch_warnings(),
        mock.patch.object(packing, "PACKED_FROM", 0),
    ):
        warnings.simplefilter("error")
        for name, (run, *options) in CASES.items():
            torch.manual_seed(0)
            found[name] = run(*options)
    return found


@pytest.fixture(scope="module")
def sharded():
    return run_processes(run_all, 2)


@pytest.fixture(scope="module")
def alone():
    return run_all()


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_the_joined_batch(sharded, alone, name):
    (losses, texts, weights), (expected, expected_texts, expected_weights) = (
        sharded[name],
        alone[name],
    )
    assert texts == expected_texts
    assert bool(texts) == (name == "captioning")
    for found, own in zip(losses, expected, strict=True):
        assert found == pytest.approx(own, abs=1e-5, rel=1e-5)
    assert weights.keys() == expected_weights.keys()
    for key, weight in weights.items():
        assert abs(weight - expected_weights[key]).max() < 1e-5, key


def test_a_task_whose_processes_draw_texts_is_not_sharded(monkeypatch):
    monkeypatch.setattr(engine, "world_size", lambda: 2)
    tokenizer = tiny_tokenizer()
    task = SCST(tiny_model(tokenizer), SCSTConfig(), tokenizer, reward=None)
    with pytest.raises(ConfigError, match=r"'fsdp': SCST draws captions.*; choose ddp"):
        Engine(task, parallel="fsdp")
