"""The third stage: one fast pass, sound negatives, learned temperatures that stay in bounds."""

import dataclasses
import math

import pytest
import torch

from benchmarks.speed.vlmo_plain import padded, plain_losses
from triptych.core.errors import ConfigError
from triptych.core.rng import seed_step
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.model import VLMo
from triptych.objectives import IGNORE_INDEX
from triptych.tasks.pretraining.vlmo import (
    OBJECTIVES,
    VLMoPretraining,
    VLMoPretrainingConfig,
    itm_labels,
)

pytestmark = pytest.mark.usefixtures("packed_at_any_width")

MODEL = VLMoConfig(
    vocab_size=40,
    embed_dim=16,
    depth=3,
    num_heads=2,
    fused_from=2,
    image_size=32,
    max_text_tokens=12,
    proj_dim=8,
    drop_path=0.0,
    text_dropout=0.0,
)
VARIANTS = {
    "relative": (MODEL, VLMoPretrainingConfig()),
    "fused_itc": (MODEL, VLMoPretrainingConfig(fused_itc=True)),
    "absolute": (dataclasses.replace(MODEL, positions="absolute"), VLMoPretrainingConfig()),
    "shared": (dataclasses.replace(MODEL, experts="shared"), VLMoPretrainingConfig()),
}


def build(name="relative", **changes):
    torch.manual_seed(0)
    model, config = VARIANTS[name]
    task = VLMoPretraining(VLMo(model), dataclasses.replace(config, **changes))
    for parameter in task.model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return task


def make_batch(size=5, length=7, seed=1):
    torch.manual_seed(seed)
    ids = torch.randint(5, 40, (size, length))
    ids[:, 0] = 2
    lengths = torch.randint(3, length + 1, (size,))
    lengths[0] = length
    mask = torch.arange(length) < lengths[:, None]
    hidden = (torch.rand(size, length) < 0.3) & mask
    hidden[:, 0] = False
    hidden[:, 1] = True
    return {
        "image": torch.randn(size, 3, 32, 32),
        "token_ids": ids.masked_fill(~mask, 0),
        "text_mask": mask,
        "mlm_token_ids": ids.masked_fill(hidden, 4).masked_fill(~mask, 0),
        "mlm_labels": ids.masked_fill(~hidden, IGNORE_INDEX),
        "image_key": torch.arange(size),
        "caption_key": torch.arange(size) + 100,
        "index": torch.arange(size),
    }


def gradients(task, losses):
    task.modules.zero_grad()
    sum(losses.values()).backward()
    return {n: p.grad.clone() for n, p in task.modules.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", VARIANTS)
def test_one_fast_pass_equals_whole_separate_passes(name):
    task, batch = build(name), make_batch()
    seed_step(3, 0, 0)  # both draw the same negatives
    fast = task.losses(batch)
    fast_gradients = gradients(task, fast)
    seed_step(3, 0, 0)
    plain = plain_losses(task, batch, length=12)
    plain_gradients = gradients(task, plain)
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    assert fast_gradients.keys() == plain_gradients.keys()
    for key, gradient in fast_gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[key], atol=2e-5, rtol=1e-3, msg=key)


@pytest.mark.parametrize("name", VARIANTS)
def test_everything_but_what_no_loss_reads_is_trained(name):
    task = build(name)
    found = gradients(task, task.losses(make_batch()))
    frozen = {"model.mask_token"}
    if name != "fused_itc":
        frozen |= {f"model.fused_{kind}_projection.weight" for kind in ("image", "text")}
    names = {n for n, _ in task.modules.named_parameters()}
    assert names - found.keys() == frozen
    assert {n for n, p in task.modules.named_parameters() if not p.requires_grad} == frozen


def test_padding_changes_nothing():
    task, batch = build(), make_batch()
    results = []
    for given in (batch, padded(batch, 12)):
        seed_step(3, 0, 0)
        results.append(task.losses(given))
    torch.testing.assert_close(results[0], results[1], atol=1e-6, rtol=1e-6)


def test_order_of_the_batch_changes_no_contrastive_loss():
    task, batch = build("fused_itc"), make_batch()
    order = torch.tensor([3, 0, 4, 1, 2])
    other = {key: value[order] for key, value in batch.items()}
    losses = [task.losses(b, active=frozenset({"itc", "mlm"})) for b in (batch, other)]
    torch.testing.assert_close(losses[0], losses[1], atol=1e-5, rtol=1e-5)


def test_objectives_alone_equal_those_of_all():
    task, batch = build(), make_batch()
    seed_step(3, 0, 0)
    together = task.losses(batch)
    for name in OBJECTIVES:
        seed_step(3, 0, 0)
        alone = task.losses(batch, active=frozenset({name}))
        assert alone.keys() == {name}
        torch.testing.assert_close(alone[name], together[name], atol=1e-6, rtol=1e-6)


