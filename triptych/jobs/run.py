"""Run a batch job in this process, or hand it to Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from triptych.core.files import folder_for_one
from triptych.core.processes import keep_freed_memory
from triptych.data.images import pixels_allowed
from triptych.data.source import parts_note
from triptych.jobs.inputs import Input, Inputs, ItemReader, read_ahead
from triptych.jobs.job import BatchJob, count_rows
from triptych.serving.engine import Engine
from triptych.serving.inputs import chunks
from triptych.serving.loading import load_model
from triptych.serving.verb import Answer

BATCHES_AHEAD = 2


@dataclass(frozen=True, slots=True)
class JobReport:
    """What a job has done.

    Attributes:
        num_rows: Rows in all parts.
        num_errors: Rows of inputs that could not be used.
        num_before: Rows that were there when it was started.
    """

    num_rows: int
    num_errors: int
    num_before: int


class OpenJob:
    """A job with its model and its data.

    Args:
        job: The job.
        device: Where the model computes; None is as the job says.
    """

    def __init__(self, job: BatchJob, device: str | None = None) -> None:
        self.job, self.verb, self.options = job, job.asked, job.read_options()
        precision: Any = job.precision
        self.engine = Engine(
            load_model(job.model, device=device or job.device, precision=precision, rounded=True)
        )
        self.inputs = Inputs(job.source, job.limit)
        if self.engine.device.type == "cpu":
            keep_freed_memory()

    def check(self) -> None:
        """Raise what would be wrong with every row.

        Raises:
            CapabilityError: The model cannot be asked this.
            ConfigError: An option has no meaning for the model.
            DataError: No record has what is asked about, or an option cannot be used.
        """
        self.verb.check(self.engine, self.options)
        self.inputs.check(self.verb, self.engine)

    def run(self, parts: Sequence[int]) -> Iterator[int]:
        """Do some parts, in order, and yield the rows of each when it is on disk."""
        job, total = self.job, len(self.inputs)
        reader = ItemReader(self.verb, self.engine)
        rows = (row for part in parts for row in job.rows(part, total))
        ahead = BATCHES_AHEAD * job.batch_size
        inputs = read_ahead(rows, lambda row: self.inputs.read(row, reader), job.num_threads, ahead)
        with closing(inputs), pixels_allowed(job.max_image_pixels):
            for part in parts:
                size = len(job.rows(part, total))
                done: list[Input] = []
                answers: list[Answer] = []
                for batch in chunks(size, job.batch_size):  # batches never depend on other parts
                    asked = list(islice(inputs, batch.stop - batch.start))
                    answers += self._answers(asked)
                    done += [replace(one, item=None) for one in asked]
                job.write_part(part, done, answers)
                yield size

    def _answers(self, inputs: Sequence[Input]) -> list[Answer]:
        """Ask about a batch; {"error": why} for inputs that cannot be used."""
        answers: list[Answer] = [{"error": one.error} for one in inputs]
        usable = [(place, one.item) for place, one in enumerate(inputs) if one.item is not None]
        items = [item for _, item in usable]
        if self.verb.mixes(self.options):
            found = self.verb.ask(self.engine, items, self.options, on_error="skip")
        else:  # drawn: each by its own seed, so that neither batches nor kills change it
            found = []
            for (place, _), item in zip(usable, items, strict=True):
                seed = (self.options.seed * 1_000_003 + inputs[place].row) % 2**63
                own = replace(self.options, seed=seed)
                found += self.verb.ask(self.engine, [item], own, on_error="skip")
        for (place, _), answer in zip(usable, found, strict=True):
            answers[place] = answer
        return answers


def run_job(
    job: BatchJob,
    *,
    ray: str | None = None,
    ray_workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    tell: Callable[[str], None] | None = None,
) -> JobReport:
    """Run a job, or what is left of it.

    Args:
        job: The job.
        ray: "local" starts Ray on this machine; otherwise the address of a cluster, whose nodes
            have Triptych and see the same paths. None needs no Ray.
        ray_workers: Processes on Ray with a model each; None is one a GPU, or one a processor core.
        progress: Called with the rows that are done and of how many, first as the work starts.
        tell: Called with what is worth knowing, in words.

    Raises:
        CapabilityError: The model cannot be asked this.
        ConfigError: The folder holds another job, or Ray is not there.
        DataError: No record has what is asked about, or an option cannot be used.
    """
    with folder_for_one(job.out):
        opened = OpenJob(job, device=None if ray is None else "cpu")
        total = len(opened.inputs)
        opened.check()
        job.claim(opened.engine.folder, total)
        todo = job.todo(total)
        before = total - sum(len(job.rows(part, total)) for part in todo)
        if tell is not None and opened.inputs.parts:
            tell(parts_note(job.source.path, opened.inputs.parts))
        if tell is not None and before:
            tell(f"{before:,} of {total:,} rows are there from an earlier run")
        if todo and ray is not None:
            from triptych.jobs.on_ray import run_on_ray

            del opened  # its model is not needed here
            parts = run_on_ray(job, todo, ray, ray_workers)
        else:
            parts = opened.run(todo)
        done = before
        if progress is not None:
            progress(done, total)
        for rows in parts:
            done += rows
            if progress is not None:
                progress(done, total)
        num_rows, num_errors = count_rows(job.out)
        return JobReport(num_rows, num_errors, before)
