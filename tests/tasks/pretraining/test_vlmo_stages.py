"""The first two stages: what they train, what stays bit by bit, what they predict."""

import re

import pytest
import torch
from torch.nn import functional as F

from triptych.core.errors import CapabilityError, ConfigError
from triptych.models.dvae.config import DVAEConfig
from triptych.models.dvae.model import DVAE
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.family import VLMO_FAMILY
from triptych.models.vlmo.model import VLMo
from triptych.objectives import IGNORE_INDEX
from triptych.tasks.pretraining.vlmo import VLMoPretraining, VLMoPretrainingConfig
from triptych.tasks.pretraining.vlmo_stages import (
    VLMoLanguage,
    VLMoLanguageConfig,
    VLMoVision,
    VLMoVisionConfig,
)
from triptych.train.config import OptimConfig
from triptych.train.optim import build_optimizer, group_parameters

SIZES = {"vocab_size": 40, "embed_dim": 16, "depth": 3, "num_heads": 2, "fused_from": 2}
SIZES |= {"image_size": 32, "max_text_tokens": 12, "proj_dim": 8}
SIZES |= {"drop_path": 0.0, "text_dropout": 0.0}


def build_model(**changes):
    torch.manual_seed(0)
    model = VLMo(VLMoConfig(**(SIZES | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def build_tokenizer(image_size=16):
    return DVAE(DVAEConfig(image_size=image_size, num_codes=11, hidden_dim=8, code_dim=4))


def vision(**changes):
    return VLMoVision(build_model(**changes), VLMoVisionConfig(), build_tokenizer())


def language(**changes):
    return VLMoLanguage(build_model(**changes), VLMoLanguageConfig())


def image_batch(size=3):
    torch.manual_seed(1)
    hidden = torch.zeros(size, 4, dtype=torch.bool)
    hidden[:, 1] = True
    hidden[0, 3] = True
    return {
        "image": torch.randn(size, 3, 32, 32),
        "codebook_image": torch.rand(size, 3, 16, 16) * 0.8 + 0.1,
        "hidden_patches": hidden,
        "index": torch.arange(size),
    }


def text_batch(size=4, length=8):
    torch.manual_seed(2)
    ids = torch.randint(5, 40, (size, length))
    mask = torch.arange(length) < torch.tensor([8, 5, 3, 6])[:size, None]
    hidden = torch.zeros_like(mask)
    hidden[:, 2] = True
    hidden[0, 5] = True
    return {
        "token_ids": ids,
        "mlm_token_ids": ids.masked_fill(hidden, 4),
        "mlm_labels": ids.masked_fill(~hidden, IGNORE_INDEX),
        "text_mask": mask,
        "index": torch.arange(size),
    }


def after_steps(task, batch, steps=3):
    """Return the state before and after some steps of AdamW with weight decay."""
    optim = OptimConfig(learning_rate=1e-2, weight_decay=0.1)
    named, is_vision = task.modules.named_parameters(), VLMO_FAMILY.is_vision_parameter
    optimizer = build_optimizer(group_parameters(named, optim, is_vision), optim)
    before = {k: t.clone() for k, t in task.modules.state_dict().items()}
    task.modules.train()
    for _ in range(steps):
        optimizer.zero_grad()
        sum(task.losses(batch, active=task.objective_names).values()).backward()
        optimizer.step()
    return before, task.modules.state_dict()


LANGUAGE_FROZEN = (
    r"model\.(patch|class|position)_embedding.*|model\.mask_token|model\.pooler\..*"
    r"|model\.(fused_)?(image|text)_projection\..*|model\.itm_head\..*"
    r"|model\.trunk\.blocks\.\d+\.((attention|mlp)_scale|attention(_norm)?\..*)"
    r"|model\.trunk\.blocks\.\d+\.experts\.(image|fused)\..*"
)


@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_the_language_stage_moves_language_alone_bit_by_bit(positions):
    task = language(positions=positions)
    before, after = after_steps(task, text_batch())
    for name, old in before.items():
        new = after[name]
        frozen = re.fullmatch(LANGUAGE_FROZEN, name) is not None
        assert torch.equal(old, new) == frozen, name
    # of shared tables, the rows of images stay as they are: no gradient, no decay
    types = "model.modality_embedding.weight"
    assert torch.equal(before[types][1:], after[types][1:])
    assert not torch.equal(before[types][0], after[types][0])
    if positions == "relative":
        table = "model.trunk.relative_positions.table"
        changed = (before[table] != after[table]).any(dim=1).nonzero().flatten()
        rows_of_images = (2 * 2 - 1) ** 2 + 3 + 2
        assert int(changed.min()) >= rows_of_images


def test_the_vision_stage_moves_what_an_image_goes_through():
    task = vision()
    before, after = after_steps(task, image_batch())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    text = r"model\.(text_embedding|mlm_head|itm_head|pooler|.*_projection)\..*"
    others = rf"{text}|.*\.experts\.(text|fused)\..*|image_tokenizer\..*"
    for name in before:
        assert (name in moved) == (re.fullmatch(others, name) is None), name
    table = "model.trunk.relative_positions.table"
    changed = (before[table] != after[table]).any(dim=1).nonzero().flatten()
    assert int(changed.max()) < (2 * 2 - 1) ** 2 + 3


def test_the_third_stage_frees_what_the_second_froze():
    task = language()
    third = VLMoPretraining(task.model, VLMoPretrainingConfig(fused_itc=True))
    frozen = [n for n, p in third.modules.named_parameters() if not p.requires_grad]
    assert frozen == ["model.mask_token"]


@torch.no_grad()
def test_mim_equals_a_whole_pass_over_all_patches():
    task, batch = vision(), image_batch()
    task.modules.eval()
    found = task.losses(batch, active=frozenset({"mim"}))["mim"]
    hidden = batch["hidden_patches"]
    codes = task.modules["image_tokenizer"].encoder(batch["codebook_image"]).argmax(1).flatten(1)
    states = task.model.encode_image(batch["image"], hidden_patches=hidden).tokens[:, 1:]
    logits = task.modules["mim_head"](states)
    expected = F.cross_entropy(logits[hidden], codes[hidden])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_seen_patches_and_hidden_pixels_change_no_target():
    task, batch = vision(), image_batch()
    logits, codes = task.code_logits(batch)
    other = batch["image"].clone()
    other[:, :, :16, 16:] += 1.0  # patch 1, hidden in every image
    again, same = task.code_logits(batch | {"image": other})
    assert torch.equal(logits, again)
    assert torch.equal(codes, same)
    assert len(codes) == int(batch["hidden_patches"].sum())


@torch.no_grad()
def test_language_mlm_equals_a_whole_pass_over_all_words():
    task, batch = language(), text_batch()
    found = task.losses(batch, active=frozenset({"mlm"}))["mlm"]
    states = task.model.encode_text(batch["mlm_token_ids"], batch["text_mask"]).tokens
    logits = task.model.word_logits(states)
    expected = F.cross_entropy(logits.flatten(0, 1), batch["mlm_labels"].flatten())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_predictions_of_stages_are_cls_states():
    images, texts = image_batch(), text_batch()
    task = vision()
    found = task.predict(images).embeddings["image"]
    assert torch.equal(found, task.model.encode_image(images["image"]).tokens[:, 0])
    task = language()
    found = task.predict(texts).embeddings["text"]
    expected = task.model.encode_text(texts["token_ids"], texts["text_mask"]).tokens[:, 0]
    assert torch.equal(found, expected)


def test_what_does_not_fit_is_refused():
    with pytest.raises(CapabilityError, match="mask_token"):
        vision(mask_token=False)
    with pytest.raises(ConfigError, match=r"--model\.image-size 16"):
        VLMoVision(build_model(), VLMoVisionConfig(), build_tokenizer(24))
