"""Score a file of predictions, ours or one in an official form, against labelled data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.core.outputs import MetricValue, Predictions
from triptych.core.reading import MAX_DATA_BYTES, read_text
from triptych.data.collate.classification import ClassPicker
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.records import Record
from triptych.data.source import DataSourceConfig
from triptych.evaluation.metrics import JavaMetric, Metric, add_java_metrics
from triptych.evaluation.submissions import (
    FORMS,
    OWN,
    SubmissionForm,
    find_form,
    recognise_form,
)
from triptych.evaluation.zero_shot import ZeroShotMetric
from triptych.tasks.registry import (
    complete_task,
    evaluation_of,
    find_evaluation,
    stored_task_config,
    ways_to_score,
)
from triptych.tasks.spec import Evaluation, TaskConfig
from triptych.workflows.evaluate import with_frames
from triptych.workflows.predict import keys_of
from triptych.workflows.predictions import (
    Header,
    hash_of_records,
    is_ours,
    predictions_of,
    read_predictions,
)
from triptych.workflows.predictors import evaluation_records, has_truth
from triptych.workflows.rankings import score_rankings

NUM_EXAMPLES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredFile:
    """The numbers of a file of predictions.

    Attributes:
        task: The evaluation.
        form: The form of the file.
        values: The numbers.
        notes: What is worth knowing, in words.
        header: What made the file; None where it is in an official form.
    """

    task: str
    form: str
    values: list[MetricValue]
    notes: list[str]
    header: Header | None = None


def score_file(
    path: Path,
    source: DataSourceConfig,
    *,
    task: str | None = None,
    form: str | None = None,
    allow_missing: bool = False,
    java_metrics: Sequence[JavaMetric] = (),
) -> ScoredFile:
    """Score a file of predictions.

    Args:
        path: A file that `predict_model` wrote, or one of another system in an official form.
        source: Labelled data.
        task: The name of an `Evaluation`; None is what the file says, or what its form is for.
        form: The name of its form; None recognises it.
        allow_missing: Whether samples without a prediction are excluded.
        java_metrics: Captions: out of "meteor" and "spice", which need Java.

    Raises:
        CapabilityError: What a metric needs is missing.
        ConfigError: The task is not the file's, or cannot be told.
        DataError: The file is broken; a sample is predicted twice, is unknown, or is missing.
    """
    if task is not None:
        find_evaluation(task)
    if form in (None, OWN) and is_ours(path):
        file = _ours(path, task)
    elif form == OWN:
        raise DataError(f"{path} is no file of predictions of ours: omit --format {OWN}")
    else:
        file = _foreign(path, task, form)
    return file.score(source, read_records(source), allow_missing, java_metrics)


@dataclass(frozen=True, slots=True)
class _File:
    """A file of predictions as it was read.

    Attributes:
        path: Where it lies.
        task: The evaluation.
        rows: The predictions, each with its "id"; of our own also with "index".
        header: What made it; None in an official form.
        form: Its official form; None for our own.
    """

    path: Path
    task: str
    rows: list[dict[str, Any]]
    header: Header | None = None
    form: SubmissionForm | None = None

    def score(
        self,
        source: DataSourceConfig,
        found: FoundRecords,
        allow_missing: bool,
        java_metrics: Sequence[JavaMetric],
    ) -> ScoredFile:
        """Return the numbers."""
        config, scoring = self._way(found.records)
        if scoring.procedure == "search":
            add_java_metrics([], java_metrics)
            return self._score_search(evaluation_records(found.records, scoring, source.path))
        labelled = evaluation_records(found.records, scoring, source.path)
        limit = None if self.header is None else self.header.settings.get("limit")
        matched = _match(self, scoring, labelled[:limit], found, allow_missing)
        if self.header is None:
            matched.notes.extend(self._label_notes(matched, scoring))
        positions = [position for position, _ in matched.rows]
        predictions = predictions_of([row for _, row in matched.rows], positions)
        metrics = self._metrics(config, scoring, matched.records, found.records)
        add_java_metrics(metrics, java_metrics)
        values, without = _computed(metrics, predictions, self.path)
        words = [f"{name} cannot be computed: the file does not hold it" for name in without]
        return ScoredFile(
            task=self.task,
            form=OWN if self.form is None else self.form.name,
            values=self._with_frames(
                [replace(v, protocol=f"{v.protocol}{matched.excluded}") for v in values],
                matched.records,
            ),
            notes=[*matched.notes, *words],
            header=self.header,
        )

    def _score_search(self, pairs: Sequence[Record]) -> ScoredFile:
        names = [row["id"] for row in self.rows]
        _refuse_repeats(names, f"{self.path} lists")
        values, notes = score_rankings(
            dict(zip(names, self.rows, strict=True)),
            pairs,
            {} if self.header is None else self.header.settings,
            str(self.path),
        )
        return ScoredFile(
            task=self.task,
            form=OWN if self.form is None else self.form.name,
            values=self._with_frames(values, pairs),
            notes=notes,
            header=self.header,
        )

    def _with_frames(
        self, values: list[MetricValue], records: Sequence[Record]
    ) -> list[MetricValue]:
        if self.header is None:
            return values
        return with_frames(values, records, self.header.settings.get("num_frames", 1))

    def _label_notes(self, matched: _Matched, scoring: Evaluation[Any]) -> list[str]:
        """Return what is odd about the labels of a file of another system.

        Raises:
            DataError: No label is one that the data has.
        """
        if scoring.field != "label" or all("value" in row for _, row in matched.rows):
            return []
        labels = [record.label for record in matched.records]
        known = {str(x).lower() if isinstance(x, bool) else str(x) for x in labels}
        said = Counter(str(row["label"]) for _, row in matched.rows)
        others = [label for label in said if label not in known]
        if len(others) == len(said):
            raise DataError(
                f"{self.path}: its labels are {_listed(sorted(said))}, and those of the data "
                f"{_listed(sorted(known))}: are they called otherwise?"
            )
        count = sum(said[label] for label in others)
        return [f"{count} predictions have a label that the data lacks ({_listed(sorted(others))})"
                ] if others else []  # fmt: skip

    def _way(self, records: Sequence[Record]) -> tuple[TaskConfig, Evaluation[Any]]:
        """Return the settings and the evaluation that score the file."""
        if self.header is not None:
            stored = stored_task_config(self.header.task_config)
            if stored is None:
                kind = self.header.task_config.get("kind")
                raise DataError(f"{self.path}: was made by the task {kind!r}, which is not known")
            return stored, evaluation_of(stored, self.task)
        assert self.form is not None, "a file without a header is in an official form"
        ways = [(c, e) for c, e in ways_to_score(self.task) if self.form.name in e.forms]
        fitting = [(c, e) for c, e in ways if any(has_truth(record, e) for record in records)]
        config, scoring = (fitting or ways)[0]
        labelled = [record for record in records if has_truth(record, scoring)]
        if scoring.procedure != "predict" or not labelled:
            return config(), scoring
        return complete_task(config(), labelled), scoring

    def _metrics(
        self,
        config: TaskConfig,
        scoring: Evaluation[Any],
        labelled: Sequence[Record],
        records: Sequence[Record],
    ) -> list[Metric]:
        if scoring.procedure == "names":
            settings = {} if self.header is None else self.header.settings
            pick = ClassPicker(settings.get("label_pattern"))
            labels = {i: pick(str(record.label)) for i, record in enumerate(labelled)}
            if self.header is None:
                return [ZeroShotMetric(labels, None)]
            num_sentences = len(settings["templates"])
            return [ZeroShotMetric(labels, len(settings["classes"]), num_sentences)]
        assert scoring.metrics is not None, f"{scoring.name} is scored by predictions"
        return scoring.metrics(config, labelled, records)


def _ours(path: Path, task: str | None) -> _File:
    """Read a finished file of ours."""
    header, rows = read_predictions(path)
    if task is not None and task != header.task:
        raise ConfigError(f"{path} holds predictions of {header.task!r}, not of {task!r}")
    if len(rows) < header.num_samples:
        raise DataError(
            f"{path} is not finished: {len(rows)} of {header.num_samples} samples are predicted; "
            "run the same `triptych predict` again"
        )
    if all("skipped" in row for row in rows):
        raise DataError(f"{path}: none of its {len(rows)} samples could be read")
    return _File(path, header.task, rows, header)


def _foreign(path: Path, task: str | None, form: str | None) -> _File:
    """Read a file in an official form."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if form is None:
        used = recognise_form(read_text(path, max_bytes=MAX_DATA_BYTES))
        if used is None:
            raise DataError(
                f"{path}: of no form that is known ({', '.join([OWN, *FORMS.names()])}); name one "
                "with --format to learn what is wrong with it"
            )
    else:
        used = FORMS.get(form)
    if task is None:
        task = _task_of(used)
    allowed = [name for _, scoring in ways_to_score(task) for name in scoring.forms]
    find_form(used.name, allowed, task)
    read = used.read(path)
    rows = [
        {"id": key} | (value if isinstance(value, dict) else {used.parts[0]: value})
        for key, value in read
    ]
    if "value" in used.parts:
        numbers = _numbers([value for _, value in read])
        rows = [row | {"value": number} for row, number in zip(rows, numbers)] if numbers else rows
    return _File(path, task, rows, None, used)


