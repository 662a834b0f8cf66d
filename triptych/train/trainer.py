"""The training loop, in one fixed order, for any Task."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoint.run import list_checkpoints, load_latest
from triptych.checkpoint.sharded import CheckpointWriter
from triptych.core.console import Console
from triptych.core.errors import ConfigError, DataError
from triptych.core.outputs import MetricValue
from triptych.core.processes import keep_freed_memory
from triptych.core.rng import seed_step
from triptych.distributed.collectives import (
    all_gather,
    any_rank,
    from_main,
)
from triptych.distributed.engine import Engine, Parallel
from triptych.distributed.env import is_main, local_rank, rank, world_size
from triptych.train.config import ObjectiveWeight, OptimConfig, TrainConfig
from triptych.train.doctor import LiveDoctor
from triptych.train.estimate import ScaleSetting, choose_parallel, count_state
from triptych.train.history import RunFacts
from triptych.train.interrupts import InterruptGuard, TrainingInterrupted
from triptych.train.metrics_log import (
    MetricsLog,
    StepMeans,
    Tracker,
    open_trackers,
    read_metrics,
)
from triptych.train.optim import build_optimizer, group_parameters, is_block_matrix
from triptych.train.precision import (
    FIRST_SCALE,
    LossScale,
    autocast,
    explain_precision,
    resolve_precision,
)
from triptych.train.progress import Progress, StepClock, StepReport, build_progress
from triptych.train.schedule import ObjectiveSchedules, apply_schedule, learning_rate_at
from triptych.train.sources import BatchSource, BatchSources
from triptych.train.state import capture_state, division, restore_state
from triptych.train.step import (
    StepValues,
    backward_micro_batch,
    check_batch_keys,
    check_finite,
    clip_gradients,
    finish_backward,
    set_recompute,
    to_device,
    unmarked,
)
from triptych.train.task import DataState, Task
from triptych.train.validation import PREFIX as VAL_PREFIX
from triptych.train.validation import Validator, main_values
from triptych.train.vitals import Vitals
from triptych.train.work import StepWork

Batches = Iterator[Mapping[str, Tensor]]

CHECKPOINTS = "checkpoints"
"""In the run folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What `Trainer.fit` returns.

    Attributes:
        step: Optimizer steps done.
        losses: Losses of the last step, the total included; empty if no step was left to do.
        elapsed_s: Seconds that this call took.
        samples_per_s: Samples a second over the last steps.
        checkpoint: The last checkpoint.
        best_step: Optimizer steps of the best model by validation; None without any.
        stopped_early: Whether validation ended the run before its last step.
    """

    step: int
    losses: dict[str, float]
    elapsed_s: float
    samples_per_s: float
    checkpoint: Path
    best_step: int | None = None
    stopped_early: bool = False


class Trainer:
    """Trains a task: fetch, losses, backward, clip, check, optimizer, schedule, after_step, log.

    Where several processes train together (`triptych.distributed`), each runs a Trainer on its own
    part of every batch; gradients and logged losses are means over them. Each writes its part of a
    checkpoint, and the process of rank 0 the other files.

    Args:
        task: What is trained; its modules are moved to the training device here.
        loader_factory: Given the number of micro-batches that are done, returns an endless iterable
            of the following ones. Micro-batch n may depend on n alone, or resuming is not exact. If
            it, or its iterator, has a `close`, that is called at the end.
        config: Length, sizes, intervals.
        optim: AdamW and its schedule.
        weights: Weights of the objectives; empty for 1 each.
        run_folder: Receives `metrics.jsonl`, `tensorboard/` and `checkpoints/`.
        evaluate: Called with the step, returns numbers to log as they are named. Its use of
            random numbers does not change the training.
        validator: Scores the model on held-out data from time to time; None does not.
        is_vision: Whether the parameter of a name takes the vision learning rate.
        sources: The sources that the number `source` of a batch refers to, in order; empty where
            batches have none. A step uses one source, and the objectives that its kind allows.
        data: What tells whether the data of a run that goes on has changed; None does not look.
        console: Where to print progress; standard output if absent.
        work: What a step of the task computes, for `parallel` "auto"; None if nobody counted it.
        facts: What the run doctor knows of the run beside its log.

    Raises:
        ConfigError: An objective that the task lacks, or a step without any objective.
    """

    def __init__(
        self,
        task: Task,
        loader_factory: Callable[[int], Iterable[Mapping[str, Tensor]]],
        *,
        config: TrainConfig,
        optim: OptimConfig,
        weights: Sequence[ObjectiveWeight] = (),
        run_folder: Path,
        is_vision: Callable[[str], bool],
        evaluate: Callable[[int], Mapping[str, float]] | None = None,
        validator: Validator | None = None,
        sources: Sequence[BatchSource] = (),
        data: DataState | None = None,
        console: Console | None = None,
        work: StepWork | None = None,
        facts: RunFacts | None = None,
    ) -> None:
        self.task, self.config, self.optim_config = task, config, optim
        self.loader_factory, self.evaluate, self.validator = loader_factory, evaluate, validator
        self.run_folder, self.console, self.data = run_folder, console, data
        self.checkpoint_folder = run_folder / CHECKPOINTS
        self.objectives = ObjectiveSchedules(weights, task.objective_names)
        self.sources = BatchSources(task, sources)
        self.sources.check(self.objectives, config.max_steps)
        if config.num_threads is not None:
            torch.set_num_threads(config.num_threads)
        self.device = _resolve_device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        if config.recompute != "none":
            set_recompute(task.modules, config.recompute)
        task.modules.to(self.device)
        self.split = config.split_batch(world_size())
        self.engine = Engine(
            task,
            parallel=resolve_parallel(config, optim, task, self.device, work),
            shard_size=config.shard_size,
            bf16_parameters=config.precision == "bf16-params",
            compile_blocks=config.compile_blocks,
        )
        self.loss_scale = LossScale(FIRST_SCALE if config.precision == "fp16" else 1.0)
        self.groups = group_parameters(task.modules.named_parameters(), optim, is_vision)
        self.optimizer = build_optimizer(self.groups, optim)
        self.precision: str = config.precision
        self.precision_reason = ""
        self.step = 0
        self.mark: Callable[[str], None] = unmarked
        self._last_checkpoint: Path | None = None
        self._means = StepMeans()
        columns = self.split.micro_batch_size * world_size()
        self.facts = facts or RunFacts(config.max_steps, columns)
        self.vitals = Vitals(
            task, self.facts.chances, is_vision=is_vision, num_columns=columns, active=is_main()
        )

    def fit(self, *, resume: bool = False) -> TrainResult:
        """Train to the last step.

        Args:
            resume: Continue from the newest good checkpoint of the run folder; else from the
                start. The result is bitwise that of an uninterrupted run.

        Raises:
            ConfigError: The run folder holds checkpoints and `resume` is False, or the batches lack
                a key that the task reads.
            CheckpointError: All checkpoints are damaged, or belong to another model, or the data
                has changed since.
            NonFiniteError: A loss or gradient is NaN or infinite.
            TrainingInterrupted: SIGINT, SIGTERM or SIGHUP came; the run was saved.
        """
        progress = build_progress(self.config.progress if is_main() else "off", self.console)
        with InterruptGuard() as guard:
            try:
                self._begin(resume, progress)
                with self._writer.closing(warn=progress.message):
                    return self._loop(guard, progress)
            finally:
                progress.close()

    def _begin(self, resume: bool, progress: Progress) -> None:
        """Set every state to that of the run's start or of its newest good checkpoint."""
        self.task.modules.train()
        found = None
        if resume:
            like = division(self.task, self.optimizer)
            found = load_latest(self.checkpoint_folder, like=like, warn=progress.message)
        elif list_checkpoints(self.checkpoint_folder):
            raise ConfigError(
                f"{self.checkpoint_folder} holds checkpoints of an earlier run: "
                "resume it, or choose another run folder"
            )
        if found:
            self._restore(*found)
        if self.data is not None and not self._is_over:
            saved = None if found is None else found[1].get("data", {})
            for line in self.data.begin(saved, self.step):
                progress.message(line)
        if not found:
            self.precision = from_main(resolve_precision(self.config.precision, self.device))
            self.precision_reason = explain_precision(
                self.config.precision, self.precision, self.device
            )
        self._writer = CheckpointWriter(
            self.checkpoint_folder,
            keep=self.config.keep_checkpoints,
            keep_every=self.config.keep_every_steps,
            background=self.config.async_checkpoints,
        )
        apply_schedule(self.optimizer, self.step, self.optim_config, self.config.max_steps)
        together = ""
        if world_size() > 1:
            together = f"{world_size()} processes ({self.engine.parallel}), each "
        reason = explain_precision(self.config.precision, self.precision, self.device)
        progress.message(
            f"training on {self.device} in {self.precision} with {together}"
            f"{torch.get_num_threads()} threads, "
            f"from step {self.step} to {self.config.max_steps}, in {self.run_folder}; "
            f"{self.precision} {reason}"
        )
        if self.validator is not None and not self._is_over:
            progress.message(self.validator.begin(self._validate(trial=True)))

    def _trackers(self, progress: Progress) -> list[Tracker]:
        return open_trackers(
            self.run_folder,
            self.step,
            tensorboard=self.config.tensorboard,
            names=self.config.trackers,
            warn=progress.message,
        )

    def _loop(self, guard: InterruptGuard, progress: Progress) -> TrainResult:
        clock = StepClock(self.config.global_batch_size)
        log = MetricsLog(
            self.run_folder,
            start_step=self.step,
            trackers=self._trackers(progress) if is_main() else (),
            silent=not is_main(),
        )
        self._doctor = LiveDoctor(self.facts, read_metrics(log.path) if is_main() else ())
        loader = self.loader_factory(self.step * self.split.accumulate)
        batches = iter(loader)
        losses: dict[str, float] = {}
        try:
            if self.validator is not None and self._has_stopped:
                progress.message(self.validator.stop_line())
            while not self._is_over:
                values, source = self._train_step(batches, clock, guard)
                losses = {**values.losses, "total": values.total}
                progress.update(self._report(losses, clock))
                self._log_step(values, source, log, clock, progress)
                self._evaluate_if_due(log, progress)
                self._validate_if_due(log, progress)
                self._checkpoint_if_due(log, guard, progress)
                if self._is_over:  # no later step would notice a signal
                    guard.settle(any_rank(guard.requested is not None))
                if guard.agreed is not None:
                    assert self._last_checkpoint is not None
                    raise TrainingInterrupted(guard.agreed, self.step, self._last_checkpoint)
        finally:
            try:
                log.close()
            finally:
                for owner in {id(batches): batches, id(loader): loader}.values():
                    close_loader(owner)
        assert self._last_checkpoint is not None
        if self.engine.is_sharded:
            self.engine.collect()
        return TrainResult(
            step=self.step,
            losses=losses,
            elapsed_s=clock.elapsed_s,
            samples_per_s=clock.samples_per_s,
            checkpoint=self._last_checkpoint,
            best_step=best.step if self.validator and (best := self.validator.best) else None,
            stopped_early=self._has_stopped,
        )

    @property
    def _has_stopped(self) -> bool:
        """Whether validation has ended the run."""
        return self.validator is not None and self.validator.has_stopped

    @property
    def _is_over(self) -> bool:
        return self.step == self.config.max_steps or self._has_stopped

    def _train_step(
        self, batches: Batches, clock: StepClock, guard: InterruptGuard
    ) -> tuple[StepValues, int | None]:
        """Do one optimizer step; the order of these lines is the order of every run."""
        clock.start_step()
        weights = self.objectives.at(self.step)
        micro_losses: list[dict[str, Tensor]] = []
        source: int | None = None
        scale = self.loss_scale.value
        for number in range(self.split.accumulate):
            self.mark("data")
            batch, drawn = self._fetch(batches, clock)
            if number > 0 and drawn != source:
                raise ConfigError(f"step {self.step + 1} mixes batches of two sources")
            source, allowed = drawn, self.sources.kind(drawn).objectives
            seed_step(self.config.seed, self.step, rank(), number)
            self.mark("forward")
            losses = backward_micro_batch(
                self.engine,
                batch,
                {name: weight for name, weight in weights.items() if name in allowed},
                share=scale / self.split.accumulate,
                context=autocast(self.device, self.precision),
                last=number == self.split.accumulate - 1,
                mark=self.mark,
            )
            micro_losses.append(losses | self.vitals.of_batch())
        self.mark("update")
        values = self._update(micro_losses, scale, stop=guard.requested is not None)
        self.step += 1
        apply_schedule(self.optimizer, self.step, self.optim_config, self.config.max_steps)
        self.optimizer.zero_grad(set_to_none=True)
        self.mark("after_step")
        self.task.after_step(self.step)
        self.mark("end")
        self.sources.count(source)
        clock.end_step()
        guard.settle(values.stop if world_size() > 1 else guard.requested is not None)
        return values, source

    def _update(
        self, micro_losses: list[dict[str, Tensor]], scale: float, *, stop: bool
    ) -> StepValues:
        """Complete the gradients, and update the parameters with them where they are finite."""
        parameters = [pair for group in self.groups for pair in group.parameters]
        reduced, values = finish_backward(
            self.engine, [p for _, p in parameters], micro_losses, scale=scale, stop=stop
        )
        if self.precision != "fp16":
            if not values.is_finite:
                self._finish_save(wait=True)
            check_finite(
                values, parameters, step=self.step + 1, last_checkpoint=self._last_checkpoint
            )
        elif not self.loss_scale.update(finite=values.is_finite):
            return values  # too large a scale: this step's gradients are dropped
        apart = self.config.clip_per_parameter and self.config.max_grad_norm is not None
        norms = self.engine.norms(reduced) / scale if apart else values.grad_norm
        clip_gradients(reduced.gradients, norms, self.config.max_grad_norm, scale=scale)
        self.vitals.before_update(due=self._is_logged(self.step + 1))
        self.optimizer.step()
        return values

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every_steps == 0 or step == self.config.max_steps

    def _fetch(self, batches: Batches, clock: StepClock) -> tuple[dict[str, Tensor], int | None]:
        with clock.waiting():
            batch = next(batches, None)
        if batch is None:
            raise DataError(f"the loader ended after step {self.step}; it must be endless")
        own, source = self.sources.take(batch)
        kind = self.sources.kind(source)
        check_batch_keys(kind.batch_keys, own)
        self.vitals.see(own, kind.objectives, due=self._is_logged(self.step + 1))
        return to_device(own, self.device), source

    def _report(self, losses: dict[str, float], clock: StepClock) -> StepReport:
        return StepReport(
            step=self.step,
            max_steps=self.config.max_steps,
            losses=losses,
            samples_per_s=clock.samples_per_s,
            data_wait_share=clock.data_wait_share,
            seconds_left=clock.seconds_for(self.config.max_steps - self.step),
        )

    def _log_step(
        self,
        values: StepValues,
        source: int | None,
        log: MetricsLog,
        clock: StepClock,
        progress: Progress,
    ) -> None:
        """Count the step's numbers, and write a line if one is due."""
        losses = {**values.losses, "total": values.total}
        self._means.add(
            {f"loss/{name}": value for name, value in losses.items()}
            | self.sources.curves(source, losses)
            | {"grad_norm": values.grad_norm}
            | values.vitals
        )
        if self._is_logged(self.step):
            wall_clock = {
                "samples_per_s": clock.samples_per_s,
                "data_wait_share": clock.data_wait_share,
                "elapsed_s": clock.elapsed_s,
            }
            numbers = {**self._means.pop(), **self.sources.counters(), **self._learning_rates()}
            numbers |= self.vitals.numbers() if is_main() else {}
            self._write({**numbers, **wall_clock}, log, progress)

    def _write(self, numbers: dict[str, float], log: MetricsLog, progress: Progress) -> None:
        """Write a line of the log, and tell what the doctor sees in it for the first time."""
        log.write(self.step, numbers)
        for line in self._doctor.add(self.step, numbers) if is_main() else ():
            progress.message(line)

    def _learning_rates(self) -> dict[str, float]:
        """Return the learning rates that the last step used, as `lr/vision` and `lr/rest`."""
        return {
            f"lr/{group.name.split('_')[0]}": learning_rate_at(
                self.step - 1,
                peak=group.peak_lr,
                config=self.optim_config,
                max_steps=self.config.max_steps,
            )
            for group in self.groups
        }

    def _evaluate_if_due(self, log: MetricsLog, progress: Progress) -> None:
        every = self.config.evaluate_every_steps
        if self.evaluate is None or every is None or self.step % every:
            return
        if not (is_main() or self.engine.is_sharded):
            return
        with torch.no_grad(), self.engine.whole():
            values = self.evaluate(self.step)
        self.task.modules.train()
        log.write(self.step, values)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        progress.message(f"evaluation after step {self.step}: {shown}")

    def _validate_if_due(self, log: MetricsLog, progress: Progress) -> None:
        if self.validator is None or not self.validator.is_due(self.step):
            return
        start = time.perf_counter()
        values = self._validate(trial=False)
        self.validator.add(self.step, values)
        numbers = {f"{VAL_PREFIX}{v.name}": v.value for v in main_values(values)}
        self._write(numbers, log, progress)
        progress.message(self.validator.line(time.perf_counter() - start))
        if self._has_stopped:
            progress.message(self.validator.stop_line())

    def _validate(self, *, trial: bool) -> list[MetricValue]:
        """Score the model on all processes; none of what the next step reads changes."""
        assert self.validator is not None
        with torch.no_grad(), self.engine.whole():
            values = self.validator.measure(self.device, self.precision, trial=trial)
        found: list[MetricValue] = from_main(values)
        return found

    def _checkpoint_if_due(
        self, log: MetricsLog, guard: InterruptGuard, progress: Progress
    ) -> None:
        """Learn what became of the save that is under way, and save if it is time to."""
        self._finish_save(wait=False)
        last = self._is_over
        due = self.step % self.config.checkpoint_every_steps == 0
        if not (due or last or guard.agreed is not None):
            return
        log.flush_to_disk()
        state = capture_state(self.task, self.optimizer)
        state |= {"precision": self.precision, "precision_reason": self.precision_reason}
        state |= {"means": self._means.state(), "vitals": self.vitals.state()}
        state |= {"sources": self.sources.state(), "loss_scale": self.loss_scale.state()}
        if self.data is not None:
            state |= {"data": self.data.state()}
        if self.validator is not None:
            state |= {"validation": self.validator.state()}
        self._writer.save(self.step, state)
        if last or guard.agreed is not None:
            self._finish_save(wait=True)
            progress.message(f"saved {self._last_checkpoint}")

    def _finish_save(self, *, wait: bool) -> None:
        self._last_checkpoint = self._writer.finish(wait=wait) or self._last_checkpoint

    def _restore(self, step: int, state: dict[str, Any]) -> None:
        """Restore a checkpoint; an `auto` run keeps the precision that it began with."""
        restore_state(state, self.task, self.optimizer)
        self._means.load_state(state["means"])
        self.vitals.load_state(state.get("vitals", {}))
        self.sources.load_state(state.get("sources", {}))
        self.loss_scale.load_state(state.get("loss_scale", {}))
        if self.validator is not None and "validation" in state:
            self.validator.load_state(state["validation"])
        chosen = self.config.precision
        self.precision = state["precision"] if chosen == "auto" else chosen
        self.precision_reason = explain_precision(chosen, self.precision, self.device)
        if chosen == "auto":
            self.precision_reason = state.get("precision_reason", self.precision_reason)
        self.step = step
        self._last_checkpoint = self.checkpoint_folder / f"step_{step}"


