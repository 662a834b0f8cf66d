"""`triptych demo`: data, training, evaluation and a report, in minutes."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from rich.console import Console

from triptych.cli.parsing import parse
from triptych.core.config import to_dict
from triptych.core.errors import ConfigError
from triptych.core.files import write_json
from triptych.core.machine import current_commit, describe_machine
from triptych.data.images import decode_image
from triptych.data.records import Record
from triptych.evaluation.boxes import iou_xyxy, xywh_to_xyxy
from triptych.evaluation.vqa import vqa_accuracy
from triptych.report.data import (
    Answer,
    Box,
    Curve,
    Grounding,
    ImageCard,
    Neighbour,
    ReportData,
    ScoreRow,
)
from triptych.report.html import write_report
from triptych.report.terminal import print_scores
from triptych.scenes.language import count_objects_named
from triptych.scenes.layout import SceneFiles
from triptych.serving.engine import load
from triptych.workflows.demo import (
    DemoResult,
    Score,
    demo_command,
    resume_command,
    run_demo,
    scene_objects,
)

HELP = """Write scenes, train on them, evaluate on unseen ones, and write a report.

Examples:
  triptych demo                                   under 15 minutes on two cores
  triptych demo --scale smoke --out runs/smoke    seconds; checks the installation

The same command continues an interrupted demo.
"""

TARGETS = {
    "i2t_r1": 0.80,
    "t2i_r1": 0.80,
    "i2t_r1_itm": 0.85,
    "t2i_r1_itm": 0.85,
    "caption_objects": 0.60,
    "vqa": 0.70,
    "grounding": 0.50,
}
"""What the tiny demo must reach on the test split (see benchmarks/results/foundation.json)."""

NUM_IMAGES = 12
NUM_NEIGHBOURS = 5
REPORT = "report.html"
RESULTS = "results.json"
"""Written last: its presence means that the demo is finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """What to run.

    Attributes:
        out: Folder for data, runs and the report: new, empty, or of an interrupted demo.
        scale: smoke (seconds, trains a few steps only), tiny (under 15 minutes on two cores), small
            (twice the images, steps and time).
        seed: Seed of scenes and training.
        num_threads: CPU threads; if absent, torch chooses.
    """

    out: Path = Path("runs/demo")
    scale: Literal["smoke", "tiny", "small"] = "tiny"
    seed: int = 0
    num_threads: int | None = None


def run(arguments: Sequence[str]) -> int:
    """Run the demo from the command line."""
    options = parse(DemoOptions, arguments, verb="demo", description=HELP)
    try:
        demo(options.out, options.scale, seed=options.seed, num_threads=options.num_threads)
    except KeyboardInterrupt:  # between two runs; within one, the trainer says how to go on
        command = resume_command(options.out)
        if command is not None:
            print(f"triptych: continue with `{command}`", file=sys.stderr)
        raise
    return 0


def demo(
    out: Path, scale: str = "tiny", *, seed: int = 0, num_threads: int | None = None
) -> DemoResult:
    """Pre-train mPLUG on generated scenes, fine-tune, evaluate on unseen ones, write a report.

    Args:
        out: Folder for data, runs, `results.json` and `report.html`; new, empty, or of an
            interrupted demo with the same arguments, which continues.
        scale: smoke, tiny or small.
        seed: Seed of scenes and training.
        num_threads: CPU threads; None for torch's own choice.

    Raises:
        ConfigError: The folder holds a finished demo, or something else.
    """
    if (out / RESULTS).is_file():
        raise ConfigError(
            f"{out} holds a finished demo, with its report in {out / REPORT}: choose another "
            f"folder with --out, or delete {out}"
        )
    console = Console()
    start = time.perf_counter()
    result = run_demo(out, scale, seed=seed, num_threads=num_threads, console=console)
    command = demo_command(scale, seed, num_threads)  # where it writes changes no number
    rows = [score_row(score, scale) for score in result.scores if _is_shown(score)]
    images = image_cards(result, seed=seed, count=NUM_IMAGES)
    minutes = (result.earlier_s + time.perf_counter() - start) / 60
    report = out / REPORT
    write_report(
        ReportData(
            title="Triptych demo: mPLUG on the built-in scenes",
            summary_lines=(
                f"One command wrote the scenes, trained the tokenizer, pre-trained a small mPLUG "
                f"with four objectives, fine-tuned it twice and measured it, in {minutes:.1f} "
                "minutes.",
                "Every number below is from images that training never saw. Each scene "
                "of the compositional split holds at least one pair of colour and shape that never "
                "occurs in training.",
            ),
            scores=tuple(rows),
            curves=tuple(
                Curve(title=stage, metrics_jsonl=result.run(stage) / "metrics.jsonl")
                for stage in result.configs
            ),
            images=tuple(images),
            configuration={
                stage: (result.run(stage) / "config.yaml").read_text(encoding="utf-8")
                for stage in result.configs
            },
            machine=describe_machine(),
            commit=current_commit(),
            times_s=result.times_s,
            commands=(command,),
        ),
        report,
    )
    write_json(out / RESULTS, results(result, command, minutes, scale))
    print_scores(rows, console)
    images_of_test = out / "data" / "images" / "test"
    for line in (  # whole lines, so that a path can be copied out of a pipe
        f"{minutes:.1f} minutes in all. Report: {report.resolve()}",
        f"Try it: triptych caption {result.model('pretrain')} {images_of_test}/*7.jpg",
    ):
        console.print(line, soft_wrap=True, markup=False, highlight=False)
    return result


def score_row(score: Score, scale: str) -> ScoreRow:
    """Return a score as the report shows it."""
    return ScoreRow(
        task=score.task,
        metric=score.value.name,
        split=score.split,
        value=score.value.value,
        low=score.value.low,
        high=score.value.high,
        chance=score.chance,
        blind=score.blind,
        target=TARGETS.get(score.key) if scale == "tiny" else None,
        protocol=score.value.protocol,
    )


def results(result: DemoResult, command: str, minutes: float, scale: str) -> dict[str, Any]:
    """Return the content of `results.json`."""
    figures: dict[str, dict[str, Any]] = {
        "demo_minutes": {"value": round(minutes, 2), "command": command}
    }
    for score in result.scores:
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
        "scale": scale,
        "times_s": {stage: round(seconds, 1) for stage, seconds in result.times_s.items()},
        "config": {stage: to_dict(config) for stage, config in result.configs.items()},
        "figures": figures,
    }


def _is_shown(score: Score) -> bool:
    """Keep the table short: no recall at 5 and 10, no BLEU-1 to 3."""
    name = score.value.name
    return (
        not name.startswith(("bleu_1", "bleu_2", "bleu_3"))
        and "_r5" not in name
        and ("_r10" not in name)
    )


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
