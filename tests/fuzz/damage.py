"""Model folders with flipped bytes: loading refuses each, and names the file."""

import random
import shutil
from pathlib import Path

from tests.serving.tiny_folder import write_tiny_folder, write_tiny_vlmo
from triptych.checkpoint.model_folder import CARD
from triptych.core.errors import CheckpointError
from triptych.serving.loading import load_model


def count_refused(folder: Path, num_folders: int, seed: int) -> tuple[int, list[str]]:
    """Flip one to eight bytes of a file of each folder, and load it.

    Args:
        folder: Empty.
        num_folders: How many.
        seed: Of the files, the places and the bytes.

    Returns:
        How many were refused by the name of the damaged file, and a line for each other one.
    """
    samples = [folder / "captioning", folder / "grounding", folder / "retrieval"]
    for sample in samples[:2]:
        write_tiny_folder(sample, sample.name)
    write_tiny_vlmo(samples[2], "retrieval")
    rng, missed = random.Random(seed), []
    for number in range(num_folders):
        damaged = folder / "damaged"
        shutil.copytree(rng.choice(samples), damaged)
        path = rng.choice(sorted(p for p in damaged.iterdir() if p.name != CARD))
        content = bytearray(path.read_bytes())
        for at in rng.sample(range(len(content)), rng.randint(1, 8)):
            content[at] ^= rng.randint(1, 255)
        path.write_bytes(content)
        try:
            load_model(damaged, device="cpu")
            missed.append(f"{number}: loaded in spite of a damaged {path.name}")
        except CheckpointError as error:
            if path.name not in str(error):
                missed.append(f"{number}: {path.name} is damaged, and the error is: {error}")
        shutil.rmtree(damaged)
    return num_folders - len(missed), missed
