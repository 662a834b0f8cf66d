import json
from pathlib import Path

import pytest
import torch

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import Predictions
from triptych.evaluation import metrics

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def values_of(metric, *batches):
    for batch in batches:
        metric.update(batch)
    return {value.name: value for value in metric.compute()}


def test_vqa_metric_equals_the_official_overall_number():
    golden = json.loads((GOLDEN / "vqa_accuracy.json").read_text())
    items = golden["items"]
    metric = metrics.VQAMetric({i: item["answers"] for i, item in enumerate(items)})
    order = list(range(399, -1, -1))
    batches = [
        Predictions(index=part, texts=[items[i]["prediction"] for i in part])
        for part in (order[:150], order[150:])
    ]
    value = values_of(metric, *batches)["vqa"]
    assert 100 * value.value == pytest.approx(golden["overall"], abs=0.005)
    assert value.num_items == 400
    assert value.low < value.value < value.high
    assert "official script" in value.protocol
    assert "excluded (" not in value.protocol
    assert "not all questions have its 10 answers" not in value.protocol
    assert "; generated answers." in value.protocol


def test_vqa_metric_splits_by_type_and_says_what_is_missing():
    answers = {0: ["red"], 1: ["2"], 2: ["blue"], 3: ["green"]}
    types = {0: "color", 1: "count", 2: "color", 3: "color"}
    metric = metrics.VQAMetric(answers, types)
    values = values_of(metric, Predictions(index=[0, 1, 2], texts=["red", "3", "red"]))
    assert {name: value.value for name, value in values.items()} == {
        "vqa": pytest.approx(1 / 3),
        "vqa/color": 0.5,
        "vqa/count": 0.0,
    }
    assert "1 of 4 samples skipped" in values["vqa"].protocol
    assert "not all questions have its 10 answers" in values["vqa"].protocol
    from_list = metrics.VQAMetric(answers, types, from_list=True)
    found = values_of(from_list, Predictions(index=[0], texts=["red"]))
    assert "answers from a closed list" in found["vqa"].protocol


def test_caption_metric_equals_pycocoevalcap():
    golden = json.loads((GOLDEN / "caption_metrics.json").read_text())
    items, corpus = golden["items"], golden["corpus"]
    metric = metrics.CaptionMetric({i: item["references"] for i, item in enumerate(items)})
    texts = [item["candidate"] for item in items]
    values = values_of(metric, Predictions(index=range(len(items)), texts=texts))
    for n in range(4):
        assert values[f"bleu_{n + 1}"].value == pytest.approx(corpus["bleu"][n], abs=1e-6)
    assert values["rouge_l"].value == pytest.approx(corpus["rouge_l"], abs=1e-6)
    assert values["cider"].value == pytest.approx(corpus["cider"], abs=1e-6)
    assert all(value.low < value.value < value.high for value in values.values())


def test_captions_are_scored_by_domain_as_if_each_were_all():
    golden = json.loads((GOLDEN / "caption_metrics.json").read_text())["items"]
    domains = {i: ("in-domain", "out-domain", None)[i % 3] for i in range(len(golden))}
    references = {i: item["references"] for i, item in enumerate(golden)}
    texts = [item["candidate"] for item in golden]
    metric = metrics.CaptionMetric(references, domains=domains)
    values = values_of(metric, Predictions(index=range(len(golden)), texts=texts))
    whole = values_of(
        metrics.CaptionMetric(references), Predictions(index=range(len(golden)), texts=texts)
    )
    assert {name: value for name, value in values.items() if "/" not in name} == whole
    assert {name.partition("/")[2] for name in values} == {"", "in-domain", "out-domain"}
    for domain in ("in-domain", "out-domain"):
        chosen = [i for i in references if domains[i] == domain]
        alone = metrics.CaptionMetric({i: references[i] for i in chosen})
        expected = values_of(alone, Predictions(index=chosen, texts=[texts[i] for i in chosen]))
        for name, value in expected.items():
            found = values[f"{name}/{domain}"]
            assert (found.value, found.low, found.high) == (value.value, value.low, value.high)
            assert f"Domain: {domain}." in found.protocol and found.num_items == len(chosen)


def test_box_metric_takes_corner_and_size_references():
    metric = metrics.BoxMetric({5: (0, 0, 4, 2), 6: (10, 10, 10, 10)})
    predicted = torch.tensor([[10.0, 10, 20, 20], [3.0, 0, 4, 2]])
    values = values_of(metric, Predictions(index=[6, 5], boxes_xyxy=predicted))
    assert values["grounding"].value == 0.5
    assert values["grounding_iou"].value == pytest.approx((1 + 0.25) / 2)


def test_classification_metric_by_class():
    metric = metrics.ClassificationMetric({0: 1, 1: 1, 2: 0}, name="nlvr2")
    values = values_of(
        metric, Predictions(index=[0, 1, 2], scores={"label": torch.tensor([1, 0, 0])})
    )
    assert {name: value.value for name, value in values.items()} == {
        "nlvr2": pytest.approx(2 / 3),
        "nlvr2/0": 1.0,
        "nlvr2/1": 0.5,
    }


def test_the_majority_is_that_of_the_scored_items():
    labels = {0: "yes", 1: "no", 2: "no", 3: "yes", 4: "no", 5: "yes"}
    metric = metrics.ClassificationMetric(labels, "ve", with_majority=True)
    guesses = Predictions(index=[0, 1, 2, 4, 3], scores={"label": ["yes"] * 5})
    values = values_of(metric, guesses)  # "no" is right of 3 of the 5; sample 5 could not be read
    assert values["ve"].value == pytest.approx(2 / 5)
    majority = values["ve_majority"]
    assert majority.value == pytest.approx(3 / 5)
    assert majority.num_items == 5 and majority.low < 3 / 5 < majority.high
    assert "most frequent label of these samples, no" in majority.protocol


