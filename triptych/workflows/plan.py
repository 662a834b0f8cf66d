"""What a run takes on this machine, from steps that are measured now, and which flags suit it.

A few steps of small batches give the memory and the time of any batch (`workflows/rehearsal.py`);
nothing of them stays, neither a trained weight nor a file.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from statistics import fmean

import cv2
import numpy as np
import torch
from torch import nn

from triptych.core.console import Console
from triptych.core.errors import ConfigError
from triptych.core.machine import available_memory, num_cores, resident_memory
from triptych.data.batches import record_texts
from triptych.data.records import Record
from triptych.data.skips import ImageProblem
from triptych.recipes.config import RunConfig
from triptych.recipes.scales import PAPER_SCALES
from triptych.tasks.registry import task_spec
from triptych.train.estimate import USABLE_SHARE, ScaleSetting, count_state, estimate_memory
from triptych.train.forecast import MemoryForecast, StateBytes
from triptych.train.optim import is_block_matrix
from triptych.train.precision import Precision, has_bf16, resolve_precision
from triptych.train.trainer import memory_bytes
from triptych.workflows.estimate import model_on_paper
from triptych.workflows.prepared import PreparedRun
from triptych.workflows.rehearsal import Rehearsal, Rehearsed, Setting
from triptych.workflows.run import prepare_run, share_threads
from triptych.workflows.scene_data import scene_run

FEWEST_STEPS = 4
"""Steps that are measured of each setting; a shorter run is over before it is measured."""

LOOKED_AT = 2000
"""Records whose texts are counted."""

LONGEST = 10_000
"""Tokens of a text that are counted."""

READ = 64
"""Images that are read to see how fast that is."""

CLEARLY_FASTER = 0.97
"""Of the time of the run as it is given: other flags are suggested from here on down."""

SCALAR_BYTES, EVENT_BYTES = 44, 90
"""Of one number in a line of `metrics.jsonl` with its name, and in TensorBoard's events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting, at the largest batch that fits and at the one that a run would take.

    Attributes:
        setting: Precision, recomputation and gradient cache.
        largest: Most samples whose activations fit at a time; 0 where not even one does.
        samples: Of a micro-batch that a run would take.
        accumulate: Micro-batches of a step.
        chunk: Of the gradient cache; None without one.
        memory: At the peak.
        step_s: Seconds of a step, the mean over the run.
        fits: Whether nine tenths of the memory suffice.
        same_batches: Whether losses compare as many samples with one another as in the run that
            was given.
    """

    setting: Setting
    largest: int
    samples: int
    accumulate: int
    chunk: int | None
    memory: MemoryForecast
    step_s: float
    fits: bool
    same_batches: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """What the data means for the run.

    Attributes:
        samples: Records.
        epochs: How often the run sees each.
        mean_tokens: Of a text with its ends; 0 where there is none.
        longest_tokens: Of the longest text that was looked at.
        cut_share: Share of the texts that are longer than what the model is given.
        read_mb_per_s: Speed at which encoded images were read, one after the other.
        read_gb: Encoded images of the whole run.
        images_per_s: Images that one process prepares in a second.
        decoded_bytes: Of an image, decoded.
    """

    samples: int
    epochs: float
    mean_tokens: float
    longest_tokens: int
    cut_share: float
    read_mb_per_s: float
    read_gb: float
    images_per_s: float
    decoded_bytes: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """Bytes that a run leaves in its folder.

    Attributes:
        checkpoint: One.
        checkpoints: Those that are kept.
        writing: One more, while it is written.
        models: `model/`, and `best/` where the run is validated.
        logs: `metrics.jsonl` and TensorBoard's events.
    """

    checkpoint: float
    checkpoints: float
    writing: float
    models: float
    logs: float

    @property
    def peak(self) -> float:
        """The most at any time."""
        return self.checkpoints + self.writing + self.models + self.logs


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run takes.

    Attributes:
        config: The run.
        limit: Bytes of memory that each of its processes may take.
        given: The run as it is given.
        rows: All settings that were measured.
        best: What is suggested.
        rehearsed: The run's own setting, measured.
        device: Where.
        data: What the data means.
        disk: What it leaves.
        notes: What a user may not expect.
    """

    config: RunConfig
    limit: float
    given: Row
    rows: tuple[Row, ...]
    best: Row
    rehearsed: Rehearsed
    device: str
    data: DataFacts
    disk: Disk
    notes: tuple[str, ...]

    def hours(self, row: Row) -> float:
        """Return the hours of the whole run in a setting, without validation."""
        return row.step_s * self.config.train.max_steps / 3600

    def flags(self) -> dict[str, str]:
        """Return the flags of `triptych train` that make the run what is suggested."""
        train, setting = self.config.train, self.best.setting
        found: dict[str, str] = {}
        if setting.precision != self.given.setting.precision:
            found["--train.precision"] = setting.precision
        if setting.recompute != train.recompute:
            found["--train.recompute"] = setting.recompute
        if self.best.chunk != getattr(self.config.task, "chunk_size", None):
            found["--task.chunk-size"] = str(self.best.chunk)
        if self.best.samples != self.given.samples:
            found["--train.micro-batch-size"] = str(self.best.samples)
        return found


