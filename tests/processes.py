"""What tests ask of other processes, on Linux."""

from pathlib import Path


def runs(pid: int) -> bool:
    """Return whether a process is there and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return stat.rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started and that are still there."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
