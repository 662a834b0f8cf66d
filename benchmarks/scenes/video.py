"""Ask image models about the clips of the built-in scenes, which they have never seen; prints JSON.

Zero-shot: the pre-trained model ranks clips for captions, and the model that was fine-tuned on
questions about images answers questions about clips. Figures are of the clips of `test`:

- `video_retrieval_r1`: text to video, by the embeddings; one caption of each clip.
- `video_qa`: questions that any frame answers (colours, shapes, counts, yes or no), and
  `video_qa_motion`: questions on motion, of which an image model knows nothing.
- `video_qa_blind`, `video_qa_motion_blind`: the most frequent answer of each type of question in
  the clips of `train`, given without a look.

The models are those of `triptych demo --scale tiny --out runs/demo`.

    python -m benchmarks.scenes.video
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from triptych.core.outputs import MetricValue, Predictions
from triptych.data.manifest import read_records
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig
from triptych.evaluation.baselines import MajorityAnswers
from triptych.evaluation.bootstrap import mean_value
from triptych.evaluation.vqa import vqa_accuracy
from triptych.scenes.clips import MOTION_TYPES
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.workflows.evaluate import EvalSettings, evaluate_model


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    demo = Path("runs/demo")
    pretrained, answering = demo / "pretrain/model", demo / "vqa/model"
    parser.add_argument("--retrieval", type=Path, default=pretrained, help="pre-trained on images")
    parser.add_argument("--vqa", type=Path, default=answering, help="fine-tuned on questions")
    parser.add_argument("--data", type=Path, default=Path("runs/clips"), help="where clips lie")
    parser.add_argument("--num-clips", type=int, default=200, help="clips of test")
    parser.add_argument("--num-frames", type=int, default=8, help="frames that are read of a clip")
    options = parser.parse_args(argv)
    files = SceneFiles(options.data)
    if not options.data.exists():
        write_scenes(
            options.data,
            1,
            num_val=0,
            num_test=1,
            num_compositional=0,
            num_clips=5 * options.num_clips,
            config=SceneConfig(seed=0),
            formats=(),
        )
    found = _retrieval(options.retrieval, files, options.num_frames)
    found |= _questions(options.vqa, files, options.num_frames)
    found |= {
        "protocol": f"Zero-shot by models of images, {options.num_frames} frames of each clip. "
        "Retrieval is from text to clip by embeddings, equal captions count as right; questions "
        "are those that any frame answers, and the blind answer is the most frequent one of "
        "their type.",
        "num_threads": torch.get_num_threads(),
    }
    print(json.dumps(found))


def _retrieval(folder: Path, files: SceneFiles, num_frames: int) -> dict[str, Any]:
    source = DataSourceConfig(path=str(files.clips), split="test")
    settings = EvalSettings(captions_per_image=1, num_frames=num_frames)
    values = {v.name: v for v in evaluate_model(folder, "retrieval", source, settings=settings)}
    best = values["t2i_r1"]
    others = {name: round(value.value, 4) for name, value in values.items()}
    return {
        "video_retrieval_r1": round(best.value, 4),
        "video_retrieval": {"clips": best.num_items, **_interval(best), "all": others},
    }


def _questions(folder: Path, files: SceneFiles, num_frames: int) -> dict[str, Any]:
    said: dict[int, str] = {}

    def keep(predictions: Predictions) -> None:
        said.update(zip(predictions.index, predictions.texts or (), strict=True))

    source = DataSourceConfig(path=str(files.clip_questions("test")))
    evaluate_model(folder, "vqa", source, settings=EvalSettings(num_frames=num_frames), keep=keep)
    train = read_records(DataSourceConfig(path=str(files.clip_questions("train")))).records
    majority = MajorityAnswers.fit([r.question_type for r in train], [r.answers for r in train])
    test = read_records(source).records
    guesses = {i: majority.answer(record.question_type) for i, record in enumerate(test)}
    found: dict[str, Any] = {}
    for key, on_motion in (("video_qa", False), ("video_qa_motion", True)):
        rows = [i for i, r in enumerate(test) if (r.question_type in MOTION_TYPES) == on_motion]
        value, blind = _accuracy(said, test, rows), _accuracy(guesses, test, rows)
        types = sorted({str(test[i].question_type) for i in rows})
        by_type = {
            kind: {
                "accuracy": _accuracy(said, test, of_kind)["value"],
                "blind": _accuracy(guesses, test, of_kind)["value"],
                "questions": len(of_kind),
            }
            for kind in types
            for of_kind in [[i for i in rows if test[i].question_type == kind]]
        }
        found[key] = value["value"]
        found[f"{key}_blind"] = blind["value"]
        found[f"{key}_details"] = {**value, "questions": len(rows), "by_type": by_type}
    return found


def _accuracy(
    answers: Mapping[int, str], records: Sequence[Record], rows: Sequence[int]
) -> dict[str, Any]:
    scores = [vqa_accuracy(answers[i], records[i].answers) for i in rows]
    value = mean_value("vqa", scores, "VQA accuracy")
    return {"value": round(value.value, 4), **_interval(value)}


def _interval(value: MetricValue) -> dict[str, float]:
    return {"low": round(value.low, 4), "high": round(value.high, 4)}


if __name__ == "__main__":
    main()