def make_plan(
    config: RunConfig,
    folder: Path,
    *,
    limit: float | None = None,
    as_given: bool = False,
    most_samples: int | None = None,
    clock: Callable[[], float] = time.perf_counter,
    say: Callable[[str], None] = lambda text: None,
) -> Plan:
    """Measure steps of a run, and forecast all of it.

    Args:
        config: The run.
        folder: An empty one for what is needed meanwhile; the caller removes it.
        limit: Bytes that all processes together may take; None is what is free.
        as_given: Measure the run's own setting alone.
        most_samples: Measure no larger micro-batch.
        clock: Returns seconds.
        say: Told what is measured now.

    Raises:
        ConfigError: There is not enough memory for one sample, the run is too short to be measured,
            or the run cannot be trained.
        DataError: The data cannot be read.
    """
    train = config.train
    if train.max_steps < FEWEST_STEPS:
        raise ConfigError(
            f"train.max_steps = {train.max_steps}: the run is shorter than the {FEWEST_STEPS} "
            "steps that each setting is measured with; train it at once"
        )
    process = resident_memory()
    split = train.split_batch(train.num_processes)
    local = train.global_batch_size // train.num_processes
    gpu = torch.cuda.is_available() and train.device != "cpu"
    if limit is None:
        limit = memory_bytes(torch.device("cuda")) if gpu else available_memory() + process
        limit = limit if gpu else limit / train.num_processes
    elif not gpu:
        limit /= train.num_processes
    _check_state(config, 0.0 if gpu else process, limit)
    if train.num_processes > 1:
        config = share_threads(config, train.num_processes)
    threads = torch.get_num_threads()
    try:
        run = prepare_run(_with_data(config, folder), folder / "run", Console(file=io.StringIO()))
        rehearsal = Rehearsal(
            run, folder / "run", min(local, most_samples or local), USABLE_SHARE * limit, clock
        )
        settings = rehearsal.settings(run.config, _precisions(config, gpu))
        measured = []
        for number, setting in enumerate(settings[:1] if as_given else settings):
            say(f"measuring {_words(setting)}")
            measured.append(rehearsal.measure(setting) if number else rehearsal.begin(setting))
    finally:
        torch.set_num_threads(threads)
    state = rehearsal.state
    assert state is not None, "steps were done"
    facts = data_facts(run, measured[0], clock)
    around = _Around(config, state, facts, 0.0 if gpu else process, limit, local)
    rows = [_row(around, each, split.micro_batch_size) for each in measured]
    given = _given(around, measured[0], split.micro_batch_size)
    return Plan(
        config=config,
        limit=limit,
        given=given,
        rows=tuple(rows),
        best=_best(given, rows, limit),
        rehearsed=measured[0],
        device="cuda" if gpu else "cpu",
        data=facts,
        disk=disk(run, state),
        notes=tuple(_notes(config, run, facts, given)),
    )


def _precisions(config: RunConfig, gpu: bool) -> list[Precision]:
    """Return what the run computes in, and what else the machine is fast in, its own first."""
    device = torch.device("cuda" if gpu else "cpu")
    own = resolve_precision(config.train.precision, device)
    if config.train.precision != "auto" or not has_bf16(device):
        return [own]
    return [own, "fp32" if own == "bf16" else "bf16"]


def _with_data(config: RunConfig, folder: Path) -> RunConfig:
    """Return the run on the built-in scenes where it names no data.

    Raises:
        ConfigError: The scenes do not serve the recipe.
    """
    if config.data.train:
        return config
    if config.scale in PAPER_SCALES:
        raise ConfigError(
            f"{config.recipe} at scale {config.scale} has no data to measure with: name it with "
            "--data PATH, or give --on-paper for what formulas alone say"
        )
    small = scene_run(
        replace(config, scale="smoke"), folder / "data", console=Console(file=io.StringIO())
    )
    return replace(small, scale=config.scale)


