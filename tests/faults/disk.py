"""Disks that are full after a random number of bytes, read-only, or closed to us.

Every kind of file that Triptych writes is tried: each writer must end with an error that says to
free space, leave no part of a file, and make the same bytes as an undisturbed one afterwards. The
disk is a small tmpfs where one may be mounted; every other time, and where none may, the limit is
`RLIMIT_FSIZE`, the largest file that a process may write.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.workflows.small_runs import small_run
from triptych.checkpoint.foreign import write_foreign, write_foreign_folder
from triptych.checkpoint.model_folder import save_model_folder
from triptych.data.manifest import read_records
from triptych.data.shards import ShardOptions, write_shards
from triptych.data.source import DataSourceConfig
from triptych.index.build import build_index
from triptych.serving.loading import load_model
from triptych.workflows.predictions import Header, open_predictions
from triptych.workflows.run import train_run

from .changed_data import silent, write_images, write_lines
from .forks import USER_ERROR, content_of, fork, partials, train_toy, wait, warm_up

ROOMY = "64m"
PAGE = 4096


@dataclass(frozen=True)
class Writer:
    """Something that writes into an empty folder, and goes on or begins again if called again.

    Attributes:
        write: Is given the folder.
        advice: What its refusal must say, beside that space is to be freed.
    """

    write: Callable[[Path], object]
    advice: str = "again"


def writers(folder: Path) -> dict[str, Writer]:
    """Return every kind of writer, with its data below `folder`."""
    data = folder / "data"
    write_lines(data / "m.jsonl", write_images(data / "images", 24))
    source = DataSourceConfig(path=str(data / "m.jsonl"))
    config = small_run(
        "mplug.pretrain", source, max_steps=4, global_batch_size=2, checkpoint_every_steps=2
    )
    train_run(config, folder / "trained", console=silent())
    model = folder / "trained" / "model"
    generator = torch.Generator().manual_seed(0)
    weights = {f"w{i}": torch.randn(64, 256, generator=generator) for i in range(6)}

    def model_folder(out: Path) -> None:
        parts = {"config": {}, "preprocess": {}, "card": "# x\n", "tokenizer_json": "{}"}
        save_model_folder(out / "model", state_dict=weights, **parts)

    def foreign_folder(out: Path) -> None:
        write_foreign_folder(out / "folder", weights, {"config.json": {"a": 1}})

    def shards(out: Path) -> None:
        write_shards(source, out / "shards", ShardOptions(samples_per_shard=8))

    def index(out: Path) -> None:
        build_index(load_model(model, device="cpu", precision="fp32"), source, out / "index")

    def large(out: Path) -> None:
        previous = os.environ.get("TRIPTYCH_CACHE")
        os.environ["TRIPTYCH_CACHE"] = str(out / "cache")
        try:
            read_records(DataSourceConfig(path=source.path, index="always"))
        finally:
            os.environ.pop("TRIPTYCH_CACHE")
            if previous is not None:
                os.environ["TRIPTYCH_CACHE"] = previous

    return {
        "checkpoints": Writer(lambda out: train_toy(out / "run"), "resume"),
        "run": Writer(lambda out: train_run(config, out / "run", resume=True), "resume"),
        "model folder": Writer(model_folder),
        "safetensors": Writer(lambda o: write_foreign(o / "a.safetensors", weights, wrapper=None)),
        "torch file": Writer(lambda o: write_foreign(o / "a.pth", weights, wrapper="model")),
        "foreign folder": Writer(foreign_folder),
        "shards": Writer(shards),
        "predictions": Writer(_predictions),
        "index of images": Writer(index),
        "index of records": Writer(large),
    }


def _predictions(out: Path) -> None:
    header = Header(
        task="vqa",
        model="m",
        model_hash="h",
        task_config={},
        settings={},
        data="d",
        data_hash="k",
        num_samples=400,
        batch_size=8,
        protocol="as it is",
    )
    with open_predictions(out / "p.jsonl", header, overwrite=False) as file:
        for start in range(file.num_rows, 400, 8):
            rows = range(start, start + 8)
            file.add([{"index": i, "id": f"q{i}", "text": f"answer {i} " * 9} for i in rows])


@contextlib.contextmanager
def small_disk(folder: Path, limit: int) -> Iterator[Callable[[str], bool]]:
    """Mount a disk of `limit` bytes; yields what mounts it anew with other options.

    Raises:
        OSError: Nothing may be mounted here.
    """

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    folder.mkdir(parents=True)
    if not mount(f"size={limit}"):
        raise OSError("no file system can be mounted here")
    try:
        yield lambda options: mount(f"remount,{options}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Return whether a file system may be mounted here."""
    try:
        with small_disk(folder / "try", 1 << 16):
            return True
    except OSError:
        return False


