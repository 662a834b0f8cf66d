"""A short round of the fault harness, with other moments and limits each time.

`python -m tests.faults` does the long one. Each part runs in a process of its own, which forks.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = {
    "kills": 9,  # three at any moment, three during a save, three of one of two processes
    "disk_full": 10,  # every writer once
    "interruptions": 1,
}


@pytest.mark.parametrize("part", ROUNDS)
def test_a_short_round(part):
    """The seed is printed, so that a failure can be repeated."""
    finished = subprocess.run(
        [sys.executable, "-m", "tests.faults", part, "--number", str(ROUNDS[part])],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = json.loads(finished.stdout.splitlines()[-1])
    counted = {key: found[key] for key in found if f"{key}_of" in found}
    assert counted == {key: found[f"{key}_of"] for key in counted}
    assert counted