def _check_state(config: RunConfig, process: float, limit: float) -> None:
    """Raise where not even the weights and what belongs to them fit, before they are made."""
    if config.model.init_from is not None and task_spec(config.task).load_model is not None:
        return  # a folder of another kind
    modules = nn.ModuleDict({"model": model_on_paper(config)})
    muon = config.optim.muon_learning_rate is not None
    count = count_state(modules, is_block_matrix) if muon else count_state(modules)
    setting = ScaleSetting(world_size=1, global_batch_size=1, parallel="none", precision="fp32")
    state = estimate_memory(count, setting)
    adapted = config.lora.rank is not None or config.freeze  # few parameters have gradients then
    needed = process + (state.weights if adapted else state.state)
    if needed > USABLE_SHARE * limit:
        raise ConfigError(
            f"not enough memory for even one sample: {config.model.name} takes "
            f"{needed / 1e9:,.1f} GB before any activation (weights, gradients, moments and the "
            f"process), and {USABLE_SHARE * limit / 1e9:,.1f} GB may be used; choose a smaller "
            "model, or share it among GPUs: --gpus 8 --on-paper says what they need"
        )


def _words(setting: Setting) -> str:
    cache = ", gradient cache" if setting.cached else ""
    return f"{setting.precision}, recompute {setting.recompute}{cache}"


# ------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True, slots=True)
class _Around:
    """What all rows share."""

    config: RunConfig
    state: StateBytes
    facts: DataFacts
    process: float
    limit: float
    local: int

    def row(
        self, measured: Rehearsed, largest: int, samples: int, chunk: int | None, target: int
    ) -> Row:
        """Return a setting at a batch."""
        memory, accumulate = self.memory(measured, samples, chunk), self.local // samples
        lines, workers = measured.lines, self.config.data.num_workers
        step_s = lines.seconds(samples, accumulate, chunk=chunk, workers=workers)
        return Row(
            setting=measured.setting,
            largest=largest,
            samples=samples,
            accumulate=accumulate,
            chunk=chunk,
            memory=memory,
            step_s=step_s,
            fits=memory.total <= USABLE_SHARE * self.limit,
            same_batches=samples == target or not hasattr(self.config.task, "chunk_size"),
        )

    def memory(self, measured: Rehearsed, samples: int, chunk: int | None) -> MemoryForecast:
        """Return the memory of a setting at a batch."""
        data, train = self.config.data, self.config.train
        found = measured.lines.memory(
            self.state,
            samples,
            self.local // samples,
            chunk=chunk,
            copies=train.async_checkpoints and not torch.cuda.is_available(),
        )
        images = min(data.cache_mib * 2**20, self.facts.samples * self.facts.decoded_bytes)
        return replace(found, data=images * max(1, data.num_workers), process=self.process)

    def fits(self, measured: Rehearsed, samples: int, chunk: int | None) -> bool:
        """Return whether a setting fits at a batch."""
        return self.memory(measured, samples, chunk).total <= USABLE_SHARE * self.limit


def _given(around: _Around, measured: Rehearsed, target: int) -> Row:
    chunk = getattr(around.config.task, "chunk_size", None)
    return around.row(measured, target, target, chunk, target)


