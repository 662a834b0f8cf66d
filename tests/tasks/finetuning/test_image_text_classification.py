"""Classifiers of pairs: losses against plain loops, gradients, and what masks must not change."""

import math
from dataclasses import replace

import pytest
import torch

from triptych.core.errors import ConfigError
from triptych.models.families import create_model
from triptych.tasks.finetuning.base import FLAVA_HEAD, HeadConfig
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassification,
    AnswerClassificationConfig,
    ImageTextClassification,
    ImageTextClassificationConfig,
    answer_loss,
    class_loss,
)

LABELS = ("contradiction", "entailment", "neutral")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return create_model("mplug_tiny", image_size=32, vocab_size=40)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = torch.ones(3, 6, dtype=torch.bool)
    mask[1, 4:] = False
    return {
        "image": torch.randn(3, 3, 32, 32),
        "token_ids": torch.randint(5, 40, (3, 6)),
        "text_mask": mask,
        "label": torch.tensor([2, 0, 1]),
        "answer_scores": torch.tensor([[1.0, 0.3], [0.0, 0.0], [0.6, 0.9]]),
        "index": torch.tensor([4, 5, 6]),
    }


def entailment(model):
    return ImageTextClassification(model, ImageTextClassificationConfig(labels=LABELS))


def test_answer_loss_is_a_plain_loop():
    torch.manual_seed(2)
    scores, targets = torch.randn(4, 7), torch.rand(4, 7)
    total = 0.0
    for row in range(4):
        for column in range(7):
            p = 1 / (1 + math.exp(-float(scores[row, column])))
            t = float(targets[row, column])
            total -= t * math.log(p) + (1 - t) * math.log(1 - p)
    torch.testing.assert_close(answer_loss(scores, targets), torch.tensor(total / 4))


def test_class_loss_reads_labelled_rows_only():
    scores = torch.tensor([[0.0, 0.0], [1.0, 3.0], [9.0, 9.0]])
    expected = (math.log(2) + math.log(1 + math.exp(-2.0))) / 2
    loss = class_loss(scores, torch.tensor([0, 1, -100]))
    torch.testing.assert_close(loss, torch.tensor(expected))
    assert class_loss(scores, torch.full((3,), -100)) == 0


@pytest.mark.parametrize("kind", ["entailment", "vqa"])
def test_the_loss_is_that_of_the_pooled_pair_and_reaches_everything(model, batch, kind):
    if kind == "vqa":
        task = AnswerClassification(model, AnswerClassificationConfig(answers=("yes", "no")))
    else:
        task = entailment(model)
    torch.manual_seed(3)
    task.modules.eval()
    (name,) = task.objective_names
    loss = task.losses(batch, active=task.objective_names)[name]
    with torch.no_grad():
        image = model.encode_image(batch["image"])
        fused = model.fuse(image, model.encode_text(batch["token_ids"], batch["text_mask"]))
        dense, norm, _, _, out = task.modules["head"]
        hidden = torch.nn.functional.gelu(norm(dense(fused.text_tokens[:, 0])))
        scores = hidden @ out.weight.T + out.bias
    if kind == "vqa":
        expected = answer_loss(scores, batch["answer_scores"])
    else:
        expected = torch.nn.functional.cross_entropy(scores, batch["label"])
    torch.testing.assert_close(loss, expected)
    task.modules.zero_grad()
    loss.backward()
    reached = {n for n, p in task.modules.named_parameters() if p.grad is not None and p.grad.any()}
    assert {f"head.{n}" for n, _ in task.modules["head"].named_parameters()} <= reached
    for part in ("visual_encoder", "text_encoder", "fusion"):
        assert any(n.startswith(f"model.{part}") for n in reached)


def test_padding_and_labels_change_no_prediction(model, batch):
    task = entailment(model)
    task.modules.eval()
    found = task.predict(batch)
    changed = dict(batch)
    changed["token_ids"] = batch["token_ids"].clone()
    changed["token_ids"][1, 4:] = 7
    del changed["label"]
    again = task.predict(changed)
    torch.testing.assert_close(again.scores["probabilities"], found.scores["probabilities"])
    assert found.index == [4, 5, 6]
    best = found.scores["probabilities"].argmax(dim=1)
    assert found.texts == found.scores["label"] == [LABELS[number] for number in best]
    torch.testing.assert_close(found.scores["probabilities"].sum(dim=1), torch.ones(3))


def test_a_head_without_classes_is_refused(model):
    with pytest.raises(ConfigError, match="labels"):
        ImageTextClassification(model, ImageTextClassificationConfig(labels=("one",)))
    with pytest.raises(ConfigError, match="answers"):
        AnswerClassification(model, AnswerClassificationConfig())


def test_heads_as_their_papers_have_them():
    sizes = {n: tuple(p.shape) for n, p in HeadConfig().build(768, 3129).named_parameters()}
    assert sizes == {  # the released vqa_classifier.{0,1,3}
        "0.weight": (1536, 768), "0.bias": (1536,), "1.weight": (1536,), "1.bias": (1536,),
        "4.weight": (3129, 1536), "4.bias": (3129,),
    }  # fmt: skip
    flava = FLAVA_HEAD.build(768, 3)
    assert [type(layer).__name__ for layer in flava] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert flava[0].weight.shape == (768, 768)
    assert flava[2].p == 0.5
    linear = replace(FLAVA_HEAD, hidden_ratio=0.0).build(8, 3)
    assert [type(layer).__name__ for layer in linear] == ["Linear"]
