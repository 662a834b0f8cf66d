"""Released-like files of small sizes, and the words that belong to them."""

import dataclasses
import json

import torch

from tests.parity.mplug_golden import VOCABULARY, GoldenFile
from triptych.core.config import to_dict


def write_released(folder, name="mplug_base_like", wrapper="model", **changes):
    """Write a golden state dict as the authors do, its sizes and its vocabulary.

    Returns:
        The golden file, and the paths of checkpoint, model config and vocabulary.
    """
    golden = GoldenFile(name)
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.replace(golden.config, **changes)
    checkpoint, sizes, words = (folder / n for n in ("released.pth", "sizes.json", "vocab.txt"))
    state = {**golden.state}
    torch.save({wrapper: state, "epoch": 7, "config": {"lr": 1e-5}}, checkpoint)
    sizes.write_text(json.dumps(to_dict(config)))
    words.write_text("\n".join(VOCABULARY) + "\n")
    return golden, checkpoint, sizes, words