def _row(around: _Around, measured: Rehearsed, target: int) -> Row:
    """Return a setting at the largest batch that fits, or at the run's own where that is less."""
    if measured.setting.cached:
        sizes = [target]
        while sizes[-1] > 1:
            sizes.append(sizes[-1] // 2)
        largest = next((n for n in sizes if around.fits(measured, target, n)), 0)
        return around.row(measured, largest, target, max(1, largest), target)
    sizes = [n for n in range(around.local, 0, -1) if around.local % n == 0]
    largest = next((n for n in sizes if around.fits(measured, n, None)), 0)
    samples = min(max(1, largest), target)
    while around.local % samples:
        samples -= 1
    return around.row(measured, largest, samples, None, target)


def _best(given: Row, rows: Sequence[Row], limit: float) -> Row:
    """Return the fastest setting that fits and compares as many samples, or else any that fits.

    Raises:
        ConfigError: Nothing fits.
    """
    fitting = [row for row in rows if row.fits]
    if not fitting:
        least = min(rows, key=lambda row: row.memory.total)
        raise ConfigError(
            f"not enough memory for even one sample: {_words(least.setting)} takes "
            f"{least.memory.total / 1e9:,.2f} GB for one, and {USABLE_SHARE * limit / 1e9:,.2f} GB "
            "may be used; choose a smaller model or image size, lower data.cache_mib, or share the "
            "run among GPUs: --gpus 8 --on-paper says what they need"
        )
    same = [row for row in fitting if row.same_batches] or fitting
    best = min(same, key=lambda row: row.step_s)
    if given.fits and given.step_s * CLEARLY_FASTER <= best.step_s:
        return given
    return best


def _notes(config: RunConfig, run: PreparedRun, facts: DataFacts, given: Row) -> Iterator[str]:
    if not config.data.train:
        yield (
            "measured on 48 of the built-in scenes; name your own data with --data, since their "
            "images and captions decide too"
        )
    if facts.epochs < 1:
        yield f"the run sees {facts.epochs:.0%} of the data: it is shorter than one epoch"
    if facts.cut_share > 0.01:
        yield (
            f"{facts.cut_share:.0%} of the texts are longer than the "
            f"{config.captions.max_text_tokens} tokens that the model is given: "
            "captions.max_text_tokens changes that"
        )
    if config.data.val or config.data.val_share is not None:
        yield "validation takes time that is not counted"
    needed = given.accumulate * given.samples / facts.images_per_s / given.step_s
    if config.data.num_workers and needed > config.data.num_workers:
        yield (
            f"{config.data.num_workers} workers prepare images more slowly than they are trained "
            f"on: --data.num-workers {math.ceil(needed)} would do on a machine with as many cores "
            f"(this one has {num_cores()})"
        )


# ------------------------------------------------------------------------------------------- data


def data_facts(run: PreparedRun, measured: Rehearsed, clock: Callable[[], float]) -> DataFacts:
    """Look at some records of a run's data."""
    records, train = run.data.records, run.config.train
    total = train.max_steps * train.global_batch_size
    some = _spread(records, LOOKED_AT)
    most = run.config.captions.max_text_tokens
    texts = islice(chain.from_iterable(record_texts(record) for record in some), 2 * LOOKED_AT)
    lengths = [len(ids) for ids in run.tokenizer.encode(list(texts), max_tokens=LONGEST)]
    start, sizes, decoded = clock(), [], []
    taken = 0.0
    for record in _spread(records, READ):
        for image in record.all_images()[:1]:
            start = clock()
            try:
                content = image.read()
            except ImageProblem:
                continue
            taken += clock() - start
            sizes.append(len(content))
            pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
            decoded.append(0.0 if pixels is None else 64.0 * pixels.size)
    mean = fmean(sizes) if sizes else 0.0
    return DataFacts(
        samples=len(records),
        epochs=total / len(records),
        mean_tokens=fmean(lengths) if lengths else 0.0,
        longest_tokens=max(lengths, default=0),
        cut_share=fmean(length > most for length in lengths) if lengths else 0.0,
        read_mb_per_s=sum(sizes) / 1e6 / max(taken, 1e-9),
        read_gb=mean * total / 1e9,
        images_per_s=measured.sizes[-1] / max(measured.parts["data"], 1e-9),
        decoded_bytes=fmean(decoded) if decoded else 0.0,
    )


def _spread(records: Sequence[Record], most: int) -> Iterator[Record]:
    step = max(1, len(records) // most)
    return (records[row] for row in range(0, len(records), step)[:most])


# ------------------------------------------------------------------------------------------- disk


def disk(run: PreparedRun, state: StateBytes) -> Disk:
    """Return what a run leaves in its folder."""
    train, steps = run.config.train, run.config.train.max_steps
    every = train.checkpoint_every_steps
    saved = [*range(every, steps, every), steps]
    kept = set(saved[-train.keep_checkpoints :])
    if train.keep_every_steps is not None:
        kept |= {step for step in saved if step % train.keep_every_steps == 0}
    weights = sum(t.numel() * t.element_size() for t in run.model.state_dict().values())
    if "head" in run.task.modules:
        head = run.task.modules["head"].state_dict().values()
        weights += sum(t.numel() * t.element_size() for t in head)
    texts = 2 * len(run.tokenizer.to_json())  # in the run folder, and in the model folder
    validated = bool(run.config.data.val) or run.config.data.val_share is not None
    scalars = len(run.task.objective_names) + 7  # the total, the norm, rates, speed and time
    lines = math.ceil(steps / train.log_every_steps)
    event = EVENT_BYTES if train.tensorboard else 0
    return Disk(
        checkpoint=state.checkpoint,
        checkpoints=state.checkpoint * len(kept),
        writing=state.checkpoint if len(saved) > len(kept) else 0.0,
        models=float(weights) * (2 if validated else 1) + texts,
        logs=float(lines * scalars * (SCALAR_BYTES + event)),
    )
