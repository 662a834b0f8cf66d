"""What large data costs: memory and time of 14 million records, shards on disk and over HTTP.

Every measurement runs in a process of its own. Memory is what no file backs, the main process's
and its workers' together: `Pss_Anon` of /proc/PID/smaps_rollup, in which pages that processes share
count once in all. Pages of the index and of the order are of files: all processes share them, and
the system drops them where memory is short.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.data.flaky_server import flaky_server
from triptych.core.errors import DataError
from triptych.data.cache import CACHE_VARIABLE
from triptych.data.collate import PretrainingCollator
from triptych.data.images import decode_image
from triptych.data.manifest import DataSourceConfig, read_records
from triptych.data.samples import add_member
from triptych.data.skips import SkipLog
from triptych.data.stream import BatchLoader, build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.data.windows import windows_of
from triptych.text import Tokenizer

NUM_FILES = 256
WORDS = ["a", "dog", "cat", "bird", "sits", "near", "the", "big", "small", "red", "mat", "on"]
MIB = 2**20
FAILS = 0.05


def jpeg(rng: np.random.Generator, side: int) -> bytes:
    """Return a JPEG of smooth noise, about as large as a photo of this size."""
    small = rng.integers(0, 256, (side // 8, side // 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((side, side)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_manifest(folder: Path, number: int) -> Path:
    """Write so many pairs over a few image files, each caption another."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(NUM_FILES):
        (folder / f"images/{i:03d}.jpg").write_bytes(jpeg(rng, 64))
    path = folder / "pairs.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            words = " ".join(WORDS[(i * k) % len(WORDS)] for k in (1, 3, 5, 7, 11, 13))
            file.write(f'{{"image": "images/{i % NUM_FILES:03d}.jpg", "caption": "{words} {i}"}}\n')
    return path


def write_shards(folder: Path, shards: int, samples: int, side: int) -> None:
    """Write shards as the webdataset library lays them out: key.jpg, key.txt."""
    rng = np.random.default_rng(1)
    images = [jpeg(rng, side) for _ in range(64)]
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:06d}.tar", "w") as tar:
            for sample in range(samples):
                key = f"{shard * samples + sample:09d}"
                add_member(tar, f"{key}.jpg", images[sample % 64])
                add_member(tar, f"{key}.txt", f"a caption of sample {key}".encode())


def anonymous_bytes(pid: int | str = "self") -> int:
    """Return a process's part of memory that no file backs; shared pages count in equal parts."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) * 1024
    raise DataError("the kernel does not say Pss_Anon in smaps_rollup: Linux 5.10 or newer does")


def loader(records: Any, **settings: Any) -> BatchLoader:
    """Return batches of small images, as pre-training takes them."""
    return build_loader(
        records,
        PretrainingCollator(Tokenizer.train(WORDS, vocab_size=300)),
        ImageTransform(ImageTransformConfig(image_size=32), train=True),
        seed=0,
        train=True,
        **settings,
    )


def start(path: str) -> dict[str, Any]:
    """Read the records and make the first batch; look at 100,000 records at random after it."""
    before, began = anonymous_bytes(), time.perf_counter()
    records = read_records(DataSourceConfig(path=path)).records
    read_s = time.perf_counter() - began
    batches = iter(loader(records, local_batch_size=32))
    next(batches)
    started_s = time.perf_counter() - began
    chosen = np.random.default_rng(0).integers(len(records), size=100_000).tolist()
    began = time.perf_counter()
    for index in chosen:
        _ = records[index]
    return {
        "read_s": round(read_s, 2),
        "start_s": round(started_s, 2),
        "record_us": round((time.perf_counter() - began) * 10, 1),
        "bytes_per_record": round((anonymous_bytes() - before) / len(records), 2),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def workers(path: str, number: int, batches: int = 200) -> dict[str, Any]:
    """Return the memory of a loader with its workers, in MiB."""
    records = read_records(DataSourceConfig(path=path)).records
    made = iter(loader(records, local_batch_size=32, num_workers=number))
    for _ in range(batches):
        next(made)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    own, theirs = anonymous_bytes(), [anonymous_bytes(pid) for pid in children]
    made.close()
    return {
        "loader_mib": round((own + sum(theirs)) / MIB, 1),
        "worker_mib": [round(value / MIB, 1) for value in theirs],
    }


def ours(folder: str) -> Iterator[int]:
    """Yield the bytes of each decoded image in shuffled order, by our reader."""
    records = read_records(DataSourceConfig(path=folder, index="always")).records
    windows = windows_of(records, 4)
    assert windows is not None
    for offset in range(len(records)):
        record = records[windows.index(0, 0, offset)]
        assert record.image is not None and record.caption
        yield decode_image(record.image.read()).nbytes


def theirs(folder: str) -> Iterator[int]:
    """The same by webdataset, with its own shuffling."""
    import webdataset

    urls = sorted(map(str, Path(folder).glob("*.tar")))
    stream = webdataset.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(4000)
    for sample in stream:
        assert sample["txt"].decode()
        yield decode_image(sample["jpg"]).nbytes


def shard_speed(folder: str, rounds: int) -> dict[str, Any]:
    """Return our samples a second over webdataset's, decoding included, in one process."""
    runs: dict[str, Callable[[str], Iterator[int]]] = {"ours": ours, "webdataset": theirs}
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    totals = set()
    for turn in range(rounds + 1):
        for name, run in runs.items():
            began = time.process_time()
            sizes = list(run(folder))
            totals.add((len(sizes), sum(sizes)))
            if turn:  # the first warms up, and makes the index
                speeds[name].append(len(sizes) / (time.process_time() - began))
    assert len(totals) == 1, "both decode the same images"
    ratios = [a / b for a, b in zip(speeds["ours"], speeds["webdataset"], strict=True)]
    median = {name: round(statistics.median(values)) for name, values in speeds.items()}
    return {"ratio": round(statistics.median(ratios), 2), "samples_per_s": median}


