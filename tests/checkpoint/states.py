"""Checkpoints that tests write."""

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from triptych.checkpoint.sharded import CheckpointWriter


def state_of(value: float) -> dict:
    return {"modules": {"w": torch.full((3,), value)}, "value": value}


def save_checkpoint(folder: Path, step: int, state: dict, **options) -> Path:
    """Write one checkpoint, and wait until it is sealed."""
    writer = CheckpointWriter(folder, **options)
    writer.save(step, state)
    return writer.finish(wait=True)


def write_format_1(path: Path, state: dict) -> None:
    """Write a checkpoint as Triptych 0.3 did: one file of tensors, by their paths."""
    path.mkdir(parents=True)
    tensors = {f"/modules/{name}": tensor.clone() for name, tensor in state["modules"].items()}
    save_file(tensors, path / "tensors.safetensors")
    marks = {name: {"__tensor__": f"/modules/{name}"} for name in state["modules"]}
    (path / "state.json").write_text(json.dumps(state | {"modules": marks}))
    files = {}
    for name in ("tensors.safetensors", "state.json"):
        content = (path / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        files[name] = {"size": len(content), "sha256": digest}
    seal = {"format": 1, "step": int(path.name.removeprefix("step_")), "files": files}
    (path / "checkpoint.json").write_text(json.dumps(seal))
