"""Model folders: weights, sizes, tokenizer, image settings, card and checksums."""

import hashlib
import json
import random
import struct
from pathlib import Path

import numpy as np

from tests.fuzz.kind import Kind, Mutator
from tests.fuzz.mutators import (
    changed,
    is_small,
    mutate_bytes,
    mutate_json,
    mutate_plain,
    special,
)
from tests.serving.tiny_folder import write_tiny_folder, write_tiny_vlmo
from triptych.checkpoint.model_folder import CARD, SUMS
from triptych.serving.engine import load
from triptych.text import Tokenizer

IMAGE = np.zeros((16, 16, 3), np.uint8)


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """Change the header of a safetensors file, or its numbers."""
    try:
        length = int.from_bytes(data[:8], "little")
        header, body = json.loads(data[8 : 8 + length]), bytearray(data[8 + length :])
    except (ValueError, RecursionError):
        return data
    how = rng.randint(0, 3)
    if how == 0 and len(body) > 8:
        at = rng.randrange(0, len(body) - 4, 4)
        value = rng.choice((float("nan"), float("inf"), -float("inf"), 3e38))
        body[at : at + 4] = struct.pack("<f", value)
    elif how == 1:
        body = bytearray(mutate_bytes(rng, bytes(body)))
    else:
        header = mutate_plain(rng, header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(body)


def mutate_state(rng: random.Random, data: bytes) -> bytes:
    """Give a model's config hostile sizes."""
    try:
        plain = json.loads(data)
        sizes = plain["model"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return data
    if not isinstance(sizes, dict):  # another change was before
        return data
    for _ in range(3):  # down to the sizes of a part
        inner = [value for value in sizes.values() if isinstance(value, dict)]
        if not inner or rng.random() < 0.5:
            break
        sizes = rng.choice(inner)
    numbers = [k for k, v in sizes.items() if isinstance(v, int | float)]
    if numbers:
        name = rng.choice(numbers)
        sizes[name] = rng.choice(
            (10**12, 10**9, 2**24, 100_000, 1000, 0, -1, -(10**9), 10**400, 1e308, float("nan"))
        )
    return json.dumps(plain).encode()


def mutate_other(rng: random.Random, data: bytes) -> bytes:
    """Change what a config says beside the sizes: the texts' lengths, the task."""
    try:
        plain = json.loads(data)
        part = rng.choice([k for k in plain if k != "model"])
    except (ValueError, IndexError, TypeError, RecursionError):
        return data
    plain[part] = mutate_plain(rng, plain[part])
    return json.dumps(plain, default=str).encode()


def reseal(folder: Path) -> None:
    """Write the checksums of a model folder as whoever changed it on purpose would."""
    sums = folder / SUMS
    read = [p for p in sorted(folder.iterdir()) if is_small(p) and p.name not in (SUMS, CARD)]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in read]
    if is_small(sums):
        sums.write_text("".join(lines))


MUTATORS: tuple[Mutator, ...] = (
    changed("*", mutate_bytes),
    changed("*.json", mutate_bytes),
    changed("*.json", mutate_json),
    changed("tokenizer.json", mutate_json),
    changed("config.json", mutate_state),
    changed("config.json", mutate_other),
    changed("*.safetensors", mutate_safetensors),
    changed("*.safetensors", mutate_bytes),
    changed("README.md", mutate_bytes),
    special(),
)


def _build(folder: Path, write, *options) -> None:
    folder.rmdir()
    write(folder, *options)


def _caption(folder: Path) -> None:
    engine = load(folder, device="cpu")
    engine.caption(IMAGE)


def _ground(folder: Path) -> None:
    engine = load(folder, device="cpu")
    engine.ground(IMAGE, "a small red circle")


def _match(folder: Path) -> None:
    engine = load(folder, device="cpu")
    engine.match(IMAGE, "a small red circle")
    engine.embed_images(IMAGE)


def _build_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.train(["a small red circle", "two blue stars"], 120, 12)
    (folder / "tokenizer.json").write_text(tokenizer.to_json())
    vocab = json.loads(tokenizer.to_json())["model"]["vocab"]
    (folder / "vocab.txt").write_text("\n".join(sorted(vocab, key=vocab.get)) + "\n")


def _read_tokenizer(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        tokenizer = Tokenizer.load(path)
        ids = tokenizer.encode(["a small red circle, 2 stars"], max_tokens=12)
        tokenizer.decode(ids[0])
        tokenizer.encode_words("a small red circle")


KINDS = [
    Kind(
        name="model_captioning",
        build=lambda folder: _build(folder, write_tiny_folder, "captioning"),
        mutators=MUTATORS,
        use=_caption,
        seal=reseal,
    ),
    Kind(
        name="model_grounding",
        build=lambda folder: _build(folder, write_tiny_folder, "grounding"),
        mutators=MUTATORS,
        use=_ground,
        seal=reseal,
    ),
    Kind(
        name="model_vlmo",
        build=lambda folder: _build(folder, write_tiny_vlmo, "retrieval"),
        mutators=MUTATORS,
        use=_match,
        seal=reseal,
    ),
    Kind(
        name="tokenizer",
        build=_build_tokenizer,
        mutators=(
            changed("*", mutate_bytes),
            changed("*.json", mutate_json),
            changed("*.json", mutate_json),
            special(),
        ),
        use=_read_tokenizer,
    ),
]
