"""Predict data with or without labels to a file: in our form, resumable, and in official ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from triptych.checkpoint.model_folder import hash_model_folder
from triptych.core.config import MAX_BATCH_SIZE, check, check_range, to_dict
from triptych.core.errors import ConfigError, DataError
from triptych.core.files import write_atomic
from triptych.core.machine import current_commit
from triptych.data.collate.classification import ClassPicker, distinct_classes
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import JoinedRecords, Record
from triptych.data.skips import VERB_FLAG, SkipKind, SkipLog, Skipped
from triptych.data.source import DataSourceConfig, parts_note
from triptych.evaluation.evaluator import predict_batches
from triptych.evaluation.submissions import OWN, SubmissionForm, find_form
from triptych.serving.loading import LoadedModel, load_model
from triptych.tasks.registry import evaluation_of, find_evaluation, ways_to_score
from triptych.tasks.spec import Evaluation, TaskConfig
from triptych.workflows.evaluate import EvalSettings
from triptych.workflows.frozen import ByNames, image_loader
from triptych.workflows.predictions import (
    Header,
    PredictionFile,
    hash_of_records,
    name_of,
    open_predictions,
    read_predictions,
    rows_of,
)
from triptych.workflows.predictors import (
    Asked,
    as_asked,
    build_predictor,
    check_generation,
    evaluation_loader,
    predictable_records,
)
from triptych.workflows.rankings import PairFile, Queries, rank_queries
from triptych.workflows.search import RetrievalProtocol, first_captions, has_image


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """What a run of predicting leaves.

    Attributes:
        path: The file that was asked for.
        own: The file in our form; the same unless an official form was asked for.
        num_samples: Samples, or queries of a search.
        num_before: Samples that an earlier run had predicted.
        num_skipped: Samples that could not be read.
    """

    path: Path
    own: Path
    num_samples: int
    num_before: int
    num_skipped: int

    def words(self) -> str:
        """Return what was done."""
        if self.num_before == self.num_samples:
            done = f"{self.own} was finished before: nothing was predicted again"
        elif self.num_before:
            done = f"{self.num_samples} samples predicted, {self.num_before} of them before"
        else:
            done = f"{self.num_samples} samples predicted"
        return done + (f"; {self.num_skipped} unreadable" if self.num_skipped else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictSettings:
    """How predictions are made.

    Attributes:
        limit: Only the first so many records.
        asked: How single tasks are asked.
        rerank_top_k: Retrieval: candidates of each query that ITM re-ranks; 0 disables it.
        itm_score: Retrieval: whether ITM alone ranks them, or ITM plus the similarity.
        list_length: Retrieval: candidates of each query that are written.
        local_batch_size: Samples at a time.
        max_bad_share: Share of samples that may be unreadable.
        overwrite: Whether a file of other predictions is replaced.
    """

    limit: int | None = None
    asked: EvalSettings = field(default_factory=EvalSettings)
    rerank_top_k: int = 16
    itm_score: Literal["itm", "itm+itc"] = "itm"
    list_length: int = 100
    local_batch_size: int = 128
    max_bad_share: float = 0.01
    overwrite: bool = False

    def __post_init__(self) -> None:
        """Reject counts out of range."""
        check(self.limit is None or self.limit >= 1, "limit", self.limit, "be at least 1")
        length = self.list_length
        check(length >= 20, "list_length", length, "be at least 20, for recall at 10 with ties")
        check_range("local_batch_size", self.local_batch_size, 1, MAX_BATCH_SIZE)


def predict_model(
    folder: Path,
    task: str,
    source: DataSourceConfig | Sequence[DataSourceConfig],
    out: Path,
    *,
    form: str = OWN,
    settings: PredictSettings | None = None,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
    on_loaded: Callable[[LoadedModel], None] | None = None,
) -> Predicted:
    """Load a model folder and predict every sample of a source to a file.

    A run that was killed goes on where it stopped when it is called again with the same arguments;
    a finished file is left as it is. Beside a file in an official form lies one in our form.

    Args:
        folder: A model folder.
        task: The name of an `Evaluation` of a registered task, such as "vqa".
        source: Data, with labels or without, which are not looked at. Several follow each other,
            such as images and texts to search.
        out: The file to write.
        form: The name of a form in `evaluation/submissions.py`, or "jsonl" for our own.
        settings: How predictions are made; None is the defaults.
        progress: Called after each batch with the samples done, and of how many.
        tell: Called with what is worth knowing, in words.
        on_loaded: Called with the model before anything is predicted.

    Raises:
        CapabilityError: The model was not trained for the task.
        ConfigError: No such task or form, or the file holds other predictions.
        DataError: The data lack what the task needs, or too much of them is bad.
    """
    settings = settings or PredictSettings()
    check_generation(find_evaluation(task), settings.asked.generation)
    if form != OWN:
        find_form(form, [name for _, e in ways_to_score(task) for name in e.forms], task)
    loaded = load_model(folder)
    loaded.check_trained(task)
    if on_loaded is not None:
        on_loaded(loaded)
    loaded = as_asked(loaded, task, settings.asked.num_frames, settings.asked.answers)
    sources = (source,) if isinstance(source, DataSourceConfig) else tuple(source)
    run = _Run(loaded, task, settings, sources, progress)
    wanted = None if form == OWN else find_form(form, run.scoring.forms, task)
    queries = run.queries() if run.scoring.procedure == "search" else None
    records = run.records() if queries is None else queries.records
    keys = [] if wanted is None else _keys(wanted, records, queries, run.found)
    if wanted is not None:
        wanted.check(keys, out.name)
    own = out if wanted is None else out.with_name(f"{out.stem}.predictions.jsonl")
    header = run.header(records, len(records) if queries is None else len(queries.names()))
    with open_predictions(own, header, overwrite=settings.overwrite) as file:
        before = file.num_rows
        if not file.is_finished and queries is not None:
            run.search(file, queries)
        elif not file.is_finished:
            run.predict(file, records)
    if tell is not None:
        for note in run.notes():
            tell(note)
    rows = read_predictions(own)[1]
    if wanted is not None:
        write_submission(out, wanted, rows, keys)
    skipped = sum("skipped" in row for row in rows)
    return Predicted(
        path=out, own=own, num_samples=len(rows), num_before=before, num_skipped=skipped
    )


def _keys(
    form: SubmissionForm, records: Sequence[Record], queries: Queries | None, found: FoundRecords
) -> list[str]:
    return keys_of(form, records, found) if queries is None else queries.names()


class _Run:
    """One model that predicts one dataset."""

    def __init__(
        self,
        loaded: LoadedModel,
        task: str,
        settings: PredictSettings,
        sources: Sequence[DataSourceConfig],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.loaded, self.task, self.settings, self.progress = loaded, task, settings, progress
        self.where = ", ".join(source.path for source in sources)
        read = [read_records(source) for source in sources]
        self.found = read[0] if len(read) == 1 else _joined(read)
        self.parts = [
            parts_note(source.path, found.parts)
            for source, found in zip(sources, read, strict=True)
            if found.parts
        ]
        self.config: TaskConfig = loaded.task_config(task)
        self.scoring: Evaluation[Any] = evaluation_of(self.config, task)
        self.log = SkipLog(None, self.found.num_samples, settings.max_bad_share, flag=VERB_FLAG)

    def records(self) -> list[Record]:
        """Return what is predicted, in the order of the data."""
        usable = predictable_records(self.found.records, self.scoring, self.where)
        chosen = usable[: self.settings.limit]
        self.log.add_all(self.found.skipped)
        if len(chosen) < len(usable):  # bad lines are judged with the whole file, images without it
            self.log = SkipLog(None, len(chosen), self.settings.max_bad_share, flag=VERB_FLAG)
        return chosen

    def queries(self) -> Queries:
        """Return what is searched for and among."""
        chosen = [r for r in self.found.records if has_image(r) or r.caption or r.text]
        chosen = first_captions(chosen, self.settings.asked.captions_per_image)
        self.log.add_all(self.found.skipped)
        found = Queries.of(chosen[: self.settings.limit], self.where)
        found.check_folds(self.settings.asked.folds)
        return found

    def search(self, file: PredictionFile, queries: Queries) -> None:
        """Rank all queries; scores of pairs are kept beside the file until it is done."""
        settings, progress = self.settings, self.progress
        path = file.path.with_name(f"{file.path.name}.pairs")
        known = PairFile(path, file.header.key())
        done = False
        try:
            rows = rank_queries(
                self.loaded,
                queries,
                self.protocol(),
                list_length=settings.list_length,
                local_batch_size=settings.local_batch_size,
                log=self.log,
                known=known,
                progress=progress and (lambda n: progress(n, len(queries.records))),
            )
            file.add(rows[file.num_rows :])
            done = True
        finally:
            known.close(done=done)

    def protocol(self) -> RetrievalProtocol:
        """Return what is compared with what."""
        settings = self.settings
        return RetrievalProtocol(
            rerank_top_k=settings.rerank_top_k,
            itm_score=settings.itm_score,
            folds=settings.asked.folds,
        )

    def classes(self, records: Sequence[Record]) -> tuple[str, ...]:
        """Return the names that images are compared with.

        Raises:
            ConfigError: There are none.
        """
        asked = self.settings.asked
        if asked.classes:
            return asked.classes
        pick = ClassPicker(asked.label_pattern)
        labels = [pick(str(record.label)) for record in records if record.label is not None]
        if len(labels) < len(records):
            raise ConfigError(
                f"{self.where} has images without a label: name the classes with --classes"
            )
        return distinct_classes(labels)

    def header(self, records: Sequence[Record], num_samples: int) -> Header:
        """Return what is written before the predictions."""
        settings, asked = self.settings, self.settings.asked
        said: dict[str, Any] = {
            "limit": settings.limit,
            "precision": self.loaded.precision,
            "num_frames": self.loaded.image.num_frames,
            **{f"generation.{name}": value for name, value in asked.generation.given().items()},
        }
        protocol = f"Predicted by {self.loaded.folder} in {self.loaded.precision}."
        if self.scoring.procedure == "names":
            said |= {
                "classes": list(self.classes(records)),
                "templates": list(asked.templates),
                "label_pattern": asked.label_pattern,
            }
        if self.scoring.procedure == "search":
            said |= {k: v for k, v in asdict(self.protocol()).items() if k != "states_mib"} | {
                "captions_per_image": asked.captions_per_image,
                "list_length": settings.list_length,
                "max_words": self.loaded.captions().max_words,
            }
        generated = ", ".join(f"{name} = {v!r}" for name, v in asked.generation.given().items())
        if generated:
            protocol += f" Texts with {generated}."
        return Header(
            task=self.task,
            model=str(self.loaded.folder),
            model_hash=hash_model_folder(self.loaded.folder),
            task_config=to_dict(self.config, tagged=True),
            settings=said,
            data=self.where,
            data_hash=hash_of_records(records, self.scoring.truth),
            num_samples=num_samples,
            batch_size=settings.local_batch_size,
            protocol=protocol,
            commit=current_commit(),
        )

    def predict(self, file: PredictionFile, records: Sequence[Record]) -> None:
        """Predict what the file lacks, a batch at a time."""
        self.log.add_all(_skipped(records[row["index"]]) for row in file.rows_before
                         if "skipped" in row)  # fmt: skip
        start = file.num_rows
        rest = records[start:]
        size = self.settings.local_batch_size
        if self.scoring.procedure == "names":
            names = self.classes(records)
            templates = self.settings.asked.templates
            asked: Any = ByNames(self.loaded, names, templates, self.loaded.device)
            loader = image_loader(self.loaded, rest, size, self.log)
        else:
            bound = build_predictor(self.loaded, self.task, self.settings.asked.generation)
            asked = Asked(bound, self.scoring.method)
            loader = evaluation_loader(self.loaded, self.task, rest, size, self.log)
        with self.loaded.autocast():
            device = self.loaded.device
            for predictions in predict_batches(asked, loader, device=device, offset=start):
                batches = (max(predictions.index) - start) // size + 1
                end = min(start + batches * size, len(records))
                self._write(file, rows_of(predictions, records, self.scoring.kept), records, end)
        self._write(file, [], records, len(records))

    def _write(
        self,
        file: PredictionFile,
        rows: Sequence[dict[str, Any]],
        records: Sequence[Record],
        end: int,
    ) -> None:
        """Write the rows up to a place in the data; samples without one could not be read."""
        by_place = {row["index"]: row for row in rows}
        file.add(
            [
                by_place.get(place) or name_of(records[place], place) | {"skipped": True}
                for place in range(file.num_rows, end)
            ]
        )
        if self.progress is not None:
            self.progress(file.num_rows, file.header.num_samples)

    def notes(self) -> Iterable[str]:
        """Yield what is worth knowing, in words."""
        if self.log.num_bad:
            yield self.log.report()
        yield from self.parts


def _joined(read: Sequence[FoundRecords]) -> FoundRecords:
    skipped = [entry for found in read for entry in found.skipped]
    return FoundRecords(JoinedRecords([found.records for found in read]), skipped)


def _skipped(record: Record) -> Skipped:
    where = str(record.image or record.video or record.record_id)
    return Skipped(SkipKind.UNREADABLE, where, "by an earlier run", record.record_id)


def keys_of(form: SubmissionForm, records: Sequence[Record], found: FoundRecords) -> list[str]:
    """Return what a form calls each record.

    Raises:
        DataError: Records are called by their place in the file, and some of it is not readable.
    """
    if form.key == "id":
        return [record.record_id for record in records]
    if form.key == "image_id":
        return [record.image_id or record.record_id for record in records]
    ids = [record.record_id for record in found.records]
    counted = [int(name) if name.isascii() and name.isdigit() else -1 for name in ids]
    if counted[:1] == [0] and all(first < second for first, second in pairwise(counted)):
        return [record.record_id for record in records]  # the file has a column of places
    if found.skipped:
        raise DataError(
            f"{found.skipped[0].where}: is not usable, so that the places of the lines that follow "
            f"are not known, by which the form {form.name!r} calls them: repair the line"
        )
    places = {name: str(place) for place, name in enumerate(ids)}
    return [places[record.record_id] for record in records]


def write_submission(
    out: Path, form: SubmissionForm, rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> None:
    """Write predictions in an official form; samples that could not be read are excluded.

    Args:
        out: Where to.
        form: The form.
        rows: All lines of a finished file of ours.
        keys: What the form calls each sample.
    """
    chosen = []
    for row, key in zip(rows, keys, strict=True):
        if "skipped" in row:
            continue
        part = next((name for name in form.parts if name in row), None)
        if part is None:
            raise DataError(f"{out}: the predictions have none of {', '.join(form.parts)}")
        chosen.append((key, row[part]))
    write_atomic(out, form.write(chosen, out.name))