def test_itc_of_equal_embeddings_is_the_logarithm_of_the_batch():
    task, batch = build(), make_batch(4)
    batch["image"] = batch["image"][:1].expand(4, -1, -1, -1)
    batch["token_ids"] = batch["token_ids"][:1].expand(4, -1)
    batch["text_mask"] = batch["text_mask"][:1].expand(4, -1)
    found = task.losses(batch, active=frozenset({"itc"}))["itc"]
    torch.testing.assert_close(found, torch.tensor(math.log(4)), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_batch_of_one_has_no_negatives_and_no_failure():
    task, batch = build(), make_batch(1)
    losses = task.losses(batch)
    assert float(losses["itc"]) == pytest.approx(0.0, abs=1e-6)
    embedded = task.embed(
        task.model.image_inputs(batch["image"]),
        task.model.text_inputs(batch["token_ids"]),
        batch["text_mask"],
    )
    labels = itm_labels(task.hard_negatives(batch, embedded))
    assert labels.tolist() == [1, IGNORE_INDEX, IGNORE_INDEX]
    assert all(torch.isfinite(loss) for loss in losses.values())


@torch.no_grad()
def test_large_scores_cannot_make_the_draw_fail():
    task, batch = build(), make_batch()
    task.modules["state"].logit_scale.fill_(12.0)  # the released draw fails from about 100 on
    losses = task.losses(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())


@torch.no_grad()
def test_equal_images_and_captions_are_no_negatives():
    task, batch = build(), make_batch(6)
    batch["image_key"] = torch.tensor([0, 0, 1, 2, 3, 4])
    batch["caption_key"] = torch.tensor([0, 1, 2, 2, 3, 4])
    embedded = task.embed(
        task.model.image_inputs(batch["image"]),
        task.model.text_inputs(batch["token_ids"]),
        batch["text_mask"],
    )
    seed_step(0, 0, 0)
    for _ in range(50):
        found = task.hard_negatives(batch, embedded)
        images = batch["image_key"][found.image_index]
        assert bool((images != batch["image_key"]).all())
        assert bool((batch["caption_key"][found.image_index] != batch["caption_key"]).all())
        rows = (found.token_ids[:, None] == batch["token_ids"]).all(dim=2).int().argmax(dim=1)
        assert bool((batch["image_key"][rows] != batch["image_key"]).all())
        assert bool((batch["caption_key"][rows] != batch["caption_key"]).all())


@torch.no_grad()
def test_hard_negatives_follow_the_softmax_of_similarities():
    task, batch = build(temperature=0.5), make_batch(3)
    image = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), dim=1)
    embedded = task.embed(
        task.model.image_inputs(batch["image"]),
        task.model.text_inputs(batch["token_ids"]),
        batch["text_mask"],
    )
    embedded = dataclasses.replace(embedded, image=(image,), text=(image,))
    seed_step(0, 0, 0)
    drawn = torch.stack([task.hard_negatives(batch, embedded).image_index for _ in range(4000)])
    # of text 0, images 1 and 2 have cosines 0 and 1/sqrt(2), over a temperature of 0.5
    odds = math.exp(0.5**0.5 / 0.5)
    assert float((drawn[:, 0] == 2).float().mean()) == pytest.approx(odds / (1 + odds), abs=0.025)
    assert not bool((drawn == torch.arange(3)).any())


@torch.no_grad()
def test_temperatures_stay_in_bounds():
    task = build("fused_itc", min_temperature=0.02, max_temperature=0.5)
    scales = task.modules["state"]
    scales.logit_scale.fill_(9.0)
    scales.fused_logit_scale.fill_(-9.0)
    task.after_step(1)
    temperatures = [math.exp(-float(s)) for s in task.logit_scales]
    assert temperatures == pytest.approx([0.02, 0.5])


def test_the_second_contrast_needs_its_projections():
    model = VLMo(dataclasses.replace(MODEL, fused_contrast=False))
    with pytest.raises(ConfigError, match="fused_itc"):
        VLMoPretraining(model, VLMoPretrainingConfig(fused_itc=True))
    with pytest.raises(ConfigError, match="temperature"):
        VLMoPretrainingConfig(temperature=2.0)


@torch.no_grad()
def test_predictions_are_the_embeddings_of_the_dual_encoder():
    task, batch = build(), make_batch()
    found = task.predict({k: batch[k] for k in ("image", "token_ids", "text_mask", "index")})
    model = task.model
    text = model.encode_text(batch["token_ids"], batch["text_mask"])
    torch.testing.assert_close(
        found.embeddings["image"], model.embed_image(model.encode_image(batch["image"]))
    )
    torch.testing.assert_close(found.embeddings["text"], model.embed_text(text))
    assert found.index == [0, 1, 2, 3, 4]