def _numbers(texts: Sequence[str]) -> list[float]:
    """Return texts as numbers; nothing where one is none."""
    try:
        return [float(text) for text in texts]
    except ValueError:
        return []


def _task_of(form: SubmissionForm) -> str:
    """Return the one evaluation that a form is for."""
    from triptych.tasks.registry import evaluations

    names = [
        name
        for name in evaluations()
        if any(form.name in scoring.forms for _, scoring in ways_to_score(name))
    ]
    if len(names) != 1:
        raise ConfigError(
            f"files in the form {form.name!r} are of several tasks: name one with --task, of "
            f"{', '.join(names)}"
        )
    return names[0]


@dataclass(frozen=True, slots=True)
class _Matched:
    """Predictions beside the records that they are of.

    Attributes:
        records: What is scored.
        rows: Places in `records`, and the prediction of each; those that could not be read lack.
        notes: What is worth knowing, in words.
        excluded: A sentence for the protocol on what is not scored; empty if nothing is.
    """

    records: list[Record]
    rows: list[tuple[int, dict[str, Any]]]
    notes: list[str]
    excluded: str = ""


def _match(
    file: _File,
    scoring: Evaluation[Any],
    labelled: list[Record],
    found: FoundRecords,
    allow_missing: bool,
) -> _Matched:
    """Find the record of each prediction.

    Raises:
        DataError: A sample is predicted twice, is unknown, or is missing; or ids repeat.
    """
    wanted, keys = _keys(file, scoring, labelled, found)
    _refuse_repeats(keys, f"{file.path} predicts")
    _refuse_repeats(wanted, "in the data, by which predictions are found, there is")
    places = {key: place for place, key in enumerate(wanted)}
    by_place = {places[key]: row for key, row in zip(keys, file.rows) if key in places}
    others = [key for key in keys if key not in places]
    unknown = _unknown(file, scoring, others, found)
    if unknown:
        raise DataError(f"{file.path}: {_some(unknown)} not in the data: is it of another split?")
    missing = [key for place, key in enumerate(wanted) if place not in by_place]
    if missing and (not allow_missing or not by_place):
        raise DataError(
            f"{file.path}: {_some(missing)} in the data but not predicted. To score the "
            f"{len(by_place)} others alone, give --allow-missing"
        )
    notes, excluded = [], ""
    if others:
        notes.append(f"{len(others)} predictions are of samples that are not scored: "
                     f"they have no {scoring.field} in the data")  # fmt: skip
    if missing:
        excluded = f" {len(missing)} of {len(wanted)} samples have no prediction and are excluded."
        notes.append(excluded.strip())
    kept = sorted(by_place)
    rows = [(new, by_place[old]) for new, old in enumerate(kept)]
    read = [(place, row) for place, row in rows if "skipped" not in row]
    return _Matched([labelled[old] for old in kept], read, notes, excluded)


