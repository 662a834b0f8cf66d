"""A short round of the fuzzer with fixed seeds, and every case that it once found."""

import json
import os
import time

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz import canary
from tests.fuzz.cases import CASES, pack, unpack
from tests.fuzz.damage import count_refused
from tests.fuzz.kind import Kind, all_kinds
from tests.fuzz.mutators import remove_tree
from tests.fuzz.rounds import Samples
from tests.fuzz.worker import Limits, Worker

EXAMPLES = 8
"""Of each kind. `make fuzz` reads thousands."""


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return Samples(tmp_path_factory.mktemp("fuzz"), all_kinds())


@pytest.fixture(scope="module")
def worker(samples):
    worker = Worker(samples.folder / "worker0")
    yield worker
    worker.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)
@given(rng=st.randoms(use_true_random=False))
def read_changed(kind, samples, worker, rng):
    folder = samples.room()
    sealed = samples.mutated(kind.name, rng, folder)
    outcome = worker.run(kind.name, folder)
    case = pack(kind, folder, samples.of(kind.name), sealed=sealed)
    remove_tree(folder)
    assert outcome.verdict != "unclean", f"{outcome}\n{json.dumps(case)[:4000]}"


def test_hostile_files_of_every_kind_end_in_a_named_error(samples, worker):
    """Hypothesis draws the changes, so that a case which fails is the smallest that does."""
    for kind in samples.kinds.values():
        read_changed(kind=kind, samples=samples, worker=worker)


def test_every_case_that_was_found_stays_mended(samples, worker):
    for path in sorted(CASES.glob("*.json")):
        case = json.loads(path.read_text())
        folder = samples.room()
        unpack(case, samples.kinds[case["kind"]], samples.of(case["kind"]), folder)
        outcome = worker.run(case["kind"], folder)
        remove_tree(folder)
        assert outcome.verdict != "unclean", f"{path.name}: {outcome}"


def test_damaged_model_folders_are_refused_by_file(tmp_path):
    refused, missed = count_refused(tmp_path, 20, seed=0)
    assert (refused, missed) == (20, [])


def _fault(folder):
    what = (folder / "x").read_text()
    if what == "computes":
        while True:
            pass
    if what == "waits":
        time.sleep(60)
    if what == "memory":
        bytearray(b"x" * (300 << 20))
    if what == "dies":
        os.abort()
    if what == "writes":
        (folder.parents[1] / "elsewhere").write_text("x")
    if what == "code":
        canary.ran("x")
    raise KeyError(what)


def faulty_kinds():
    return {"faults": Kind(name="faults", build=lambda folder: None, mutators=(), use=_fault)}


def test_faults_are_seen(tmp_path):
    """A fuzzer that sees nothing would find nothing."""
    limits = Limits(cpu_s=3, wait_s=6, memory_mb=100)
    expected = {
        "error": "KeyError in outside the library",
        "memory": "memory",
        "code": "code or files: ran",
        "writes": "code or files: open",
        "dies": "died: -6",
        "computes": "hangs",
        "waits": "hangs",
    }
    worker = Worker(tmp_path / "worker", limits, faulty_kinds)
    try:
        for what, signature in expected.items():
            folder = tmp_path / "worker" / what
            folder.mkdir(parents=True)
            (folder / "x").write_text(what)
            outcome = worker.run("faults", folder)
            assert outcome.verdict == "unclean"
            assert outcome.signature.startswith(signature), (what, outcome)
    finally:
        worker.close()
