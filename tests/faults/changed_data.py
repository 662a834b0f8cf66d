"""Change the data of a run between its stop and its resumption: each change must be named.

One small run on three sources (a manifest with images and splits, a tar shard, and held-out data)
stops after its second step. For each kind of change, a copy of run and data is changed and resumed:
it must be refused with what changed, and go on where that is accepted.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from tests.workflows.small_runs import small_run
from triptych.core.config import load_yaml, save_yaml
from triptych.core.errors import CheckpointError
from triptych.data.shards import ShardOptions, write_shards
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.train.metrics_log import read_metrics
from triptych.workflows.run import resume_run, train_run

NUM_IMAGES, STOP, END = 12, 2, 3
COLORS = ("red", "green", "blue", "grey")


def write_images(folder: Path, number: int) -> list[dict[str, str]]:
    """Write small PNG files of one size in bytes; return a manifest's lines."""
    folder.mkdir(parents=True)
    lines = []
    for i in range(number):
        name = f"{i:03d}.bmp"  # without compression: all have one size
        rng = np.random.default_rng(i)
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        caption = f"a {COLORS[i % 4]} thing number {i}"
        lines.append({"image": f"{folder.name}/{name}", "caption": caption, "split": "train"})
    return lines


def write_lines(path: Path, lines: list[dict[str, str]]) -> None:
    """Write a manifest."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, str]]:
    """Read a manifest."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_run(folder: Path) -> Path:
    """Write data, train on it to step `STOP`, and return the run folder, all below `folder`."""
    data = folder / "data"
    lines = write_images(data / "images", NUM_IMAGES)
    lines[-1]["split"] = "test"
    write_lines(data / "pairs.jsonl", lines)
    write_lines(data / "more.jsonl", write_images(data / "more", 8))
    plain = DataSourceConfig(path=str(data / "more.jsonl"))
    write_shards(plain, data / "shards", ShardOptions(samples_per_shard=4))
    write_lines(data / "val.jsonl", write_images(data / "val", 4))
    config = small_run(
        "mplug.pretrain",
        DataSourceConfig(path=str(data / "pairs.jsonl"), split="train", ratio=2.0),
        DataSourceConfig(path=str(data / "shards"), ratio=1.0),
        max_steps=STOP,
        global_batch_size=2,
        log_every_steps=1,
    )
    apart = (DataSourceConfig(path=str(data / "val.jsonl")),)
    config = replace(config, data=replace(config.data, val=apart))
    train_run(config, folder / "run", console=silent())
    change_config(folder / "run", lambda c: replace(c, train=replace(c.train, max_steps=END)))
    return folder / "run"


def silent() -> Console:
    """Return a console that prints nowhere."""
    return Console(file=io.StringIO())


def change_config(run: Path, change: Callable[[RunConfig], RunConfig]) -> None:
    """Change the config of a run."""
    save_yaml(change(load_yaml(RunConfig, run / "config.yaml")), run / "config.yaml")


def change_lines(name: str, change: Callable[[list[dict[str, str]]], object]) -> Callable[..., Any]:
    """Return what changes a manifest in the data folder."""

    def changed(folder: Path) -> None:
        lines = read_lines(folder / "data" / name)
        change(lines)
        write_lines(folder / "data" / name, lines)

    return changed


def _image(folder: Path, name: str = "004.bmp") -> Path:
    return folder / "data" / "images" / name


def _other_image(path: Path, side: int) -> None:
    Image.fromarray(np.full((side, side, 3), 77, dtype=np.uint8)).save(path)


def _moved_image(folder: Path) -> None:
    _image(folder).rename(_image(folder, "moved.bmp"))
    change_lines("pairs.jsonl", lambda lines: lines[4].update(image="images/moved.bmp"))(folder)


def _other_shard(folder: Path) -> None:
    """Put another pixel into the middle of an image of a shard: its size stays."""
    shard = folder / "data" / "shards" / "000001.tar"
    content = bytearray(shard.read_bytes())
    content[content.index(b"BM") + 2000] ^= 0xFF
    shard.write_bytes(content)


def _ratio(folder: Path) -> None:
    def changed(config: RunConfig) -> RunConfig:
        first, *others = config.data.train
        return replace(
            config, data=replace(config.data, train=(replace(first, ratio=3.0), *others))
        )

    change_config(folder / "run", changed)


Change = tuple[Callable[[Path], object], str]
PAIRS = "data.train pairs"

