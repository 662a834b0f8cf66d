"""The demo's images with the models' outputs, right and wrong alike."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import cast

import numpy as np
import torch

from triptych.data.images import decode_image
from triptych.data.records import Record
from triptych.evaluation.boxes import iou_xyxy, xywh_to_xyxy
from triptych.evaluation.vqa import vqa_accuracy
from triptych.report.data import Answer, Box, Grounding, ImageCard, Neighbour
from triptych.scenes.layout import SceneFiles
from triptych.scenes.scoring import count_objects_named
from triptych.serving.engine import load
from triptych.workflows.demo import DemoResult, scene_objects

NUM_NEIGHBOURS = 5


def image_cards(result: DemoResult, *, seed: int, count: int) -> list[ImageCard]:
    """Choose images of the test split at random, and collect the outputs for each.

    Args:
        result: A finished demo.
        seed: Seed of the choice.
        count: Number of images.
    """
    records = result.records["caption", "test"]
    captions = result.predictions["caption", "test"]
    objects = scene_objects(records, SceneFiles(result.folder / "data"), "test")
    answers = _answers(result)
    boxes = _boxes(result)
    chosen = np.random.default_rng(seed).permutation(len(records))[:count]
    neighbours = _neighbours(result, records, [int(i) for i in chosen])
    cards = []
    for i in map(int, chosen):
        record = records[i]
        caption = str(captions[i])
        name = _image(record)
        cards.append(
            ImageCard(
                image=Path(name),
                caption_truth=record.caption or "",
                caption_model=caption,
                caption_right_objects=(count_objects_named(caption, objects[i]), len(objects[i])),
                questions=tuple(answers[name]),
                phrases=tuple(boxes[name]),
                neighbours=neighbours[i],
            )
        )
    return cards


def _image(record: Record) -> str:
    assert record.image is not None
    return record.image.path


def _answers(result: DemoResult) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = defaultdict(list)
    for i, record in enumerate(result.records["vqa", "test"]):
        answer = str(result.predictions["vqa", "test"][i])
        right = vqa_accuracy(answer, record.answers) == 1.0
        found[_image(record)].append(
            Answer(record.question or "", answer, record.answers[0], right)
        )
    return found


def _boxes(result: DemoResult) -> dict[str, list[Grounding]]:
    found: dict[str, list[Grounding]] = defaultdict(list)
    for i, record in enumerate(result.records["grounding", "test"]):
        predicted = torch.tensor([result.predictions["grounding", "test"][i]], dtype=torch.float64)
        truth = xywh_to_xyxy(torch.tensor([record.box], dtype=torch.float64))
        boxes = [cast(Box, tuple(box[0].tolist())) for box in (predicted, truth)]
        iou = float(iou_xyxy(predicted, truth)[0])
        found[_image(record)].append(Grounding(record.phrase or "", boxes[0], boxes[1], iou))
    return found


def _neighbours(
    result: DemoResult, records: list[Record], chosen: list[int]
) -> dict[int, tuple[Neighbour, ...]]:
    """Retrieve the nearest images of each chosen caption among the whole split."""
    model = load(result.model("pretrain"))
    images = model.embed_images([Path(_image(record)) for record in records])
    texts = model.embed_texts([records[i].caption or "" for i in chosen])
    order = np.argsort(-(texts @ images.T), axis=1)[:, :NUM_NEIGHBOURS]
    return {
        i: tuple(
            Neighbour(
                decode_image(Path(_image(records[j]))), records[j].caption == records[i].caption
            )
            for j in map(int, row)
        )
        for i, row in zip(chosen, order, strict=True)
    }
