"""mPLUG's pre-training and retrieval on two gloo processes against one with the joined batch."""

from functools import partial
from unittest import mock

import pytest
import torch

from tests.distributed.averaging import average_gradients
from triptych.core.rng import seed_step
from triptych.distributed.collectives import all_reduce_mean
from triptych.distributed.env import rank, run_processes, world_size
from triptych.models.families import build_model, model_config
from triptych.objectives.tiled import contrastive_rows
from triptych.tasks.finetuning.retrieval import Retrieval, RetrievalConfig
from triptych.tasks.pretraining import mplug
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig

ROWS = 8
PLAIN = {"queue_size": 0, "momentum": 0.0, "alpha": 0.0}
QUEUE = {"queue_size": 12, "momentum": 0.5, "alpha": 0.4}
TAUGHT = QUEUE | {"distill_mlm": True, "distill_prefix_lm": True}
CASES = {
    "plain": PLAIN,
    "taught": TAUGHT,
    "chunks": TAUGHT | {"chunk_size": 3},
    "tiles": TAUGHT,
    "retrieval": QUEUE,
    "retrieval chunks": QUEUE | {"chunk_size": 1},
}
WHOLE = {"chunks": "taught", "tiles": "taught", "retrieval chunks": "retrieval"}
"""What a case in chunks or tiles must equal."""


def _batch():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([5, 7, 3, 6, 4, 8, 6, 2])  # the first four are narrower
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


def _own_batch():
    """Return this process's rows, no wider than its longest text."""
    share = ROWS // world_size()
    own = {k: v[rank() * share : (rank() + 1) * share] for k, v in _batch().items()}
    width = int(own["text_mask"].sum(dim=1).max())
    wide = ("token_ids", "text_mask", "mlm_token_ids", "mlm_labels")
    return {k: v[:, :width] if k in wide else v for k, v in own.items()}


def _two_steps(name):
    """Return losses and gradients of the second step, of which the first fills the queue."""
    torch.manual_seed(0)
    model = build_model(model_config("mplug_tiny", vocab_size=64))
    if name.startswith("retrieval"):
        task = Retrieval(model, RetrievalConfig(**CASES[name]))
    else:
        task = MPLUGPretraining(model, MPLUGPretrainingConfig(**CASES[name]))
    named = [(n, p) for n, p in task.modules.named_parameters() if p.requires_grad]
    tile = {"tile": 3} if name == "tiles" else {}
    with mock.patch.object(mplug, "contrastive_rows", partial(contrastive_rows, **tile)):
        for step in range(2):
            task.modules.zero_grad()
            seed_step(0, step, rank())
            losses = task.losses(_own_batch(), active=task.objective_names)
            torch.stack(list(losses.values())).sum().backward()
            task.after_step(step + 1)
    average_gradients([p for _, p in named])
    queue = task.modules["queue"].text if "queue" in task.modules else torch.zeros(1)
    return (
        {name: all_reduce_mean(loss).item() for name, loss in losses.items()},
        {n: p.grad.clone().numpy() for n, p in named if p.grad is not None},
        queue.clone().numpy(),
    )


def _all_cases():
    return {name: _two_steps(name) for name in CASES}


def test_two_processes_equal_one_with_the_joined_batch():
    alone, together = _all_cases(), run_processes(_all_cases, 2)
    assert list(alone["plain"][0]) == ["itc", "itm", "mlm", "prefix_lm"]
    assert list(alone["retrieval"][0]) == ["itc", "itm"]
    for cases in (alone, together):
        for name, (losses, gradients, queue) in cases.items():
            expected, expected_gradients, expected_queue = alone[WHOLE.get(name, name)]
            assert losses == pytest.approx(expected, abs=1e-5), name
            assert gradients.keys() == expected_gradients.keys()
            for key, gradient in gradients.items():
                assert abs(gradient - expected_gradients[key]).max() < 1e-5, (name, key)
            assert abs(queue - expected_queue).max() < 1e-6
