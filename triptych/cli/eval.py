"""`triptych eval`: score a model on held-out data."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from triptych.cli.parsing import (
    FolderArgument,
    GenerationGroup,
    GenerationOptions,
    ResultGroup,
    ResultOptions,
    SourceGroup,
    SourceOptions,
    json_as_out,
    parse,
    read_names,
    shows_progress,
)
from triptych.core.errors import ConfigError
from triptych.data.source import DataSourceConfig

if TYPE_CHECKING:
    from triptych.core.outputs import MetricValue

_OWN_WORDS = re.compile(
    r"^((Image to text|Text to image) recall at \d+|Mean of the \d+ recalls): |(?<=BLEU)-\d|"
    r" (Type|Class): [^.]+\."
)
"""What the protocols of one kind of metric differ in."""

HELP = """Evaluate a model on held-out data; every score comes with its 95 % interval.

It is `triptych predict` and `triptych score` in one, without a file.

Examples:
  triptych eval runs/mine/model --task retrieval --data test.jsonl
  triptych eval runs/vqa/model --task vqa --data test.jsonl --out scores.json --limit 1000
  triptych eval runs/mine/model --task zero_shot --data class_folders/
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalOptions:
    """What to score.

    Attributes:
        folder: A model folder, such as RUN_FOLDER/model; or released weights: a folder of
            transformers, or its hub id.
        task: What to evaluate: caption, retrieval, vqa, grounding, nlvr2 (statements about two
            images), snli_ve (entailment), classification (a fine-tuned classifier), zero_shot
            (classification by class names), perplexity (of captions under a decoder) or
            pseudo_perplexity (of texts under a masked language model).
        data: Datasets; each is scored separately.
        source: How they are read.
        limit: Use only this many records of each, from the start.
        rerank_top_k: Retrieval: candidates of each query that ITM re-ranks; 0 disables it.
        itm_score: Retrieval: whether the re-ranked candidates are ordered by ITM alone, or by ITM
            plus the similarity.
        captions_per_image: Retrieval: use only this many captions of each image, from the start;
            all if absent. 5 is usual for COCO and Flickr30k.
        folds: Retrieval: parts of equally many images that are searched separately; 5 is COCO's
            "1K".
        templates: Zero-shot: a text file with one sentence per line; {} stands for the class name.
        label_pattern: Zero-shot: a regular expression whose first group is the class in a label.
        num_frames: Frames that are taken of a clip, evenly spread; if absent, the model folder's
            (8, unless it was trained with another --image.num-frames).
        answers: Questions: answers to choose from, each ranked by its likelihood, separated by
            commas, or a text file with one a line; if absent, they are generated.
        generation: Captions and answers: how they are generated.
        java_metrics: Captions: also METEOR or SPICE, Java programs of `pip install triptych[coco]`.
        num_processes: Retrieval: processes that share the images.
        local_batch_size: Samples per batch.
        max_bad_share: Largest allowed share of unreadable samples.
        result: Where the numbers go.
    """

    folder: FolderArgument
    task: Annotated[str, tyro.conf.arg(metavar="TASK")]
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="PATH [PATH ...]")]
    source: SourceGroup = field(default_factory=SourceOptions)
    limit: int | None = None
    rerank_top_k: int = 16
    itm_score: Literal["itm", "itm+itc"] = "itm"
    captions_per_image: int | None = None
    folds: int = 1
    templates: Path | None = None
    label_pattern: str | None = None
    num_frames: int | None = None
    answers: str | None = None
    generation: GenerationGroup = field(default_factory=GenerationOptions)
    java_metrics: tuple[Literal["meteor", "spice"], ...] = ()
    num_processes: int = 1
    local_batch_size: int = 128
    max_bad_share: float = 0.01
    result: ResultGroup = field(default_factory=ResultOptions)


def run(arguments: Sequence[str]) -> int:
    """Print a table for each dataset, or JSON; and write JSON where asked."""
    options = parse(EvalOptions, json_as_out(arguments), verb="eval", description=HELP)
    if not options.data:
        raise ConfigError("name at least one dataset with --data PATH")
    if options.limit is not None and options.limit < 1:
        raise ConfigError(f"limit = {options.limit}: must be at least 1")
    if options.num_processes < 1:
        raise ConfigError(f"num_processes = {options.num_processes}: must be at least 1")
    from triptych.core.machine import current_commit
    from triptych.tasks.registry import find_evaluation

    find_evaluation(options.task)
    scores: list[dict[str, Any]] = []
    for path in options.data:
        metrics = _evaluate(options, options.source.source(path))
        if not options.result.json:
            print_table(f"{options.task} on {path}", metrics)
        scores.append({"data": path, "metrics": [asdict(metric) for metric in metrics]})
    options.result.report(
        {
            "model": str(options.folder),
            "task": options.task,
            "commit": current_commit(),
            "limit": options.limit,
            "scores": scores,
        }
    )
    return 0


def _evaluate(options: EvalOptions, source: DataSourceConfig) -> list[MetricValue]:
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from triptych.core.console import Console
    from triptych.evaluation.zero_shot import TEMPLATES, load_templates
    from triptych.workflows.evaluate import EvalSettings, evaluate_in_processes, evaluate_model

    settings = EvalSettings(
        captions_per_image=options.captions_per_image,
        folds=options.folds,
        templates=TEMPLATES if options.templates is None else load_templates(options.templates),
        label_pattern=options.label_pattern,
        num_frames=options.num_frames,
        answers=read_names("answers", options.answers),
        generation=options.generation.settings(),
        java_metrics=options.java_metrics,
    )
    ask = partial(
        evaluate_model,
        options.folder,
        options.task,
        source,
        limit=options.limit,
        rerank_top_k=options.rerank_top_k,
        itm_score=options.itm_score,
        settings=settings,
        local_batch_size=options.local_batch_size,
        max_bad_share=options.max_bad_share,
    )
    if options.num_processes > 1:
        values, notes = evaluate_in_processes(options.num_processes, options.task, ask)
        for note in notes:
            print(note, file=sys.stderr)
        return values
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} samples scored"))
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not shows_progress()
    ) as progress:
        bar = progress.add_task("", total=None)
        return ask(
            progress=lambda done: progress.update(bar, completed=done),
            on_skipped=lambda text: print(text, file=sys.stderr),
            on_loaded=lambda model: print(f"evaluating on {model.described()}", file=sys.stderr),
        )


def print_table(title: str, metrics: Sequence[MetricValue]) -> None:
    """Print the numbers as a table, and under it each protocol once."""
    from rich.table import Table

    from triptych.core.console import Console

    table = Table("metric", "value", "95 % interval", "n", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for metric in metrics:
        interval = f"{metric.low:.4f} to {metric.high:.4f}"
        table.add_row(metric.name, f"{metric.value:.4f}", interval, f"{metric.num_items:,}")
    console = Console(highlight=False)
    console.print(table)
    for names, protocol in protocols(metrics):
        console.print(f"{names}: {protocol}", style="dim", markup=False)


def protocols(metrics: Sequence[MetricValue]) -> list[tuple[str, str]]:
    """Return each protocol once, after the names of the metrics that it holds for.

    What tells such metrics apart, their direction, k, n-gram or class, is in their names.
    """
    names: dict[str, list[str]] = {}
    whole: dict[str, str] = {}
    for metric in metrics:
        shared = _OWN_WORDS.sub("", metric.protocol)
        names.setdefault(shared, []).append(metric.name)
        whole.setdefault(shared, metric.protocol)
    return [
        (", ".join(found), shared if len(found) > 1 else whole[shared])
        for shared, found in names.items()
    ]
