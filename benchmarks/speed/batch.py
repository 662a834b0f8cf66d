"""Batch jobs: rows that kills lose or double, and Ray against the plain job; prints JSON.

`kill`: `triptych batch` on JPEGs, killed (SIGKILL) at random moments and started again, plain and
on Ray with two workers. On Ray every second kill takes one worker and leaves the rest running. Then
the job is left to end, and its rows are compared with those of a job that was never killed.
`ray`: the time of the whole job on Ray with two workers over that of the plain job, each from the
start of its command, and the same of the rows a second once the first part is there.

    python -m benchmarks.speed.batch kill runs/demo/pretrain/model
    python -m benchmarks.speed.batch ray runs/demo/pretrain/model
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

MARK = "TRIPTYCH_BENCHMARK"
WORKER = "PartActor"
RAY_FLAGS = ("--ray", "local", "--ray-workers", "2")
PLAIN, RAY = "plain", "ray"


def write_data(folder: Path, number: int) -> Path:
    """Write JPEGs of 320 x 240 and a manifest of them; every hundredth is no image."""
    rng = np.random.default_rng(0)
    lines = []
    for place in range(number):
        path = folder / f"{place:06d}.jpg"
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8))
        coarse.resize((320, 240), Image.Resampling.BICUBIC).save(path, quality=90)
        if place % 100 == 99:
            path.write_bytes(b"no image")
        record = {"image": path.name, "id": str(place), "caption": "a red circle"}
        lines.append(json.dumps(record | {"question": "is there a star?"}))
    manifest = folder / "images.jsonl"
    manifest.write_text("\n".join(lines) + "\n")
    return manifest


def command_of(options: argparse.Namespace, manifest: Path, out: Path, kind: str) -> list[str]:
    """Return the command of a job."""
    words = [sys.executable, "-m", "triptych", "batch", options.verb, options.model, str(manifest)]
    words += ["--out", str(out), "--part-rows", str(options.part_rows), "--batch-size", "16"]
    return [*words, *(RAY_FLAGS if kind == RAY else ())]


def start(command: list[str], mark: str) -> subprocess.Popen[bytes]:
    """Start a command whose processes carry a mark, in a session of its own."""
    return subprocess.Popen(
        command,
        env=os.environ | {MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def marked(mark: str, name: str = "") -> list[int]:
    """Return the processes that a mark came to, whose command holds a name."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            command = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:  # it has ended
            continue
        if f"{MARK}={mark}".encode() in environment and name in command and command:
            found.append(int(folder.name))
    return found


def wait_until_gone(mark: str) -> int:
    """Return how many processes of a killed job are still there after a minute."""
    end = time.monotonic() + 60
    while marked(mark) and time.monotonic() < end:
        time.sleep(0.1)
    return len(marked(mark))


def run_whole(command: list[str]) -> float:
    """Run a job to its end, and return its seconds."""
    begun = time.perf_counter()
    process = start(command, uuid.uuid4().hex)
    if process.wait():
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.perf_counter() - begun


def kill_often(
    command: list[str], out: Path, kind: str, options: argparse.Namespace
) -> Counter[str]:
    """Start and kill a job, then let it end; count the kills by what they hit."""
    rng = random.Random(options.seed)
    kills: Counter[str] = Counter()
    num_parts = -(-options.images // options.part_rows)
    process, mark = None, ""
    while kills.total() < options.kills:
        if process is None or process.poll() is not None:
            mark = uuid.uuid4().hex
            process = start(command, mark)
        before = len(list(out.glob("part-*")))
        if before >= num_parts:
            break  # too fast for so many kills; the report says how many there were
        if rng.random() < 0.8:  # most hit the computing, not the start
            while len(list(out.glob("part-*"))) == before and process.poll() is None:
                time.sleep(0.01)
        time.sleep(rng.uniform(0, options.wait_s))
        workers = marked(mark, WORKER) if kind == RAY and kills.total() % 2 else []
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            kills["a worker"] += 1
            continue
        process.kill()
        process.wait()
        kills["the job"] += 1
        kills["processes left behind"] += wait_until_gone(mark)
        process = None
    if process is not None:
        process.wait()
    return kills


def rows_of(out: Path) -> list[dict[str, Any]]:
    """Return all rows of a job, in order."""
    rows: list[dict[str, Any]] = pq.read_table(out).to_pylist()
    return sorted(rows, key=lambda row: int(row["row"]))


def kill(options: argparse.Namespace) -> dict[str, Any]:
    """Kill jobs at random moments, and compare their rows with those of a job that was not."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_data(folder, options.images)
        run_whole(command_of(options, manifest, folder / "whole", PLAIN))
        expected = {row["row"]: row for row in rows_of(folder / "whole")}
        for kind in options.kinds:
            out = folder / kind
            command = command_of(options, manifest, out, kind)
            kills = kill_often(command, out, kind, options)
            left = kills.pop("processes left behind", 0)
            run_whole(command)
            times = Counter(row["row"] for row in rows_of(out))
            found[kind] = {
                "rows_lost": len(expected.keys() - times.keys()),
                "rows_twice": sum(times.values()) - len(times),
                "rows_different": sum(row != expected[row["row"]] for row in rows_of(out)),
                "kills": dict(kills),
                "processes_left": left,
                "temporary_files_left": len(list(out.glob(".part-*"))),
            }
    bad = ("rows_lost", "rows_twice", "rows_different")
    worst = sum(result[key] for result in found.values() for key in bad)
    return {"batch_kill": worst, **found, "images": options.images, "verb": options.verb}


def ray(options: argparse.Namespace) -> dict[str, Any]:
    """Compare the job on Ray with the plain one."""
    seconds: dict[str, list[float]] = {PLAIN: [], RAY: []}
    rates: dict[str, list[float]] = {PLAIN: [], RAY: []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest = write_data(folder, options.images)
        for number in range(options.rounds):
            for kind in (PLAIN, RAY) if number % 2 else (RAY, PLAIN):
                out = folder / kind
                shutil.rmtree(out, ignore_errors=True)
                seconds[kind].append(run_whole(command_of(options, manifest, out, kind)))
                times = sorted(path.stat().st_mtime for path in out.glob("part-*"))
                rows = (len(times) - 1) * options.part_rows
                rates[kind].append(rows / max(times[-1] - times[0], 1e-9))
    best = {kind: min(found) for kind, found in seconds.items()}
    rate = {kind: max(found) for kind, found in rates.items()}
    return {
        "ray_over_plain": round(best[RAY] / best[PLAIN], 3),
        "ray_rate_over_plain": round(rate[RAY] / rate[PLAIN], 3),
        "seconds": {kind: round(value, 1) for kind, value in best.items()},
        "rows_per_s": {kind: round(value, 1) for kind, value in rate.items()},
        "images": options.images,
        "verb": options.verb,
    }


def main() -> None:
    """Print what is measured."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", choices=("kill", "ray"))
    parser.add_argument("model", help="a model folder")
    parser.add_argument("--verb", default="embed")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--part-rows", type=int, default=50)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--kinds", nargs="+", choices=(PLAIN, RAY), default=(PLAIN, RAY))
    parser.add_argument(
        "--wait-s", type=float, default=2.0, help="a kill comes up to so much later"
    )
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps({"kill": kill, "ray": ray}[options.what](options)))


if __name__ == "__main__":
    main()
