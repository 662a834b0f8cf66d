"""The training data of a run: read, sorted by kind, and turned into batches."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from triptych.core.errors import ConfigError, DataError
from triptych.data.check import CLIPS_ARE_NOT_READ, clip_problem
from triptych.data.collate import AnyCollator
from triptych.data.held_out import count_shared, hold_out
from triptych.data.manifest import FoundRecords, read_records
from triptych.data.mixture import MixtureSource, build_mixture
from triptych.data.records import JoinedRecords, Record, SelectedRecords, kinds_of
from triptych.data.skips import SkipLog, Skipped
from triptych.data.source import DataSourceConfig, parts_note
from triptych.data.stream import BatchLoader, build_loader
from triptych.data.transforms.pipeline import ImageTransform
from triptych.data.windows import check_windows
from triptych.distributed.env import is_main, rank, world_size
from triptych.recipes.config import RunConfig
from triptych.tasks.registry import has_field, missing_fields, needs_of
from triptych.train.sources import BatchSource
from triptych.train.task import MixedTask, Task


@dataclass(frozen=True, slots=True)
class ReadSource:
    """One source, read.

    Attributes:
        config: Where it came from.
        name: What curves and counters call it; differs from all others.
        records: Its usable records.
        parts: The splits of its file, where all are read and there are several.
    """

    config: DataSourceConfig
    name: str
    records: Sequence[Record]
    parts: tuple[str, ...] = ()

    def kind(self) -> str:
        """Return its kind of batch: the configured one, or what its first record is good for.

        Raises:
            ConfigError: The record is neither a pair, nor an image, nor a text.
        """
        if self.config.kind is not None:
            return self.config.kind
        first = self.records[0]
        if first.image is not None:
            return "pair" if first.caption else "image"
        if first.text or first.caption:
            return "text"
        raise ConfigError(
            f"{self.config.path}: cannot tell what its batches are: set kind to pair, image or text"
        )


@dataclass(frozen=True, slots=True)
class WholeSource:
    """One source with all that was read of it, before any record is held out or skipped.

    Attributes:
        config: Where it came from.
        records: Its usable records.
    """

    config: DataSourceConfig
    records: Sequence[Record]


@dataclass(frozen=True, slots=True)
class TrainingData:
    """All that a run trains on.

    Attributes:
        sources: In the order of the config.
        skip_log: Counts what cannot be used, of all sources together.
        held_out: What the model is validated on; empty for none.
        whole: All that was read, by what messages call it.
        divided: How many images are held out of how many, or are on both sides, in words; empty
            for none.
    """

    sources: tuple[ReadSource, ...]
    skip_log: SkipLog
    held_out: tuple[ReadSource, ...] = ()
    whole: Mapping[str, WholeSource] = field(default_factory=dict)
    divided: str = ""

    @property
    def records(self) -> Sequence[Record]:
        """The records of all sources, one after the other."""
        if len(self.sources) == 1:
            return self.sources[0].records
        return JoinedRecords([source.records for source in self.sources])

    def notes(self) -> list[str]:
        """Return what a user may not expect, a line a source."""
        found = dict.fromkeys((s.config.path, s.parts) for s in (*self.sources, *self.held_out))
        notes = [parts_note(path, parts) for path, parts in found if parts]
        return [*notes, self.divided] if self.divided else notes

    def batch_sources(self, task: Task) -> tuple[BatchSource, ...]:
        """Return what the trainer must know of the sources; empty where they are one dataset.

        They are a mixture where the task takes several kinds of batches, or one has a ratio.
        """
        mixed = isinstance(task, MixedTask)
        if not mixed and all(source.config.ratio is None for source in self.sources):
            return ()
        return tuple(
            BatchSource(name=source.name, kind=source.kind() if mixed else None)
            for source in self.sources
        )


def read_training_data(config: RunConfig, run_folder: Path) -> TrainingData:
    """Read all sources; what they skip counts towards the bad share.

    Raises:
        ConfigError: There is no source, or none is in shards as `data.shuffle_window` needs.
        DataError: A source cannot be read, or too much of the data is bad.
    """
    if not config.data.train:
        raise ConfigError("data.train is empty: name a manifest with --data PATH")
    needs = needs_of(config.task, config.recipe)

    def prepared(sources: Sequence[DataSourceConfig]) -> list[DataSourceConfig]:
        return [_with_length(source.under(config.data.root), config, needs) for source in sources]

    given, apart = prepared(config.data.train), prepared(config.data.val)
    _check_present(given, config)
    found = [read_records(source) for source in (*given, *apart)]
    for source, part in zip(given, found, strict=False):
        check_fields(part.records, needs, source.path, config.recipe)
    whole = _whole(given, apart, found)
    check_windows([part.records for part in found[: len(given)]], config.data.shuffle_window)
    clips: list[Skipped] = []
    if not _reads_clips(needs) and any("image" in need for need in needs):
        for part in found:
            part.records, problems = _without_clips(part.records)
            clips += problems
    run_folder.mkdir(parents=True, exist_ok=True)
    log = SkipLog(
        run_folder,
        sum(part.num_samples for part in found) + len(clips),
        config.data.max_bad_share,
        file_name="skipped.jsonl" if is_main() else f"skipped.rank{rank()}.jsonl",
    )
    if is_main():
        log.add_all(chain(*(part.skipped for part in found), clips))
    train, held_out = found[: len(given)], found[len(given) :]
    data = TrainingData(
        _named(given, train), log, _named(apart, held_out), whole, _shared(train, held_out)
    )
    return data if config.data.val_share is None else _held_out(data, config.data.val_share)


def _whole(
    given: Sequence[DataSourceConfig],
    apart: Sequence[DataSourceConfig],
    found: Sequence[FoundRecords],
) -> dict[str, WholeSource]:
    names = [f"data.train {name}" for name in _names(given)]
    names += [f"data.val {name}" for name in _names(apart)]
    return {
        name: WholeSource(config, part.records)
        for name, config, part in zip(names, (*given, *apart), found, strict=True)
    }


def _shared(train: Sequence[FoundRecords], held_out: Sequence[FoundRecords]) -> str:
    """Return a warning where the model is validated on images that it trains on; else nothing."""
    apart = JoinedRecords([part.records for part in held_out])
    if not len(apart):
        return ""
    shared = count_shared(JoinedRecords([part.records for part in train]), apart)
    return (
        f"{shared:,} images of data.val are trained on too, so that its scores say little of new "
        "images: name other data"
        if shared
        else ""
    )


def _held_out(data: TrainingData, share: float) -> TrainingData:
    """Return the data without a share of its images, which become those to validate on."""
    where = ", ".join(source.config.path for source in data.sources)
    parts = hold_out([source.records for source in data.sources], share, where)
    sources = [replace(s, records=p.train) for s, p in zip(data.sources, parts, strict=True)]
    apart = [replace(s, records=p.held_out) for s, p in zip(data.sources, parts, strict=True)]
    held = sum(len(part.held_out) for part in parts)
    total = held + sum(len(part.train) for part in parts)
    kind = "images" if any(r.all_images() for r in data.records[:1]) else "texts"
    divided = (
        f"held out for validation: {sum(p.num_images for p in parts):,} of "
        f"{sum(p.total_images for p in parts):,} {kind} ({held:,} of {total:,} records), "
        f"data.val_share {share:g}"
    )
    held_out = tuple(source for source in apart if len(source.records))
    return replace(data, sources=tuple(sources), held_out=held_out, divided=divided)


def _named(
    configs: Sequence[DataSourceConfig], found: Sequence[FoundRecords]
) -> tuple[ReadSource, ...]:
    return tuple(
        ReadSource(source, name, part.records, part.parts)
        for source, name, part in zip(configs, _names(configs), found, strict=True)
    )


def _reads_clips(needs: Sequence[str]) -> bool:
    return any("video" in need.split("|") for need in needs)


def _check_present(sources: Sequence[DataSourceConfig], config: RunConfig) -> None:
    """Raise where sources of several are missing; of one the reader says more.

    Raises:
        DataError: Some are not there; the message lists them all.
    """
    absent = {source.name or source.path: source.absent() for source in sources}
    lines = [f"  {name}: {', '.join(paths)}" for name, paths in absent.items() if paths]
    if len(sources) == 1 or not lines:
        return
    root = config.data.root
    where = "the current folder (name another with --data.root)" if root is None else root
    raise DataError(
        f"{config.recipe} reads {len(sources)} sources under {where}, and of {len(lines)} of them "
        "there is nothing at:\n"
        + "\n".join(lines)
        + f"\n`triptych data list --data {root or '.'}` says what each dataset consists of; "
        "--data and data.train name others"
    )


def _with_length(
    source: DataSourceConfig, config: RunConfig, needs: Sequence[str]
) -> DataSourceConfig:
    """Return a source of texts with the length that the run trains on; others as they are."""
    reads_texts = any("text" in need.split("|") for need in needs) and "label" not in needs
    if not reads_texts or source.max_text_tokens is not None:
        return source
    length = getattr(config.task, "max_text_tokens", config.captions.max_text_tokens)
    tokenizer = source.tokenizer or config.tokenizer.path
    return replace(source, max_text_tokens=length, tokenizer=tokenizer)


def _without_clips(records: Sequence[Record]) -> tuple[Sequence[Record], list[Skipped]]:
    """Return the records that are no clips alone, and what is wrong with the others."""
    if not any("video" in kind and "image" not in kind for kind in kinds_of(records)):
        return records, []  # of an index, without a look at millions
    clips = {
        row: clip
        for row, record in enumerate(records)
        if (clip := clip_problem(record)) is not None
    }
    kept = array("q", (row for row in range(len(records)) if row not in clips))
    return SelectedRecords(records, kept), list(clips.values())


def check_fields(records: Sequence[Record], needs: Sequence[str], where: str, recipe: str) -> None:
    """Raise where no record has the fields that a run reads; clips alone are no images.

    Raises:
        DataError: None has; the message names what is missing and what there is.
    """
    if not records or any(not missing_fields(needs, record) for record in records):
        return  # mostly the first record; millions need not be looked at
    if not _reads_clips(needs) and all(clip_problem(r) is not None for r in records):
        raise DataError(f"{where}: every record {CLIPS_ARE_NOT_READ}")
    names = [
        known.name
        for known in fields(Record)
        if known.name not in ("record_id", "image_id", "split")
    ]
    present = [name for name in names if any(has_field(record, name) for record in records)]
    missing = min((missing_fields(needs, record) for record in records), key=len)
    lacked = " and ".join(need.replace("|", " or ") for need in missing)
    raise DataError(
        f"{where}: no record has {lacked}, which {recipe} needs (found: {', '.join(present)}); "
        "name other data, or another recipe: `triptych init` says which fit"
    )


def training_loader(
    config: RunConfig,
    data: TrainingData,
    batch_sources: Sequence[BatchSource],
    collator_of: Callable[[str | None], AnyCollator[Any]],
    start: int,
) -> BatchLoader:
    """Return the endless batches of a run, from micro-batch `start` on.

    Args:
        config: Sizes and seeds.
        data: What to train on.
        batch_sources: What `data.batch_sources` returned.
        collator_of: Builds the collator of a kind of batch; of None for a task of one kind.
        start: Micro-batches that are done.
    """
    transform = ImageTransform(config.image, train=True)
    split = config.train.split_batch(world_size())
    shared: dict[str, Any] = {
        "seed": config.data.seed,
        "local_batch_size": split.micro_batch_size,
        "num_workers": config.data.num_workers,
        "skip_log": data.skip_log,
        "cache_mib": config.data.cache_mib,
        "start_step": start,
        "rank": rank(),
        "world_size": world_size(),
        "shuffle_window": config.data.shuffle_window,
    }
    if not batch_sources:
        check_windows([data.records], config.data.shuffle_window)  # of sources joined to one
        one = build_loader(data.records, collator_of(None), transform, train=True, **shared)
        return replace(one, pin_memory=trains_on_cuda(config.train.device))
    mixture = [
        MixtureSource(
            name=source.name,
            records=source.records,
            collator=collator_of(label.kind),
            transform=transform,
            ratio=1.0 if source.config.ratio is None else source.config.ratio,
        )
        for source, label in zip(data.sources, batch_sources, strict=True)
    ]
    mixed = build_mixture(mixture, accumulate=split.accumulate, **shared)
    return replace(mixed, pin_memory=trains_on_cuda(config.train.device))


def trains_on_cuda(device: str) -> bool:
    """Return whether `TrainConfig.device` means a CUDA device here."""
    return device != "cpu" and torch.cuda.is_available()


def _names(sources: Sequence[DataSourceConfig]) -> list[str]:
    """Return the configured names, or those of the files, with a number where two are equal."""
    names: list[str] = []
    for source in sources:
        wanted = name = source.name or Path(source.path).stem or source.path
        number = 2
        while name in names:
            name, number = f"{wanted}_{number}", number + 1
        names.append(name)
    return names