def resolve_parallel(
    config: TrainConfig,
    optim: OptimConfig,
    task: Task,
    device: torch.device,
    work: StepWork | None = None,
) -> Parallel:
    """Return how the processes that train now share the work.

    `auto` is DDP; on GPUs, ZeRO-2 or FSDP where the estimate exceeds the memory of the smallest.

    Args:
        config: Of the run.
        optim: Its optimizer, of which AdamW has more state than Muon.
        task: What is trained.
        device: Where.
        work: What a step of the task computes; None compares the state alone.
    """
    if world_size() == 1:
        return "none"
    if config.parallel != "auto":
        return config.parallel
    if getattr(task, "not_sharded", None):
        return "ddp"
    own = torch.tensor([memory_bytes(device)], dtype=torch.float64, device=device)
    setting = ScaleSetting(
        world_size=world_size(),
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.split_batch(world_size()).micro_batch_size,
        parallel="fsdp",
        precision=resolve_precision(config.precision, device),
        recompute=config.recompute,
    )
    muon = optim.muon_learning_rate is not None
    state = count_state(task.modules, is_block_matrix) if muon else count_state(task.modules)
    return choose_parallel(state, setting, float(all_gather(own).min()), work)


def memory_bytes(device: torch.device) -> float:
    """Return the memory of a GPU; of a CPU, whose memory all processes share, infinity."""
    if device.type != "cuda":
        return math.inf
    return float(torch.cuda.get_device_properties(device).total_memory)


def _resolve_device(choice: str) -> torch.device:
    if choice == "cuda" and not torch.cuda.is_available():
        raise ConfigError("device = 'cuda': torch finds no CUDA device; use 'cpu' or 'auto'")
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    if choice == "cuda" and world_size() > 1:
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    return torch.device(choice)


def close_loader(loader: Iterable[Mapping[str, Tensor]]) -> None:
    """Stop the loader's workers, if it has a `close`."""
    close = getattr(loader, "close", None)
    if close is not None:
        close()