def remote(folder: str) -> dict[str, Any]:
    """Read two epochs of shards over HTTP, stop, go on; count what is lost or comes twice."""
    with flaky_server(Path(folder), fails=FAILS, seed=0) as server:
        number = len(list(Path(folder).glob("*.tar")))
        path = f"{server.url}/{{000000..{number - 1:06d}}}.tar"
        records = read_records(DataSourceConfig(path=path, index="always")).records
        log = SkipLog(None, len(records), 1.0)
        total, stop = 2 * len(records) // 16, len(records) // 16 * 3 // 4
        seen: list[int] = []
        for first, last in ((0, stop), (stop, total)):
            settings: dict[str, Any] = {"num_workers": 2, "start_step": first, "skip_log": log}
            batches = iter(loader(records, local_batch_size=16, shuffle_window=2, **settings))
            for _ in range(first, last):
                seen += next(batches)["index"].tolist()
            batches.close()
        times = np.bincount(seen, minlength=len(records))
        return {
            "lost": int(np.maximum(2 - times, 0).sum()) + log.num_bad,
            "samples": 2 * len(records),
            "requests": server.num_requests,
            "failed": server.num_failed,
        }


STEPS = {"start": start, "workers": workers, "shards": shard_speed, "remote": remote}


def step(name: str, cache: Path, *arguments: Any) -> dict[str, Any]:
    """Run one measurement in a process of its own."""
    words = ["-m", "benchmarks.speed.records", "--step", name, *map(str, arguments)]
    variables = os.environ | {CACHE_VARIABLE: str(cache)}
    done = subprocess.run(
        [sys.executable, *words], env=variables, check=True, stdout=subprocess.PIPE, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def measure(folder: Path, number: int, rounds: int) -> dict[str, Any]:
    """Return all figures."""
    cache = folder / "cache"
    path = write_manifest(folder, number)
    first, second = step("start", cache, path), step("start", cache, path)
    one, four = step("workers", cache, path, 1), step("workers", cache, path, 4)
    for name, size in (("shards", (20, 1000, 128)), ("served", (6, 160, 64))):
        (folder / name).mkdir()
        write_shards(folder / name, *size)
    speed = step("shards", cache, folder / "shards", rounds)
    resumed = step("remote", cache, folder / "served")
    return {
        "record_bytes": second["bytes_per_record"],
        "second_start_s": second["start_s"],
        "workers_memory": round(four["loader_mib"] / one["loader_mib"], 2),
        "shard_samples_per_s": speed["ratio"],
        "remote_resume": resumed["lost"],
        "records": number,
        "first_start": first,
        "second_start": second,
        "one_worker": one,
        "four_workers": four,
        "shards": speed,
        "remote": resumed,
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=14_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for 6 GB of files; a temporary one if absent")
    parser.add_argument("--step", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        name, *words = options.step
        print(json.dumps(STEPS[name](*(int(w) if w.isdecimal() else w for w in words))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures = measure(Path(folder), options.records, options.rounds)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
