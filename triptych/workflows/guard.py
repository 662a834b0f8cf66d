"""Before and after fine-tuning: what became of a model's retrieval, on its own data and on others.

Fine-tuning on one task harms others. Both models search the same images by the embeddings alone,
which is cheap, and the numbers lie in the run folder as `before_after.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

from triptych.checkpoint.model_folder import CARD
from triptych.core.console import Console
from triptych.core.errors import DataError, TriptychError
from triptych.core.files import write_atomic, write_json
from triptych.core.outputs import MetricValue
from triptych.core.reading import read_json_object
from triptych.data.collate.base import image_key
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig
from triptych.distributed.collectives import from_main
from triptych.distributed.env import is_main
from triptych.recipes.config import RunConfig
from triptych.serving.loading import LoadedModel, load_model
from triptych.tasks.registry import evaluations, task_spec
from triptych.workflows.evaluate import evaluate_loaded
from triptych.workflows.predictors import has_truth
from triptych.workflows.sources import TrainingData

BEFORE_AFTER = "before_after.json"
"""In the run folder."""

RETRIEVAL = "retrieval"
SHOWN = ("i2t_r1", "t2i_r1")
"""Scores that the table shows; the file has all."""

_LOOKED_AT = 50
"""Records for each image that is wanted: data without captions are not read to their end."""


@dataclass(frozen=True, slots=True)
class Searched:
    """Pairs that both models search.

    Attributes:
        name: What the table calls them.
        source: Where they came from.
        records: With an image and a caption.
        num_images: Of the records.
    """

    name: str
    source: DataSourceConfig
    records: Sequence[Record]
    num_images: int


@dataclass(frozen=True, slots=True)
class Row:
    """A score of both models.

    Attributes:
        data: What the pairs are called.
        path: Where they came from.
        images: How many are searched.
        metric: Such as "i2t_r1".
        before: Of the model that was fine-tuned.
        after: Of what the fine-tuning left; None where that cannot embed images and texts.
    """

    data: str
    path: str
    images: int
    metric: str
    before: MetricValue
    after: MetricValue | None


@dataclass(frozen=True, slots=True)
class Guard:
    """What is measured before and after a fine-tuning; see `prepare_guard`.

    Attributes:
        start: The model folder that is fine-tuned.
        searched: Pairs to search; may be empty.
        notes: Why some data are not searched.
    """

    start: str
    searched: tuple[Searched, ...]
    notes: tuple[str, ...]


def prepare_guard(config: RunConfig, data: TrainingData) -> Guard | None:
    """Return what a run measures before and after; None where that says nothing.

    It says something of a model that was trained for retrieval and is fine-tuned.

    Args:
        config: Of the run.
        data: What it trains and validates on.

    Raises:
        DataError: `guard.data` cannot be read, or holds no pairs.
    """
    start, most = config.model.init_from, config.guard.images
    if start is None or most == 0 or task_spec(config.task).pretrains:
        return None
    own = _own(data, most)
    notes = () if own else ("the run's own data hold no captions, and are not searched",)
    return Guard(start, (*own, *_guarded(config, most)), notes)


def _own(data: TrainingData, most: int) -> tuple[Searched, ...]:
    """Return the run's own pairs: held-out ones, or where there are none, those of training."""
    for name, sources in (("own, held out", data.held_out), ("own, trained on", data.sources)):
        found = [_first_pairs(name, source.config, source.records, most) for source in sources]
        searched = [pairs for pairs in found if pairs.num_images > 1]
        if searched:
            return (searched[0],)
    return ()


def _guarded(config: RunConfig, most: int) -> list[Searched]:
    found = []
    for given in config.guard.data:
        source = given.under(config.data.root)
        pairs = _first_pairs(
            f"guard {Path(source.path).name}", source, read_records(source).records, most
        )
        if pairs.num_images < 2:
            raise DataError(
                f"guard.data: {source.path} holds no two images with captions, so that there is "
                "nothing to search: name image-text pairs"
            )
        found.append(pairs)
    return found


def _first_pairs(
    name: str, source: DataSourceConfig, records: Sequence[Record], most: int
) -> Searched:
    """Return the pairs of the first images of a data set."""
    scoring = evaluations()[RETRIEVAL]
    keys: set[int] = set()
    kept = []
    for record in islice(iter(records), most * _LOOKED_AT):
        if record.image is None or not has_truth(record, scoring):
            continue
        key = image_key(record)
        if key not in keys and len(keys) == most:
            break
        keys.add(key)
        kept.append(record)
    return Searched(name, source, kept, len(keys))


