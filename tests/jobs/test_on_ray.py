"""The same job on Ray: the same rows, a killed worker costs a retry, and nothing stays behind."""

import os
import signal
import sys
import time
import uuid
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.jobs.test_batch import data, folders, job, rows_of  # noqa: F401 - fixtures
from triptych.core.errors import CapabilityError, ConfigError
from triptych.jobs.run import run_job


def processes(mark):
    """Return the processes that a mark in the environment came to, but this one, by command."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes().split(b"\0")[0].decode()
        except OSError:  # it has ended
            continue
        if mark.encode() in environment and int(folder.name) != os.getpid() and command:
            found[int(folder.name)] = command
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
@pytest.mark.filterwarnings("default")  # Ray's own
def test_ray_gives_the_same_rows_though_a_worker_is_killed(folders, data, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("ray", reason="pip install triptych[scale]")
    mark = uuid.uuid4().hex
    monkeypatch.setenv("TRIPTYCH_TEST_MARK", mark)
    plain = job(folders["captioning"], data, tmp_path / "plain", part_rows=1)
    run_job(plain)
    on_ray = replace(plain, out=tmp_path / "ray")
    killed = []

    def kill_once(done, total):
        if 0 < done < total and not killed:
            workers = [p for p, command in processes(mark).items() if "PartActor" in command]
            os.kill(workers[0], signal.SIGKILL)
            killed.append(workers[0])

    try:
        report = run_job(on_ray, ray="local", ray_workers=2, progress=kill_once)
    except ConfigError as error:
        if "cannot be started" in str(error):
            pytest.skip(str(error))
        raise
    assert killed
    assert (report.num_rows, report.num_errors) == (12, 2)
    assert rows_of(on_ray.out) == rows_of(plain.out)
    for path in on_ray.out.glob("part-*"):
        assert pq.read_schema(path).equals(pq.read_schema(plain.out / path.name))
    end = time.monotonic() + 20
    while processes(mark) and time.monotonic() < end:
        time.sleep(0.1)
    assert processes(mark) == {}


def test_without_ray_the_message_says_what_to_install(folders, data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(CapabilityError, match=r"pip install 'triptych\[scale\]'"):
        run_job(job(folders["captioning"], data, tmp_path), ray="local")
