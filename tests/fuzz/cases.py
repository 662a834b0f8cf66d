"""A case as one small JSON file: what differs from the sample of its kind."""

import base64
import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

from tests.fuzz.kind import Kind
from tests.fuzz.worker import Outcome

CASES = Path(__file__).with_name("cases")
LARGEST_KB = 64
"""Larger cases are not kept in the repository."""


def pack(kind: Kind, folder: Path, sample: Path, *, sealed: bool) -> dict[str, Any]:
    """Return a case as JSON values."""
    entries = {}
    names = {str(p.relative_to(root)) for root in (folder, sample) for p in root.rglob("*")}
    for name in sorted(names):
        if entries.get(str(Path(name).parent)) == {"is": "absent"}:
            entries[name] = {"is": "absent"}  # for those below it; removed again
            continue
        found = _entry(folder / name)
        if found != _entry(sample / name):
            entries[name] = found
    absent = [name for name, entry in entries.items() if entry == {"is": "absent"}]
    for name in absent:
        if str(Path(name).parent) in absent:
            del entries[name]
    return {"kind": kind.name, "sealed": sealed, "files": entries}


def unpack(case: dict[str, Any], kind: Kind, sample: Path, folder: Path) -> None:
    """Write a case into a new folder."""
    shutil.copytree(sample, folder)
    for name, entry in case["files"].items():
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if "deflated" in entry:
            path.write_bytes(zlib.decompress(base64.b64decode(entry["deflated"])))
        elif "hole" in entry:
            path.touch()
            os.truncate(path, entry["hole"])
        elif "link" in entry:
            path.symlink_to(entry["link"])
        elif entry.get("is") == "folder":
            path.mkdir()
        elif entry.get("is") == "fifo":
            os.mkfifo(path)
    if case["sealed"]:
        kind.seal(folder)


def _entry(path: Path) -> dict[str, Any]:
    if path.is_symlink():
        return {"link": str(path.readlink())}
    if path.is_fifo():
        return {"is": "fifo"}
    if path.is_dir():
        return {"is": "folder"}
    if not path.exists():
        return {"is": "absent"}
    if path.stat().st_size > 1 << 30:
        return {"hole": path.stat().st_size}
    return {"deflated": base64.b64encode(zlib.compress(path.read_bytes(), 9)).decode()}


def keep(case: dict[str, Any], outcome: Outcome, folder: Path = CASES) -> Path | None:
    """Write a case to `cases/`; None if it is too large, or there are enough like it."""
    about = re.sub(r"\W+", "_", outcome.signature)[:60].strip("_")
    free = (folder / f"{case['kind']}-{about}-{n}.json" for n in range(2))
    path = next((path for path in free if not path.exists()), None)
    text = json.dumps(case | {"found": outcome.signature}, indent=1) + "\n"
    if path is None or len(text) > LARGEST_KB << 10:
        return None
    path.write_text(text)
    return path
