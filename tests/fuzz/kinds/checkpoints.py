"""Checkpoints of runs."""

import hashlib
import json
from pathlib import Path

from tests.checkpoint.states import save_checkpoint, state_of, write_format_1
from tests.fuzz.kind import Kind
from tests.fuzz.kinds.model_folders import mutate_safetensors
from tests.fuzz.mutators import changed, is_small, mutate_bytes, mutate_json, special
from triptych.checkpoint.run import load_latest


def _build(folder: Path) -> None:
    save_checkpoint(folder, 3, state_of(2.5) | {"loader": {"epoch": 1, "names": ["a", "b"]}})


def _reseal(folder: Path) -> None:
    for step in folder.glob("step_*"):
        seal = step / "checkpoint.json"
        if not is_small(seal):
            continue
        try:
            plain = json.loads(seal.read_text())
            for name in plain["files"]:
                path = step / name
                if not is_small(path):
                    return
                content = path.read_bytes()
                digest = hashlib.sha256(content).hexdigest()
                plain["files"][name] = {"size": len(content), "sha256": digest}
            seal.write_text(json.dumps(plain))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return


MUTATORS = (
    changed("*", mutate_bytes),
    changed("*.json", mutate_json),
    changed("*.json", mutate_json),
    changed("*.safetensors", mutate_safetensors),
    changed("*.safetensors", mutate_safetensors),
    special(),
)

KINDS = [
    Kind(
        name="checkpoint",
        build=_build,
        mutators=MUTATORS,
        use=load_latest,
        seal=_reseal,
    ),
    Kind(
        name="checkpoint_format_1",
        build=lambda folder: write_format_1(folder / "step_4", state_of(1.5)),
        mutators=MUTATORS,
        use=load_latest,
        seal=_reseal,
    ),
]
