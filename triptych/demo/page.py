"""The report of a demo, and its `results.json`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from triptych.core.config import to_dict
from triptych.core.machine import current_commit, describe_machine
from triptych.data.images import decode_image
from triptych.data.records import Record
from triptych.data.skips import ImageProblem
from triptych.demo.own_data import HELD_OUT
from triptych.demo.scoring import scene_objects
from triptych.demo.state import Demo, Score
from triptych.evaluation.boxes import iou_xyxy, xywh_to_xyxy
from triptych.evaluation.vqa import vqa_accuracy
from triptych.index.search import ImageIndex, open_index
from triptych.report.data import (
    Answer,
    BeforeAfter,
    Box,
    Change,
    Curve,
    Grounding,
    ImageCard,
    Neighbour,
    ReportData,
    ScoreRow,
    Search,
)
from triptych.scenes.language import count_objects_named
from triptych.scenes.layout import SceneFiles
from triptych.workflows.guard import read_before_after

TARGETS = {
    "i2t_r1": 0.80,
    "t2i_r1": 0.80,
    "i2t_r1_itm": 0.85,
    "t2i_r1_itm": 0.85,
    "caption_objects": 0.60,
    "vqa": 0.70,
    "grounding": 0.50,
}
"""What the whole tiny demo must reach on the test split: bars of benchmarks/pages/foundation.py."""

NUM_IMAGES = 12
NUM_NEIGHBOURS = 5
NUM_SEARCHES = 4


@cache
def whole_demo() -> Mapping[str, Any]:
    """Return what the whole tiny demo reached: minutes, machine, commit, and `figures` by key.

    `python -m benchmarks.pages.results_page` writes it from benchmarks/results.
    """
    text = (files("triptych.demo") / "whole_demo.json").read_text("utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def report_data(demo: Demo, elapsed_s: Callable[[], float]) -> ReportData:
    """Return the report of a finished demo.

    Args:
        demo: The demo.
        elapsed_s: Returns the seconds that it has taken; asked last.
    """
    index = open_index(demo.index)
    images = image_cards(demo, index, seed=demo.settings.seed, count=NUM_IMAGES)
    searches = search_index(demo, index, seed=demo.settings.seed)
    own = demo.settings.data
    what = "the built-in scenes" if own is None else Path(own.path).name
    return ReportData(
        title=f"Triptych demo: mPLUG on {what}",
        scores=tuple(score_rows(demo)),
        before_after=tuple(before_after(demo)),
        curves=tuple(
            Curve(title=stage, metrics_jsonl=demo.run(stage) / "metrics.jsonl")
            for stage in demo.configs
        ),
        images=tuple(images),
        searches=tuple(searches),
        configuration={
            stage: (demo.run(stage) / "config.yaml").read_text(encoding="utf-8")
            for stage in demo.configs
        },
        machine=describe_machine(),
        commit=current_commit(),
        times_s=demo.times_s,
        commands=(demo.settings.command(),),
        summary_lines=tuple(summary_lines(demo, elapsed_s() / 60)),
    )


def summary_lines(demo: Demo, minutes: float) -> list[str]:
    """Return what was done, how much of the whole demo that is, and what more would give."""
    if demo.settings.data is not None:
        return [
            "One command checked your data, trained a tokenizer, pre-trained a small mPLUG with "
            f"four objectives and measured it, in {minutes:.1f} minutes.",
            *demo.notes,
        ]
    lines = [
        "One command wrote the scenes, trained the tokenizer, pre-trained a small mPLUG with four "
        f"objectives, fine-tuned it twice and measured it, in {minutes:.1f} minutes.",
        "Every number below is from images that training never saw. Each scene of the "
        "compositional split holds at least one pair of colour and shape that never occurs in "
        "training.",
    ]
    if demo.is_full:
        return lines
    size, full = demo.size, demo.settings.size
    of = "; ".join(
        f"{name} {size.steps(stage):,} of {full.steps(stage):,} steps"
        for stage, name in (
            ("pretrain", "pre-training"),
            ("vqa", "questions"),
            ("grounding", "phrases"),
        )
    )
    lines.append(
        f"This was a shortened run, planned for {demo.settings.minutes:g} minutes on this machine: "
        f"{size.num_images:,} of {full.num_images:,} scenes; {of}. "
        f"`triptych demo --scale {demo.settings.scale}` does all of it."
    )
    if _has_whole(demo):
        whole = whole_demo()
        lines.append(
            f"The column “whole demo” shows what that gave on {full.num_test} images a split: "
            f"in {whole['minutes']:g} minutes on {whole['cores']} cores of {whole['CPU']} "
            f"({whole['bf16']}), at commit {whole['commit'][:12]}."
        )
    return lines


def _has_whole(demo: Demo) -> bool:
    """Return whether a demo is a part of the one whose results are known."""
    return demo.settings.data is None and demo.settings.scale == "tiny" and not demo.is_full


def score_rows(demo: Demo) -> list[ScoreRow]:
    """Return the scores that are shown."""
    return [score_row(score, demo) for score in demo.scores if _is_shown(score)]


def score_row(score: Score, demo: Demo) -> ScoreRow:
    """Return a score as the report shows it: targets are those of the whole tiny demo."""
    is_tiny = demo.settings.data is None and demo.settings.scale == "tiny"
    return ScoreRow(
        task=score.task,
        metric=score.value.name,
        split=score.split,
        value=score.value.value,
        low=score.value.low,
        high=score.value.high,
        chance=score.chance,
        blind=score.blind,
        target=TARGETS.get(score.key) if is_tiny and demo.is_full else None,
        whole=whole_demo()["figures"].get(score.key) if _has_whole(demo) else None,
        is_main=score.key in TARGETS,
        protocol=score.value.protocol,
    )


def results(demo: Demo, minutes: float) -> dict[str, Any]:
    """Return the content of `results.json`."""
    command = demo.settings.command()  # where it writes changes no number
    figures: dict[str, dict[str, Any]] = {
        "demo_minutes": {"value": round(minutes, 2), "command": command}
    }
    for score in demo.scores:
        figures[score.key] = {
            "value": score.value.value,
            "command": command,
            "low": score.value.low,
            "high": score.value.high,
            "num_items": score.value.num_items,
            "chance": score.chance,
            "blind": score.blind,
            "protocol": score.value.protocol,
        }
        if score.key.endswith("vqa") and score.blind is not None:
            figures[f"{score.key}_blind"] = {
                "value": score.blind,
                "command": command,
                "num_items": score.value.num_items,
                "protocol": "VQA accuracy of the training data's most frequent answer to questions "
                "of the same type, on the same questions.",
            }
    return {
        "machine": describe_machine(),
        "commit": current_commit(),
        "scale": demo.settings.scale,
        "minutes": demo.settings.minutes,
        "whole": demo.is_full,
        "times_s": {stage: round(seconds, 1) for stage, seconds in demo.times_s.items()},
        "config": {stage: to_dict(config) for stage, config in demo.configs.items()},
        "figures": figures,
    }


def before_after(demo: Demo) -> list[BeforeAfter]:
    """Return what each fine-tuning did to the retrieval of the pre-trained model."""
    found = []
    for stage in demo.configs:
        rows, notes = read_before_after(demo.run(stage))
        if rows or notes:
            changes = tuple(Change(row.data, row.images, row.before, row.after) for row in rows)
            found.append(BeforeAfter(stage=stage, changes=changes, notes=tuple(notes)))
    return found


def _is_shown(score: Score) -> bool:
    """Keep the table short: no recall at 5 and 10, no BLEU-1 to 3."""
    name = score.value.name
    return (
        not name.startswith(("bleu_1", "bleu_2", "bleu_3"))
        and "_r5" not in name
        and ("_r10" not in name)
    )


def image_cards(demo: Demo, index: ImageIndex, *, seed: int, count: int) -> list[ImageCard]:
    """Choose images that training never saw at random, and collect the outputs for each.

    Args:
        demo: A finished demo.
        index: Its index, for the images that are nearest to a caption.
        seed: Seed of the choice.
        count: Number of images.
    """
    split = "test" if demo.settings.data is None else HELD_OUT
    records = demo.records["caption", split]
    captions = demo.predictions["caption", split]
    answers, boxes = _answers(demo), _boxes(demo)
    order = np.random.default_rng(seed).permutation(len(records))
    chosen = [i for i in map(int, order) if i in captions][:count]
    objects = {}
    if demo.settings.data is None:
        found = scene_objects(records, SceneFiles(demo.folder / "data"), "test")
        objects = {i: found[i] for i in chosen}
    cards = []
    for i in chosen:
        record, caption = records[i], str(captions[i])
        right = None
        if i in objects:
            right = (count_objects_named(caption, objects[i]), len(objects[i]))
        assert record.image is not None
        name = record.image.path
        cards.append(
            ImageCard(
                image=decode_image(record.image),
                caption_truth=record.caption or "",
                caption_model=caption,
                caption_right_objects=right,
                questions=tuple(answers[name]),
                phrases=tuple(boxes[name]),
                neighbours=_nearest(index, record.caption or ""),
            )
        )
    return cards


def _image(record: Record) -> str:
    assert record.image is not None
    return record.image.path


def _answers(demo: Demo) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = defaultdict(list)
    for i, record in enumerate(demo.records.get(("vqa", "test"), ())):
        answer = str(demo.predictions["vqa", "test"][i])
        right = vqa_accuracy(answer, record.answers) == 1.0
        found[_image(record)].append(
            Answer(record.question or "", answer, record.answers[0], right)
        )
    return found


def _boxes(demo: Demo) -> dict[str, list[Grounding]]:
    found: dict[str, list[Grounding]] = defaultdict(list)
    for i, record in enumerate(demo.records.get(("grounding", "test"), ())):
        predicted = torch.tensor([demo.predictions["grounding", "test"][i]], dtype=torch.float64)
        truth = xywh_to_xyxy(torch.tensor([record.box], dtype=torch.float64))
        boxes = [cast(Box, tuple(box[0].tolist())) for box in (predicted, truth)]
        iou = float(iou_xyxy(predicted, truth)[0])
        found[_image(record)].append(Grounding(record.phrase or "", boxes[0], boxes[1], iou))
    return found


def search_index(demo: Demo, index: ImageIndex, *, seed: int) -> list[Search]:
    """Search the index by a few texts drawn at random, and return what is found.

    Phrases of unseen scenes; of own data, which has none, the cards show searches by captions.
    """
    records = demo.records.get(("grounding", "test"), ())
    phrases = sorted({record.phrase for record in records if record.phrase})
    order = np.random.default_rng(seed).permutation(len(phrases))[:NUM_SEARCHES]
    return [
        Search(phrases[i], tuple(hit.image for hit in _nearest(index, phrases[i])))
        for i in map(int, order)
    ]


def _nearest(index: ImageIndex, text: str) -> tuple[Neighbour, ...]:
    """Return the images of the index nearest to a text; right are those with this caption."""
    found: list[Neighbour] = []
    for hit in index.search(text, top=NUM_NEIGHBOURS):
        try:
            pixels = decode_image(hit.image.image)
        except ImageProblem:  # gone since it was indexed
            continue
        found.append(Neighbour(pixels, text in hit.image.captions))
    return tuple(found)
