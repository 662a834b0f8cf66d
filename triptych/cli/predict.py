"""`triptych predict`: predictions to a file, of data with labels or without."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from triptych.cli.parsing import (
    FolderArgument,
    GenerationGroup,
    GenerationOptions,
    SourceGroup,
    SourceOptions,
    parse,
    read_names,
    shows_progress,
)
from triptych.core.errors import ConfigError

if TYPE_CHECKING:
    from triptych.workflows.predict import PredictSettings

HELP = """Predict data, with labels or without, to a file.

Run it again to go on after a kill; a finished file is left as it is. `triptych score` scores it.

Examples:
  triptych predict runs/vqa/model --task vqa --data test.jsonl --out answers.jsonl
  triptych predict runs/vqa/model --task vqa --data v2_OpenEnded_mscoco_test2015_questions.json \\
      --format vqa --out results.json
  triptych predict runs/mine/model --task caption --data my.jsonl --out captions.jsonl --num-beams 3
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictOptions:
    """What to predict.

    Attributes:
        folder: A model folder, such as RUN_FOLDER/model.
        task: What to predict, as for `triptych eval`: caption, vqa, grounding, nlvr2, snli_ve,
            classification, zero_shot, retrieval and others.
        data: The dataset; several follow each other, such as images and texts to search.
        out: The file to write.
        format: Its form: jsonl, our own; or that of an official server or script: vqa, coco (and
            NoCaps), refcoco, nlvr2, snli_ve, glue, hateful_memes, csv or trec. Beside an official
            one lies ours, NAME.predictions.jsonl, which says what made it.
        source: How the data is read.
        limit: Predict only this many records, from the start.
        overwrite: Replace a file of other predictions.
        classes: Zero-shot: names of the classes, separated by commas, or a text file with one a
            line; if absent, the labels of the data.
        templates: Zero-shot: a text file with one sentence per line; {} stands for the class name.
        label_pattern: Zero-shot: a regular expression whose first group is the class in a label.
        num_frames: Frames that are taken of a clip, evenly spread; if absent, the model folder's.
        rerank_top_k: Retrieval: candidates of each query that ITM re-ranks; 0 disables it.
        itm_score: Retrieval: whether the re-ranked candidates are ordered by ITM alone, or by ITM
            plus the similarity.
        captions_per_image: Retrieval: use only this many captions of each image, from the start.
        folds: Retrieval: parts of equally many images that are searched separately.
        list_length: Retrieval: candidates of each query that are written.
        answers: Questions: answers to choose from, each ranked by its likelihood, separated by
            commas, or a text file with one a line; if absent, they are generated.
        generation: Captions and answers: how they are generated.
        local_batch_size: Samples per batch.
        max_bad_share: Largest allowed share of unreadable samples.
    """

    folder: FolderArgument
    task: Annotated[str, tyro.conf.arg(metavar="TASK")]
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH [PATH ...]")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    format: str = "jsonl"
    source: SourceGroup = field(default_factory=SourceOptions)
    limit: int | None = None
    overwrite: bool = False
    classes: str | None = None
    templates: Path | None = None
    label_pattern: str | None = None
    num_frames: int | None = None
    answers: str | None = None
    rerank_top_k: int = 16
    itm_score: Literal["itm", "itm+itc"] = "itm"
    captions_per_image: int | None = None
    folds: int = 1
    list_length: int = 100
    generation: GenerationGroup = field(default_factory=GenerationOptions)
    local_batch_size: int = 128
    max_bad_share: float = 0.01

    def settings(self) -> PredictSettings:
        """Return how predictions are made."""
        from triptych.evaluation.zero_shot import TEMPLATES, load_templates
        from triptych.workflows.evaluate import EvalSettings
        from triptych.workflows.predict import PredictSettings

        return PredictSettings(
            limit=self.limit,
            asked=EvalSettings(
                captions_per_image=self.captions_per_image,
                folds=self.folds,
                templates=TEMPLATES if self.templates is None else load_templates(self.templates),
                label_pattern=self.label_pattern,
                classes=read_names("classes", self.classes),
                num_frames=self.num_frames,
                answers=read_names("answers", self.answers),
                generation=self.generation.settings(),
            ),
            rerank_top_k=self.rerank_top_k,
            itm_score=self.itm_score,
            list_length=self.list_length,
            local_batch_size=self.local_batch_size,
            max_bad_share=self.max_bad_share,
            overwrite=self.overwrite,
        )


def run(arguments: Sequence[str]) -> int:
    """Predict, and say what was done."""
    options = parse(PredictOptions, arguments, verb="predict", description=HELP)
    if not options.data:
        raise ConfigError("name the data with --data PATH")
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from triptych.core.console import Console
    from triptych.workflows.predict import predict_model

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not shows_progress()
    ) as progress:
        bar = progress.add_task("", total=None)
        done = predict_model(
            options.folder,
            options.task,
            [options.source.source(path) for path in options.data],
            options.out,
            form=options.format,
            settings=options.settings(),
            progress=lambda now, total: progress.update(bar, completed=now, total=total),
            tell=lambda text: print(text, file=sys.stderr),
            on_loaded=lambda model: print(f"predicting on {model.described()}", file=sys.stderr),
        )
    print(done.words())
    print(f"wrote {done.path}" + (f" and {done.own}" if done.own != done.path else ""))
    return 0
