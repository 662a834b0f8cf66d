"""Processes that train together: results, failures, and the death of one or of the parent."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.processes import runs
from triptych.core.errors import DataError
from triptych.distributed.collectives import all_gather, any_rank, from_main, gather_objects
from triptych.distributed.env import ProcessDied, is_main, rank, run_processes, world_size


def _numbers(factor):
    own = torch.tensor([rank() * factor])
    return (
        all_gather(own).tolist(),
        world_size(),
        is_main(),
        gather_objects(rank()),
        from_main(rank()),
    )


def _fail_on_one():
    if rank() == 1:
        raise DataError("the second one's data")
    all_gather(torch.zeros(1))


def _die_on_one():
    if rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    all_gather(torch.zeros(1))


def _flags():
    return any_rank(rank() == 1), any_rank(False)


def test_alone_everything_is_the_identity():
    assert (rank(), world_size(), is_main(), any_rank(True), from_main(3)) == (0, 1, True, True, 3)


@pytest.mark.usefixtures("spawned")
def test_processes_know_each_other_and_the_first_ones_result_is_returned():
    assert run_processes(_numbers, 3, 10) == ([0, 10, 20], 3, True, [0, 1, 2], 0)


def test_a_flag_of_one_is_a_flag_of_all():
    assert run_processes(_flags, 2) == (True, False)


def test_the_error_of_one_process_is_raised_though_the_other_lost_its_connection():
    with pytest.raises(DataError, match="the second one's data"):
        run_processes(_fail_on_one, 2)


def _fail_while_the_first_is_busy():
    if rank() == 1:
        raise DataError("the second one's data")
    time.sleep(60)


def test_the_error_of_one_process_is_raised_though_the_first_had_to_be_killed():
    with pytest.raises(DataError, match="the second one's data"):
        run_processes(_fail_while_the_first_is_busy, 2)


@pytest.mark.usefixtures("spawned")
def test_the_death_of_one_process_ends_the_other():
    with pytest.raises(ProcessDied, match=r"process 1 died \(code .*with --resume"):
        run_processes(_die_on_one, 2)


PARENT = """
import os, sys, time
from triptych.distributed.env import run_processes

def work():
    open(sys.argv[1] + "." + str(os.getpid()), "w").close()
    while True:
        time.sleep(0.05)

if __name__ == "__main__":
    run_processes(work, 2)
"""


def test_processes_end_when_their_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT.replace("sys.argv[1]", repr(str(tmp_path / "pid"))))
    parent = subprocess.Popen([sys.executable, str(script)])
    while len(pids := [int(p.suffix[1:]) for p in tmp_path.glob("pid.*")]) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while any(runs(pid) for pid in pids):
        time.sleep(0.05)  # ends only once both are gone