CHANGES: dict[str, Change] = {
    "caption edited": (
        change_lines("pairs.jsonl", lambda lines: lines[4].update(caption="a new caption")),
        f"{PAIRS} .*: texts in record 5",
    ),
    "record removed": (
        change_lines("pairs.jsonl", lambda lines: lines.pop(3)),
        f"{PAIRS} .*had 11 records and has 10; the first difference is in record 4",
    ),
    "record added": (
        change_lines("pairs.jsonl", lambda lines: lines.insert(2, {**lines[2], "caption": "x"})),
        f"{PAIRS} .*had 11 records and has 12; the first difference is in record 3",
    ),
    "order changed": (
        change_lines("pairs.jsonl", lambda lines: lines.insert(0, lines.pop(5))),
        f"{PAIRS} .*: the order of its 11 records",
    ),
    "image replaced by one of its size": (
        lambda folder: _other_image(_image(folder), 40),
        f"{PAIRS} .*004.bmp has other content",
    ),
    "image replaced": (
        lambda folder: _other_image(_image(folder), 50),
        f"{PAIRS} .*004.bmp has another size",
    ),
    "image removed": (
        lambda folder: _image(folder).unlink(),
        f"{PAIRS} .*a file is gone: .*004.bmp",
    ),
    "image moved": (_moved_image, f"{PAIRS} .*: images in record 5"),
    "shard replaced": (_other_shard, r"data.train shards .*000001.tar has other content"),
    "split of a record changed": (
        change_lines("pairs.jsonl", lambda lines: lines[6].update(split="test")),
        f"{PAIRS} .*had 11 records and has 10; the first difference is in record 7",
    ),
    "ratio of a source changed": (_ratio, f"{PAIRS} .*: its ratio was 2.0 and is 3.0"),
    "validation data changed": (
        change_lines("val.jsonl", lambda lines: lines[1].update(caption="a new caption")),
        r"data.val val .*: texts in record 2",
    ),
    "seed changed": (
        lambda folder: change_config(
            folder / "run", lambda c: replace(c, data=replace(c.data, seed=5))
        ),
        r"data.seed was 0 and is 5",
    ),
}
"""By what it is called: what changes a copy, and what the refusal must say."""


def _rewritten(folder: Path) -> None:
    """Write the same lines anew, with other spaces, and later."""
    path = folder / "data" / "pairs.jsonl"
    lines = [json.dumps(line, separators=(", ", " :  ")) + "\n" for line in read_lines(path)]
    path.write_text("".join(lines), encoding="utf-8")


def _touched(folder: Path) -> None:
    for path in (folder / "data").rglob("*"):
        os.utime(path, (time.time() + 1e6,) * 2)


SAME: dict[str, Callable[[Path], object]] = {
    "manifest written again": _rewritten,
    "files copied, all times later": _touched,
}
"""What is no change of the data: the run goes on without being asked."""


def copy_of(folder: Path, to: Path) -> Path:
    """Copy run and data, with their times, and let the copied run read the copied data."""
    shutil.copytree(folder, to)
    config = to / "run" / "config.yaml"
    config.write_text(config.read_text().replace(f"{folder}/", f"{to}/"))
    return to


def refusal_of(run: Path) -> str:
    """Return what a resumed run is refused with; empty if it goes on."""
    try:
        resume_run(run, console=silent())
    except CheckpointError as error:
        return str(error)
    return ""


def goes_on(run: Path) -> bool:
    """Return whether a run reaches its end where changed data is accepted."""
    resume_run(run, accept_changed_data=True, console=silent())
    return [line["step"] for line in read_metrics(run / "metrics.jsonl")][-1] == END


def measure(folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Return which changes were named, of `number` drawn ones; all where there are fewer."""
    run = write_run(folder / "whole").parent
    names = random.Random(seed).sample(list(CHANGES), min(number, len(CHANGES)))
    unnamed, stopped = [], []
    for name in names:
        change, expected = CHANGES[name]
        copy = copy_of(run, folder / name.replace(" ", "_"))
        change(copy)
        told = refusal_of(copy / "run")
        if not re.search(expected, told):
            unnamed.append(f"{name}: {told or 'it went on'}")
        elif not goes_on(copy / "run"):
            stopped.append(name)
        shutil.rmtree(copy)
    refused = []
    for name, change in SAME.items():
        copy = copy_of(run, folder / name.replace(" ", "_"))
        change(copy)
        told = refusal_of(copy / "run")
        refused += [f"{name}: {told}"] if told else []
    return {
        "changed_data": len(names) - len(unnamed),
        "changed_data_of": len(names),
        "unnamed": unnamed,
        "accepted_but_stopped": stopped,
        "same_data_refused": refused,
    }
