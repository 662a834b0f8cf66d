"""FLAVA's retrieval against pairs that are fused one by one, in chunks, and on two processes."""

import pytest
import torch
from torch.nn import functional as F

from tests.distributed.averaging import average_gradients
from tests.tasks.pretraining.flava_batches import make_pairs, small_config
from triptych.core.errors import ConfigError
from triptych.core.rng import seed_step
from triptych.distributed.collectives import all_reduce_mean
from triptych.distributed.env import rank, run_processes, world_size
from triptych.models.flava.model import FLAVA
from triptych.tasks.finetuning import flava_retrieval
from triptych.tasks.finetuning.flava_retrieval import FLAVARetrieval, FLAVARetrievalConfig

BOTH = frozenset({"gc", "itm"})


def make_task(padding="masked", **settings):
    torch.manual_seed(0)
    model = FLAVA(small_config(pad_attention=padding, padded_text_len=12))
    return FLAVARetrieval(model, FLAVARetrievalConfig(**settings))


def make_batch():
    batch = make_pairs()
    names = ("image", "token_ids", "text_mask", "index")
    keys = torch.arange(6)
    found = {name: batch[name] for name in names} | {"image_key": keys, "caption_key": keys + 50}
    found["image_key"] = torch.tensor([0, 0, 2, 3, 4, 5])  # two captions of one image
    return found


@pytest.mark.parametrize("padding", ["masked", "attended"])
def test_itm_is_the_mean_over_pairs_that_are_fused_one_by_one(monkeypatch, padding):
    task, batch = make_task(padding), make_batch()
    wrong = [torch.tensor([2, 3, 0, 1, 5, 4]), torch.tensor([5, 4, 3, 2, 1, 0])]
    has = [torch.tensor([1, 1, 1, 0, 1, 1]).bool(), torch.ones(6).bool()]
    drawn = iter(zip(wrong, has, strict=True))
    monkeypatch.setattr(flava_retrieval, "sample_hard_negatives", lambda *_: next(drawn))
    found = task.losses(batch, active=frozenset({"itm"}))

    def loss(image, text, label):
        images = task.model.encode_image(batch["image"][image][None])
        words, mask = batch["token_ids"][text][None], batch["text_mask"][text][None]
        fused = task.model.fuse(images, task.model.encode_text(words, mask))
        return F.cross_entropy(task.model.match_logits(fused), torch.tensor([label]))

    with torch.no_grad():
        rows = [loss(i, i, 1) for i in range(6)]
        rows += [loss(i, int(wrong[0][i]), 0) for i in range(6) if has[0][i]]
        rows += [loss(int(wrong[1][i]), i, 0) for i in range(6)]
    assert list(found) == ["itm"]
    torch.testing.assert_close(found["itm"].detach(), torch.stack(rows).mean())


def test_gc_takes_captions_of_one_image_for_positives():
    task, batch = make_task(), make_batch()
    found = task.losses(batch, active=frozenset({"gc"}))["gc"]
    with torch.no_grad():
        predicted = task.predict(batch).embeddings
        logits = predicted["image"] @ predicted["text"].T * task.model.logit_scale.exp()
        same = (batch["image_key"][:, None] == batch["image_key"]).float()
        targets = same / same.sum(dim=1, keepdim=True)
        expected = [
            -(targets * F.log_softmax(x, dim=1)).sum(dim=1).mean() for x in (logits, logits.T)
        ]
    torch.testing.assert_close(found.detach(), sum(expected) / 2)


def test_negatives_share_neither_image_nor_caption(monkeypatch):
    task, batch = make_task(), make_batch()
    drawn = []
    draw = flava_retrieval.sample_hard_negatives

    def kept(*arguments):
        drawn.append(draw(*arguments))
        return drawn[-1]

    monkeypatch.setattr(flava_retrieval, "sample_hard_negatives", kept)
    for step in range(20):
        seed_step(0, step, 0)
        task.losses(batch, active=frozenset({"itm"}))
    for wrong, has in drawn:
        assert bool(has.all())
        assert bool((batch["image_key"][wrong] != batch["image_key"]).all())
    assert len(drawn) == 40


def _one_step(chunk_size=None):
    """Return losses and gradients of one step on this process's rows, averaged over processes."""
    task, batch = make_task(chunk_size=chunk_size), make_batch()
    share = 6 // world_size()
    own = slice(rank() * share, (rank() + 1) * share)
    seed_step(0, 2, rank())
    losses = task.losses({key: value[own] for key, value in batch.items()}, active=BOTH)
    torch.stack(list(losses.values())).sum().backward()
    named = {key: p for key, p in task.modules.named_parameters() if p.requires_grad}
    average_gradients(list(named.values()))
    means = {key: float(all_reduce_mean(loss)) for key, loss in losses.items()}
    return means, {key: p.grad.numpy() for key, p in named.items() if p.grad is not None}


def test_chunks_and_processes_equal_the_joined_batch():
    losses, gradients = _one_step()
    assert list(losses) == ["gc", "itm"]
    assert not any("mim_head" in name or "mmm" in name for name in gradients)
    for other in (_one_step(2), run_processes(_one_step, 2)):
        assert other[0] == pytest.approx(losses, rel=1e-5)
        assert other[1].keys() == gradients.keys()
        for name, gradient in gradients.items():
            expected = torch.from_numpy(gradient)
            found = torch.from_numpy(other[1][name])
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3, msg=name)


def test_the_scale_is_clamped_and_settings_are_checked():
    task = make_task(max_logit_scale=1.0)
    with torch.no_grad():
        task.model.logit_scale.fill_(9.0)
    task.after_step(1)
    assert float(task.model.logit_scale.detach()) == 1.0
    for wrong in ({"chunk_size": 0}, {"max_logit_scale": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            FLAVARetrievalConfig(**wrong)
