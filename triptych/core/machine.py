"""What a number was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from pathlib import Path

import torch

import triptych


@lru_cache(maxsize=1)
def current_commit() -> str:
    """Return the commit of the checkout that the package runs from, or the package's version.

    Returns:
        A full hash, with "-dirty" behind it when tracked files differ from the commit; or
        "version X.Y.Z" where the package is no git checkout.
    """
    root = Path(triptych.__file__).resolve().parent.parent
    try:
        if Path(_git(root, "rev-parse", "--show-toplevel")).resolve() != root:
            return f"version {triptych.__version__}"
        dirty = "-dirty" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
        return _git(root, "rev-parse", "HEAD") + dirty
    except (OSError, subprocess.CalledProcessError):
        return f"version {triptych.__version__}"


def describe_machine() -> dict[str, str]:
    """Return processor, cores, memory, GPU and versions, as text by name."""
    facts = {
        "cpu": _cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next(
        (x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), "unknown"
    )


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError):
        return "unknown"