def content(folder: Path) -> dict[str, str]:
    """Return digests of all files but those that hold times, and locks."""
    found = {}
    for path in folder.rglob("*"):
        is_timed = path.name in ("metrics.jsonl", ".lock", "about.json") or path.suffix == ".lock"
        if path.is_file() and not is_timed and "tensorboard" not in path.parts:
            name = str(path.relative_to(folder))
            data = content_of(path).replace(str(folder).encode(), b"")
            found[name] = hashlib.sha256(data).hexdigest()
    return found


def _limited(write: Callable[[Path], object], out: Path, limit: int | None) -> Callable[[], object]:
    def work() -> object:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return write(out)

    return work


class FullDisks:
    """All writers, and how much each writes where nothing disturbs it.

    Args:
        folder: For everything.
        draw: Gives the limits.
    """

    def __init__(self, folder: Path, draw: random.Random) -> None:
        self.folder, self.draw = folder, draw
        warm_up(folder / "toy")
        self.writers = writers(folder)
        self.can_mount = can_mount(folder)
        self._wholes: dict[str, Path] = {}

    def _whole(self, name: str) -> Path:
        if name not in self._wholes:
            out = self.folder / "whole" / name.replace(" ", "_")
            out.mkdir(parents=True)
            assert wait(fork(lambda: self.writers[name].write(out))) == 0, name
            self._wholes[name] = out
        return self._wholes[name]

    def fill(self, name: str, *, mounted: bool, number: int) -> dict[str, Any]:
        """Let a disk be full once; return what was wrong, if anything."""
        whole = self._whole(name)
        sizes = [path.stat().st_size for path in whole.rglob("*") if path.is_file()]
        most = sum(-(-size // PAGE) * PAGE for size in sizes) if mounted else max(sizes)
        out = self.folder / f"full_{number}"
        for _ in range(20):  # a limit that is none, as files are replaced, is drawn again
            if mounted:
                limit = PAGE * self.draw.randrange(1, most // PAGE)
            else:
                limit = self.draw.randrange(64, most)
            problems = self._once(name, out, limit, mounted=mounted)
            shutil.rmtree(out, ignore_errors=True)
            if problems is not None:
                return {"what": name, "mounted": mounted, "limit": limit, "problems": problems}
        raise RuntimeError(f"{name}: no limit was reached")

    def _once(self, name: str, out: Path, limit: int, *, mounted: bool) -> list[str] | None:
        if not mounted:
            out.mkdir(parents=True)
            return self._try(name, out, limit, lambda: None)
        with small_disk(out, limit) as remount:
            return self._try(name, out, None, lambda: remount(f"size={ROOMY}"))

    def _try(
        self, name: str, out: Path, limit: int | None, free: Callable[[], object]
    ) -> list[str] | None:
        writer, said = self.writers[name], self.folder / "said.json"
        said.unlink(missing_ok=True)
        code = wait(fork(_limited(writer.write, out, limit), said))
        if code == 0:
            return None
        told = json.loads(said.read_text())[1] if said.is_file() else ""
        problems = [] if code == USER_ERROR else [f"code {code}: {told}"]
        if "free space" not in told or writer.advice not in told:
            problems.append(f"the advice: {told}")
        if partials(out):
            problems.append(f"parts: {partials(out)}")
        free()
        code = wait(fork(_limited(writer.write, out, None), said))
        if code != 0:
            problems.append(f"after space was made: code {code}: {said.read_text()}")
        elif content(out) != content(self._whole(name)):
            pairs = {*content(out).items()} ^ {*content(self._whole(name)).items()}
            problems.append(f"other bytes: {sorted({n for n, _ in pairs})}")
        return problems


def measure(folder: Path, number: int, seed: int, names: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return after how many of `number` full disks everything was as it must be."""
    disks = FullDisks(folder, random.Random(seed))
    names = names or tuple(disks.writers)
    outcomes = []
    for index in range(number):
        mounted = disks.can_mount and (index + index // len(names)) % 2 == 0
        outcome = disks.fill(names[index % len(names)], mounted=mounted, number=index)
        outcomes.append(outcome)
        if outcome["problems"]:
            print(json.dumps(outcome), file=sys.stderr, flush=True)
    return {
        "disk_full": sum(not outcome["problems"] for outcome in outcomes),
        "disk_full_of": number,
        "limits": dict(Counter("tmpfs" if o["mounted"] else "RLIMIT_FSIZE" for o in outcomes)),
        "writers": dict(Counter(outcome["what"] for outcome in outcomes)),
        "problems": [outcome for outcome in outcomes if outcome["problems"]],
    }