def _keys(
    file: _File, scoring: Evaluation[Any], labelled: list[Record], found: FoundRecords
) -> tuple[list[str], list[str]]:
    """Return what the labelled records and the predictions are matched by."""
    if file.header is not None and file.header.data_hash == hash_of_records(
        labelled, scoring.truth
    ):
        return [str(i) for i in range(len(labelled))], [str(row["index"]) for row in file.rows]
    if file.form is not None:
        return keys_of(file.form, labelled, found), [row["id"] for row in file.rows]
    if scoring.one_per_image:
        return (
            [record.image_id or record.record_id for record in labelled],
            [row.get("image_id", row["id"]) for row in file.rows],
        )
    return [record.record_id for record in labelled], [row["id"] for row in file.rows]


def _unknown(
    file: _File, scoring: Evaluation[Any], others: Sequence[str], found: FoundRecords
) -> list[str]:
    """Return which keys of predictions are of no record at all."""
    if not others:
        return []
    if file.form is not None:
        known = set(keys_of(file.form, found.records, found))
    elif scoring.one_per_image:
        known = {record.image_id or record.record_id for record in found.records}
    else:
        known = {record.record_id for record in found.records}
    return [key for key in others if key not in known]


def _refuse_repeats(keys: Sequence[str], where: str) -> None:
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        raise DataError(f"{where} more than once: {_listed(twice)}")


def _some(keys: Sequence[str]) -> str:
    """Return how many samples there are, and the first of them."""
    return f"{len(keys)} {'sample is' if len(keys) == 1 else 'samples are'} ({_listed(keys)})"


def _listed(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - NUM_EXAMPLES} more" if len(keys) > NUM_EXAMPLES else ""
    return ", ".join(keys[:NUM_EXAMPLES]) + more


def _computed(
    metrics: Sequence[Metric], predictions: Predictions, path: Path
) -> tuple[list[MetricValue], list[str]]:
    """Return the numbers, and the names of the metrics that need what a file does not hold."""
    values: list[MetricValue] = []
    without: list[str] = []
    for metric in metrics:
        try:
            metric.update(predictions)
        except CapabilityError:
            without.append(metric.name)
        else:
            values += metric.compute()
    if not values:
        raise DataError(f"{path}: holds nothing that {' or '.join(without)} is computed of")
    return values, without
