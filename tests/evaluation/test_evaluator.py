import json

import pytest
import torch
from torch import nn

from triptych.core.outputs import MetricValue, Predictions
from triptych.evaluation.evaluator import evaluate, to_json
from triptych.evaluation.metrics import BoxMetric, VQAMetric


class EchoTask:
    """Answers with the number in the image; in training mode it would answer "train"."""

    def __init__(self):
        self.modules = nn.ModuleDict({"model": nn.Sequential(nn.Dropout(), nn.Linear(1, 1))})
        self.modules["model"][1].eval()

    def predict(self, batch):
        assert torch.is_inference_mode_enabled()
        training = any(module.training for module in self.modules.modules())
        values = batch["image"].tolist()
        texts = ["train" if training else str(int(value)) for value in values]
        boxes = batch["image"][:, None] * torch.ones(4)
        return Predictions(index=batch["index"].tolist(), texts=texts, boxes_xyxy=boxes)


def loader():
    yield {"image": torch.tensor([4.0, 5.0]), "index": torch.tensor([0, 1])}
    yield {"image": torch.tensor([6.0]), "index": torch.tensor([2])}


def test_every_metric_sees_every_batch():
    task, done = EchoTask(), []
    values = evaluate(
        task,
        loader(),
        [
            VQAMetric({0: ["4"], 1: ["7"], 2: ["6"]}),
            BoxMetric(dict.fromkeys(range(3), (0, 0, 1, 1))),
        ],
        device=torch.device("cpu"),
        progress=done.append,
    )
    assert [value.name for value in values] == ["vqa", "grounding", "grounding_iou"]
    assert values[0].value == pytest.approx(2 / 3)
    assert values[1].value == 0.0
    assert done == [2, 3]


def test_the_mode_of_each_module_is_restored():
    task = EchoTask()
    before = [module.training for module in task.modules.modules()]
    evaluate(task, loader(), [VQAMetric({i: ["4"] for i in range(3)})])
    assert [module.training for module in task.modules.modules()] == before
    assert before.count(False) == 1


def test_results_go_to_json_and_back():
    value = MetricValue(name="vqa", value=0.5, low=0.4, high=0.6, num_items=9, protocol="P.")
    assert json.loads(json.dumps(to_json([value]))) == {
        "vqa": {"value": 0.5, "low": 0.4, "high": 0.6, "num_items": 9, "protocol": "P."}
    }
