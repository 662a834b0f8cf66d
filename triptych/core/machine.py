"""Where a run took place: the machine, and the commit of the code."""

from __future__ import annotations

import functools
import math
import os
import platform
import subprocess
from pathlib import Path

import torch

import triptych

_GIB = 2**30
_BF16_FLAGS = ("amx_bf16", "avx512_bf16")


def describe_machine() -> dict[str, str]:
    """Return facts about this machine, by a readable name."""
    facts = {
        "CPU": _cpu_model(_read("/proc/cpuinfo")),
        "cores": str(num_cores()),
        "memory": _memory(),
        "GPU": _gpu(),
        "bf16": _bf16_support(_read("/proc/cpuinfo")),
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "system": platform.platform(terse=True),
    }
    return {name: fact for name, fact in facts.items() if fact}


@functools.cache
def cpu_has_bf16() -> bool:
    """Return whether this processor multiplies bf16 matrices itself; emulation is 30x slower."""
    return bool(_bf16_flags(_read("/proc/cpuinfo")))


def current_commit(folder: Path | None = None) -> str:
    """Return the commit that the code stands at, or the package's version outside a checkout.

    Args:
        folder: The package's folder; this package's by default. A checkout counts only if it
            tracks the package: a package installed below another project is not of its commit.

    Returns:
        40 hexadecimal digits, with `-dirty` if tracked files were changed; or `0.1.0`.
    """
    folder = folder or Path(triptych.__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return triptych.__version__
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return triptych.__version__
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if changed else commit


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpu_model(cpuinfo: str) -> str:
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _bf16_support(cpuinfo: str) -> str:
    if torch.cuda.is_available():
        return "GPU" if torch.cuda.is_bf16_supported() else "no"
    return ", ".join(_bf16_flags(cpuinfo)) or "no CPU instructions for it"


def _bf16_flags(cpuinfo: str) -> list[str]:
    flags = set(cpuinfo.split())
    return [flag for flag in _BF16_FLAGS if flag in flags]


def num_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def available_memory() -> float:
    """Return the bytes that a process may take now: free memory, or what a container leaves of it.

    What nobody can tell is infinite.
    """
    lines = _read("/proc/meminfo").splitlines()
    free = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    found = [math.inf, *(1024.0 * int(kib) for kib in free)]
    limit, used = (_read(f"{_GROUP}/memory.{name}").strip() for name in ("max", "current"))
    if limit.isdecimal() and used.isdecimal():
        counts = dict(line.split() for line in _read(f"{_GROUP}/memory.stat").splitlines())
        cached = int(counts.get("inactive_file", 0))  # of files, given back when it is needed
        found.append(float(max(0, int(limit) - int(used) + cached)))
    return min(found)


_GROUP = "/sys/fs/cgroup"
"""Where a container's limits lie, in the second version of Linux's control groups."""


def resident_memory() -> float:
    """Return the bytes of memory that this process has now; 0 where nobody can tell."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("VmRSS:"):
            return 1024.0 * int(line.split()[1])
    return 0.0


def _memory() -> str:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return ""
    return f"{size / _GIB:.1f} GiB"


def _gpu() -> str:
    if not torch.cuda.is_available():
        return "none"
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return ", ".join(names)
