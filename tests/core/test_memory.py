"""Page faults of memory that is taken again and again, counted in a process of its own."""

import subprocess
import sys

import pytest

from triptych.core.processes import keep_freed_memory

PROGRAM = """
import ctypes, resource, sys
from triptych.core.processes import keep_freed_memory

library = ctypes.CDLL(None)
library.malloc.restype, library.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
library.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = []
for _ in range(4):
    size = 48 * 2**20
    memory = library.malloc(size)
    library.memset(memory, 1, size)
    library.free(memory)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[-1] - faults[-2])
"""


def _faults(word):
    arguments = [sys.executable, "-c", PROGRAM, word]
    return int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_memory_taken_again_needs_no_new_pages():
    assert _faults("plain") >= 48 * 2**20 // 2**21  # pages of 4 KiB, or of 2 MiB
    assert _faults("keep") <= 2


def test_a_library_without_the_setting_is_left_alone(monkeypatch):
    monkeypatch.setattr("triptych.core.processes.ctypes.CDLL", lambda _: object())
    assert keep_freed_memory.__wrapped__() is False
