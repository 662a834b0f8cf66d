"""What runs together, what fails alone, and how many may wait."""

import threading
import time

import pytest

from triptych.core.errors import DataError
from triptych.server.worker import Busy, Kind, Worker


class Model:
    """Notes which items it was asked together; waits where it is told to."""

    def __init__(self):
        self.batches, self.seconds = [], 0.0
        self.may_run = threading.Event()
        self.may_run.set()
        self.has_begun = threading.Event()

    def ask(self, items):
        self.batches.append(list(items))
        self.has_begun.set()
        assert self.may_run.wait(30)
        time.sleep(self.seconds * (len(items) > 1))
        if "bad" in items:
            raise DataError("bad is no item")
        if "broken" in items:
            raise RuntimeError("a bug")
        return [f"answer to {item}" for item in items]


@pytest.fixture
def model():
    return Model()


@pytest.fixture
def make_worker():
    made = []

    def make(**changes):
        settings = {"max_batch": 8, "max_wait_s": 0.0, "queue": 20, "max_pixels": 100}
        made.append(Worker(**settings | changes))
        return made[-1]

    yield make
    for worker in made:
        assert worker.close(30)


def submit(worker, model, *items, key="k", pixels=0, prepare=None):
    kind = Kind(key, "verb", model.ask)
    return worker.submit(kind, prepare or (lambda: list(items)), size=len(items), pixels=pixels)


def hold(worker, model):
    """Let the model begin with one job, and wait with its answer."""
    model.may_run.clear()
    held = submit(worker, model, "held", key="held")
    assert model.has_begun.wait(30)
    return held


def test_jobs_of_a_kind_that_wait_together_run_together(make_worker, model):
    worker = make_worker()
    held = hold(worker, model)
    jobs = [submit(worker, model, n, key=n % 2) for n in range(6)]
    model.may_run.set()
    assert [job.result(30) for job in jobs] == [[f"answer to {n}"] for n in range(6)]
    assert held.result(30) == ["answer to held"]
    assert model.batches == [["held"], [0, 2, 4], [1, 3, 5]]


def test_a_batch_is_not_larger_than_allowed_and_keeps_the_items_of_a_job_together(
    make_worker, model
):
    worker = make_worker(max_batch=4)
    hold(worker, model)
    jobs = [submit(worker, model, *[n] * n) for n in (3, 2, 1, 6)]
    model.may_run.set()
    assert [len(job.result(30)) for job in jobs] == [3, 2, 1, 6]
    assert model.batches[1:] == [[3, 3, 3, 1], [2, 2], [6] * 6]


def test_what_is_wrong_fails_alone(make_worker, model, caplog):
    worker = make_worker()
    hold(worker, model)

    def no_image():
        raise DataError("items[0].image: cut short")

    jobs = [submit(worker, model, item) for item in ("a", "bad", "b", "broken", "c")]
    unread = submit(worker, model, "d", prepare=no_image, pixels=1)
    model.may_run.set()
    assert [jobs[n].result(30) for n in (0, 2, 4)] == [[f"answer to {i}"] for i in "abc"]
    with pytest.raises(DataError, match="bad is no item"):
        jobs[1].result(30)
    with pytest.raises(RuntimeError, match="a bug"):
        jobs[3].result(30)
    with pytest.raises(DataError, match="cut short"):
        unread.result(30)
    assert [record.message for record in caplog.records] == ["verb failed"]  # the bug alone


def test_past_the_queue_jobs_are_refused_and_a_cancelled_one_frees_its_place(make_worker, model):
    worker = make_worker(queue=3)
    held = hold(worker, model)
    jobs = [submit(worker, model, n) for n in (1, 2)]
    with pytest.raises(Busy, match="ask again later"):
        submit(worker, model, 3)
    assert jobs[0].cancel() and len(worker) == 2
    late = submit(worker, model, 4)
    assert held.cancel() and len(worker) == 2  # its client has left while it runs
    model.may_run.set()
    assert late.result(30) == ["answer to 4"]
    assert model.batches == [["held"], [2, 4]]


def test_images_are_decoded_by_other_threads_while_there_is_room(make_worker, model):
    worker = make_worker(max_pixels=100)
    hold(worker, model)
    prepared, threads = [], set()

    def prepare(number):
        prepared.append(number)
        threads.add(threading.current_thread().name)
        return [number]

    jobs = [submit(worker, model, n, pixels=80, prepare=lambda n=n: prepare(n)) for n in range(5)]
    end = time.monotonic() + 30
    while len(prepared) < 2 and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.05)
    assert sorted(prepared) == [0, 1]  # 200 pixels of room
    assert all(name.startswith("triptych-decode") for name in threads)
    model.may_run.set()
    assert [job.result(30) for job in jobs] == [[f"answer to {n}"] for n in range(5)]


def test_a_job_larger_than_the_room_runs_alone(make_worker, model):
    job = submit(make_worker(max_pixels=10), model, "a", pixels=1000)
    assert job.result(30) == ["answer to a"]


def test_jobs_that_come_again_are_waited_for(make_worker, model):
    worker = make_worker(max_wait_s=30)
    begun = time.monotonic()
    assert submit(worker, model, 0).result(30)  # alone: nothing is waited for
    assert time.monotonic() - begun < 10
    hold(worker, model)
    together = [submit(worker, model, n) for n in range(3)]
    model.seconds = 0.8  # the next batch may wait for a quarter of this
    model.may_run.set()
    for job in together:
        job.result(30)
    again = []
    for n in range(3):
        again.append(submit(worker, model, n))
        time.sleep(0.005)
    for job in again:
        job.result(30)
    assert model.batches[-1] == [0, 1, 2]


def test_closing_answers_what_is_here_and_takes_no_more(make_worker, model):
    worker = make_worker()
    held = hold(worker, model)
    waiting = submit(worker, model, "waits")
    assert not worker.close(0.01)
    with pytest.raises(Busy, match="is stopping"):
        submit(worker, model, "late")
    assert not worker.is_alive
    model.may_run.set()
    assert worker.close(30)
    assert held.result(0) and waiting.result(0) == ["answer to waits"]