def measure_guard(
    guard: Guard | None,
    config: RunConfig,
    run_folder: Path,
    model_folder: Path,
    console: Console | None = None,
) -> list[Row]:
    """Score both models, print the table, and keep it in the run folder and on the model card.

    All processes call it together. Where something cannot be measured, that is said; the run has
    its model already.

    Args:
        guard: What `prepare_guard` returned; None measures nothing.
        config: Of the run.
        run_folder: Receives `before_after.json`.
        model_folder: What the run left.
        console: Where to print; standard output if absent.
    """
    if guard is None:
        return []
    from_main(None)  # the others wait until it has written the model folder
    try:
        rows, notes = _measure(guard, config, model_folder)
    except (TriptychError, OSError) as error:
        rows, notes = [], [f"retrieval before and after is not measured: {error}"]
    if not is_main() or not (rows or notes):
        return rows
    plain = {
        "before": guard.start,
        "after": str(model_folder),
        "notes": notes,
        "rows": [asdict(row) for row in rows],
    }
    write_json(run_folder / BEFORE_AFTER, plain)
    if rows:
        card = model_folder / CARD
        text = "\n".join(["## Retrieval before and after", "", *_markdown(rows), ""])
        write_atomic(card, f"{card.read_text(encoding='utf-8').rstrip()}\n\n{text}")
    for line in [*table_lines(rows), *notes]:
        (console or Console()).print(line, markup=False, highlight=False, soft_wrap=True)
    return rows


def read_before_after(run_folder: Path) -> tuple[list[Row], list[str]]:
    """Return what `measure_guard` kept in a run folder: rows of the scores in `SHOWN`, and notes.

    Both are empty of a run that measured nothing.

    Raises:
        DataError: The file is damaged.
    """
    path = run_folder / BEFORE_AFTER
    if not path.exists():
        return [], []
    stored = read_json_object(path)
    rows = []
    for row in stored["rows"]:
        values = {side: row[side] and MetricValue(**row[side]) for side in ("before", "after")}
        rows.append(Row(**{**row, **values}))
    return [row for row in rows if row.metric in SHOWN], stored["notes"]


def _measure(guard: Guard, config: RunConfig, model_folder: Path) -> tuple[list[Row], list[str]]:
    before = load_model(guard.start, device=config.train.device)
    words = set(before.settings.trained_for)
    if not _can_retrieve(before):
        if not config.guard.data:
            return [], []
        said = " and ".join(sorted(words)) or "nothing"
        return [], [
            f"retrieval before and after is not measured: {guard.start} was trained for {said}, "
            "which does not teach it"
        ]
    notes = list(guard.notes)
    if not guard.searched:
        return [], [*notes, "--guard PAIRS.jsonl measures on pairs what becomes of retrieval"]
    after = load_model(model_folder, device=config.train.device)
    is_able = "itc" in after.model.capabilities
    if not is_able:
        notes.append("the model after has no embeddings of images and texts: it cannot retrieve")
    elif not _can_retrieve(after):
        notes.append(
            f"the model after is for {' and '.join(after.settings.trained_for)}: its retrieval is "
            "what its embeddings are still good for"
        )
    rows = []
    for pairs in guard.searched:
        scored = _score(before, pairs)
        again = {value.name: value for value in _score(after, pairs)} if is_able else {}
        rows += [
            Row(pairs.name, pairs.source.path, pairs.num_images, v.name, v, again.get(v.name))
            for v in scored
        ]
    return rows, notes


def _can_retrieve(loaded: LoadedModel) -> bool:
    try:
        loaded.check_trained(RETRIEVAL)
    except TriptychError:
        return False
    return "itc" in loaded.model.capabilities


def _score(loaded: LoadedModel, pairs: Searched) -> list[MetricValue]:
    return evaluate_loaded(
        loaded,
        RETRIEVAL,
        pairs.source,
        found=FoundRecords(list(pairs.records), ()),
        rerank_top_k=0,
        local_batch_size=32,
        max_bad_share=1.0,
    )


def table_lines(rows: Sequence[Row]) -> list[str]:
    """Return the table for the terminal, of the scores in `SHOWN`; nothing without rows."""
    if not rows:
        return []
    cells = [("retrieval", "images", "score", "before", "after"), *_cells(rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    return [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  "
        f"{row[3]:>{widths[3]}}  {row[4]:>{widths[4]}}"
        for row in cells
    ]


def _markdown(rows: Sequence[Row]) -> list[str]:
    lines = ["| data | images | score | before | after |", "|---|---|---|---|---|"]
    return lines + [
        f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in _cells(rows)
    ]


def _cells(rows: Sequence[Row]) -> list[tuple[str, str, str, str, str]]:
    return [
        (
            row.data,
            f"{row.images:,}",
            row.metric,
            f"{row.before.value:.3f}",
            "lost" if row.after is None else f"{row.after.value:.3f}",
        )
        for row in rows
        if row.metric in SHOWN
    ]
