"""NLVR2 against one pair at a time."""

import math

import pytest
import torch

from tests.tasks.finetuning.tiny import IMAGE_SIZE, images, tiny_model, tiny_tokenizer
from triptych.core.config import from_dict, kinds_of, to_dict
from triptych.core.errors import ConfigError
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.tasks.finetuning.nlvr2 import NLVR2, NLVR2Config

STATEMENTS = ["a red star", "is it a blue circle ?", "what is it"]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture(scope="module")
def task(tokenizer):
    torch.manual_seed(3)
    found = NLVR2(tiny_model(tokenizer), NLVR2Config())
    with torch.no_grad():
        for parameter in found.modules["head"].parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return found


def _batch(tokenizer):
    ids, mask = tokenizer.pad(tokenizer.encode(STATEMENTS, max_tokens=16))
    pairs = images(6).view(3, 2, 3, IMAGE_SIZE, IMAGE_SIZE)
    return {
        "image": pairs,
        "token_ids": ids,
        "text_mask": mask,
        "label": torch.tensor([1, 0, -100]),
        "index": torch.tensor([7, 5, 2]),
    }


@torch.no_grad()
def _plain_scores(task, tokenizer, batch):
    model, head = task.model, task.modules["head"]
    rows = []
    for pair, statement in zip(batch["image"], STATEMENTS, strict=True):
        ids = torch.tensor(tokenizer.encode([statement], max_tokens=16))
        mask = torch.ones_like(ids, dtype=torch.bool)
        states = torch.stack([model.encode_image(image[None]).tokens for image in pair])
        fused = head.pairs(model.fusion, states, model.encode_text(ids, mask).tokens, mask)
        rows.append(head.classifier(fused[0, 0]).tolist())
    return rows


def test_the_loss_is_cross_entropy_on_what_is_labelled(task, tokenizer):
    batch = _batch(tokenizer)
    scores = _plain_scores(task, tokenizer, batch)
    losses = [
        math.log(sum(map(math.exp, row))) - row[label]
        for row, label in zip(scores, (1, 0), strict=False)
    ]
    found = task.losses(batch, active=frozenset({"classification"}))
    assert found["classification"].item() == pytest.approx(sum(losses) / 2, abs=1e-5)


def test_predictions_name_the_likelier_truth(task, tokenizer):
    batch = _batch(tokenizer)
    batch.pop("label")
    scores = _plain_scores(task, tokenizer, batch)
    found = task.predict(batch)
    assert found.index == [7, 5, 2]
    assert found.scores["label"] == ["true" if yes > no else "false" for no, yes in scores]
    for (no, yes), shares in zip(scores, found.scores["probabilities"].tolist(), strict=True):
        assert shares[1] == pytest.approx(1 / (1 + math.exp(no - yes)), abs=1e-5)


@pytest.mark.parametrize("fields", [{"swap_probability": 1.5}, {"max_text_tokens": 2}])
def test_settings_out_of_range(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        NLVR2Config(**fields)


def test_settings_of_earlier_versions_are_read():
    plain = {"kind": "vlmo_nlvr2", "max_text_tokens": 30, "swap_probability": 0.0}
    assert "vlmo_nlvr2" in kinds_of(NLVR2Config)
    run = to_dict(build_recipe("vlmo.nlvr2", "smoke"))
    old = from_dict(RunConfig, run | {"task": plain})
    assert old.task == NLVR2Config(max_text_tokens=30, swap_probability=0.0)
