"""The same job on Ray Data: actors that hold the model do a part at a time.

The unit of work is a part. An actor writes it as a plain job does, so that the rows are the same,
and a part that is there is not done again. When an actor or its machine dies, Ray gives what it was
doing to another one.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from triptych.core import errors
from triptych.core.config import MAX_WORKERS, check_range
from triptych.core.errors import ConfigError, DataError, TriptychError
from triptych.core.extras import import_extra
from triptych.core.files import is_full, refusal
from triptych.jobs.job import BatchJob

if TYPE_CHECKING:
    from triptych.jobs.run import OpenJob

LOCAL = "local"


class PartActor:
    """A process with the model, which does the parts that it is given."""

    def __init__(self, job: BatchJob) -> None:
        self._job = job
        self._opened: OpenJob | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Do the part of a batch of one; return its rows, or an error and its kind."""
        rows, kind, message = 0, "", ""
        try:
            rows = self._do(int(batch["part"][0]))
        except TriptychError as error:  # as a value: Ray would wrap it in its own errors
            kind, message = type(error).__name__, str(error)
        except OSError as error:
            if not is_full(error, self._job.out):
                raise
            kind, message = "ConfigError", refusal(str(self._job.out), error)
        return {"rows": np.array([rows]), "kind": np.array([kind]), "message": np.array([message])}

    def _do(self, part: int) -> int:
        if self._opened is None:
            from triptych.jobs.run import OpenJob

            self._opened = OpenJob(self._job)
        if not self._job.path(part).is_file():  # else: done before an actor died
            list(self._opened.run([part]))
        return len(self._job.rows(part, len(self._opened.inputs)))


def import_ray() -> Any:
    """Return Ray, quiet and without its usage statistics.

    Raises:
        CapabilityError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ writes to this error stream
    import_extra("ray.data", "scale", "--ray")
    return import_extra("ray", "scale", "--ray")


def run_on_ray(
    job: BatchJob, parts: Sequence[int], address: str, num_workers: int | None
) -> Iterator[int]:
    """Do some parts on Ray, in any order, and yield the rows of each when it is on disk.

    Args:
        job: The job.
        parts: What to do.
        address: "local", or a cluster's.
        num_workers: Actors; None is one a GPU, or one a processor core.

    Raises:
        ConfigError: Ray is not installed, or cannot be started or reached.
    """
    check_range("ray_workers", num_workers, 1, MAX_WORKERS)
    ray = import_ray()
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == LOCAL else None,
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
    except Exception as error:  # Ray raises many kinds
        raise ConfigError(f"--ray {address}: Ray cannot be started or reached: {error}") from error
    try:
        yield from _mapped(ray, job, parts, num_workers)
    finally:
        ray.shutdown()


def _mapped(
    ray: Any, job: BatchJob, parts: Sequence[int], num_workers: int | None
) -> Iterator[int]:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    there = ray.cluster_resources()
    num_gpus = int(there.get("GPU", 0)) if job.device != "cpu" else 0
    wanted = num_workers or num_gpus or int(there.get("CPU", 1))
    size = max(1, min(wanted, len(parts)))
    data = ray.data.from_items([{"part": part} for part in parts], override_num_blocks=len(parts))
    done = data.map_batches(
        PartActor,
        fn_constructor_args=(job,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=size),
        num_cpus=1,
        num_gpus=min(1, num_gpus / size) if num_gpus else None,
    )
    for row in done.iter_rows():
        if row["kind"]:
            raise getattr(errors, row["kind"], DataError)(row["message"])
        yield int(row["rows"])
