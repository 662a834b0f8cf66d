"""Classifiers of texts: losses by hand, and the text encoder alone is read and trained."""

import pytest
import torch

from triptych.core.errors import ConfigError
from triptych.models.families import create_model
from triptych.tasks.finetuning.base import FLAVA_HEAD
from triptych.tasks.finetuning.text_classification import (
    TextClassification,
    TextClassificationConfig,
)


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
        "token_ids": torch.randint(5, 40, (3, 6)),
        "text_mask": mask,
        "label": torch.tensor([1, 0, 1]),
        "value": torch.tensor([0.0, 2.5, 5.0]),
        "index": torch.tensor([4, 5, 6]),
    }


def task_of(model, target):
    labels = ("0", "1") if target == "class" else ()
    torch.manual_seed(2)
    task = TextClassification(model, TextClassificationConfig(labels=labels, target=target))
    task.modules.eval()
    return task


@pytest.mark.parametrize("target", ["class", "number"])
def test_the_loss_is_that_of_the_text_state(model, batch, target):
    task = task_of(model, target)
    assert task.batch_keys == {"token_ids", "text_mask", "label" if target == "class" else "value"}
    loss = task.losses(batch, active=task.objective_names)["classification"]
    with torch.no_grad():
        state = model.text_encoder(batch["token_ids"], batch["text_mask"])[:, 0]
        first, _, _, last = task.modules["head"]
        hidden = (state @ first.weight.T + first.bias).clamp(min=0)
        scores = hidden @ last.weight.T + last.bias
    if target == "class":
        expected = -torch.log_softmax(scores, dim=1)[torch.arange(3), batch["label"]].mean()
    else:
        expected = sum((float(s) - float(v)) ** 2 for s, v in zip(scores, batch["value"])) / 3
    torch.testing.assert_close(loss, torch.as_tensor(expected))
    task.modules.zero_grad()
    loss.backward()
    trained = {n.split(".")[1] for n, p in model_parameters(task) if p.grad is not None}
    assert trained == {"text_encoder"}


def model_parameters(task):
    return [(n, p) for n, p in task.modules.named_parameters() if n.startswith("model.")]


@pytest.mark.parametrize("target", ["class", "number"])
def test_padding_and_labels_change_no_prediction(model, batch, target):
    task = task_of(model, target)
    found = task.predict(batch)
    changed = {key: batch[key].clone() for key in ("token_ids", "text_mask", "index")}
    changed["token_ids"][1, 4:] = 7
    again = task.predict(changed)
    key = "positive" if target == "class" else "value"
    torch.testing.assert_close(again.scores[key], found.scores[key])
    assert found.index == [4, 5, 6]
    if target == "class":
        expected = ["1" if share > 0.5 else "0" for share in found.scores["positive"].tolist()]
        assert found.scores["label"] == expected


def test_defaults_are_flavas_and_classes_are_needed(model):
    assert TextClassificationConfig().head == FLAVA_HEAD
    with pytest.raises(ConfigError, match="labels"):
        TextClassification(model, TextClassificationConfig())