def retrieval_batches():
    # Two images with two captions each; the second caption of image q points to p.
    image = torch.tensor([[1.0, 0], [1.0, 0], [0, 1.0], [0, 1.0]])
    text = torch.tensor([[1.0, 0], [0.6, 0.5], [0, 0.8], [0.7, 0.1]])
    return [
        Predictions(index=part, embeddings={"image": image[part], "text": text[part]})
        for part in ([3, 0], [2, 1])
    ]


def test_retrieval_metric_both_ways():
    values = values_of(metrics.RetrievalMetric(list("ppqq"), list("abcd")), *retrieval_batches())
    assert values["i2t_r1"].value == 1.0
    assert values["t2i_r1"].value == 0.75
    assert (values["i2t_r1"].num_items, values["t2i_r1"].num_items) == (2, 4)
    assert "ITC" in values["t2i_r1"].protocol
    recalls = {f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert set(values) == {*recalls, "r_mean"}
    assert values["r_mean"].value == pytest.approx((5 + 0.75) / 6)  # five recalls are 1
    assert values["r_mean"].low <= values["r_mean"].value <= values["r_mean"].high == 1.0


def test_retrieval_metric_counts_a_shared_caption_as_right():
    # The last caption is the same words as the first, so image p is right for it, too.
    values = values_of(metrics.RetrievalMetric(list("ppqq"), list("abca")), *retrieval_batches())
    assert values["t2i_r1"].value == 1.0


def test_second_stage_gets_dataset_positions():
    asked = set()

    def score_pairs(image_positions, text_positions):
        pairs = list(zip(image_positions.tolist(), text_positions.tolist(), strict=True))
        asked.update(pairs)
        # Right for all but the first caption of each image.
        return torch.tensor([float((i < 2) == (t < 2)) if t % 2 else -1.0 for i, t in pairs])

    stage = metrics.SecondStage(score_pairs=score_pairs, topk=4)
    metric = metrics.RetrievalMetric(list("ppqq"), list("abcd"), stage)
    values = values_of(metric, *retrieval_batches())
    assert asked == {(i, t) for i in (0, 2) for t in range(4)}
    assert values["i2t_r1_itm"].value == 1.0
    assert values["t2i_r1_itm"].value == 0.5
    assert values["t2i_r1"].value == 0.75
    assert "first 4 by ITC, ranked by ITM" in values["t2i_r1_itm"].protocol


def test_wrong_predictions_are_named():
    metric = metrics.VQAMetric({0: ["a"]})
    with pytest.raises(CapabilityError, match="no text"):
        metric.update(Predictions(index=[0]))
    with pytest.raises(DataError, match="no prediction"):
        metric.compute()
    metric.update(Predictions(index=[0], texts=["a"]))
    with pytest.raises(DataError, match="sample 0 was predicted twice"):
        metric.update(Predictions(index=[0], texts=["a"]))
    metric.update(Predictions(index=[7], texts=["a"]))
    with pytest.raises(DataError, match="sample 7 has no reference"):
        metric.compute()
    with pytest.raises(CapabilityError, match="text embeddings"):
        metrics.RetrievalMetric(["a"], ["b"]).update(
            Predictions(index=[0], embeddings={"image": torch.zeros(1, 2)})
        )
    with pytest.raises(CapabilityError, match="no boxes"):
        metrics.BoxMetric({}).update(Predictions(index=[0]))
    with pytest.raises(CapabilityError, match="no label"):
        metrics.ClassificationMetric({}).update(Predictions(index=[0]))


def test_folds_of_images_are_searched_apart():
    """Four images of two captions; each caption's best image is right only within its half."""
    image = torch.eye(4).repeat_interleave(2, dim=0)
    text = torch.tensor(
        [
            [1.0, 0, 2.0, 0], [1.0, 0, 0, 0],  # image 0; the first prefers image 2
            [0, 1.0, 0, 2.0], [1.0, 0.5, 0, 0],  # image 1; the second prefers image 0
            [0, 2.0, 1.0, 0], [0, 0, 1.0, 0],
            [0, 0, 0, 1.0], [3.0, 0, 0, 1.0],
        ]
    )  # fmt: skip
    batch = Predictions(index=list(range(8)), embeddings={"image": image, "text": text})
    keys = [f"p{i // 2}" for i in range(8)]
    captions = [f"c{i}" for i in range(8)]
    whole = values_of(metrics.RetrievalMetric(keys, captions), batch)
    halves = values_of(metrics.RetrievalMetric(keys, captions, folds=2), batch)
    assert whole["t2i_r1"].value == 3 / 8
    assert halves["t2i_r1"].value == 7 / 8
    assert halves["t2i_r1"].num_items == 8
    assert "4 images, 8 captions" in halves["t2i_r1"].protocol
    assert "Mean over 2 folds of the images" in halves["t2i_r1"].protocol
    assert "folds" not in whole["t2i_r1"].protocol
    asked = set()

    def score_pairs(image_positions, text_positions):
        asked.update(zip((image_positions // 2).tolist(), (text_positions // 2).tolist()))
        return torch.zeros(len(image_positions))

    stage = metrics.SecondStage(score_pairs=score_pairs, topk=8)
    values_of(metrics.RetrievalMetric(keys, captions, stage, folds=2), batch)
    assert asked == {(i, t) for i in range(4) for t in range(4) if i // 2 == t // 2}
