"""Contests on the way to a model and after it: decoding, resizing and exact search."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from benchmarks.peers import Ways, Work
from benchmarks.speed.decode import CONFIG, KINDS, now, photo
from benchmarks.speed.search import TOP, WIDTH, unit_rows, write_million
from triptych.data.images import decode_image
from triptych.data.records import ImageSource
from triptych.data.transforms.pipeline import resize
from triptych.index.approximate import import_faiss
from triptych.index.exact import search_exact

VECTORS = 100_000
SIZE = CONFIG.image_size


def _photos(kind_number: int) -> tuple[list[bytes], list[ImageSource]]:
    """Return photos as bytes, and as files that last as long as the process."""
    kind = KINDS[kind_number]
    data = [photo(kind, seed) for seed in range(kind.number)]
    folder = Path(tempfile.mkdtemp(prefix="triptych_peers_"))
    sources = []
    for number, encoded in enumerate(data):
        path = folder / f"{number}.jpg"
        path.write_bytes(encoded)
        sources.append(ImageSource(str(path)))
    return data, sources


def _pillow(data: bytes, *, draft: bool) -> Any:
    image = Image.open(io.BytesIO(data))
    if draft:
        image.draft("RGB", (SIZE, SIZE))
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def _cv2(data: bytes, flag: int) -> Any:
    pixels = cv2.imdecode(np.frombuffer(data, dtype=np.uint8), flag)
    return cv2.resize(pixels, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def _evaluation(kind: int, peer: str) -> Work:
    """Every pixel decoded, and resized to the square, as evaluation and search see it."""
    data, sources = _photos(kind)
    peers: dict[str, Ways] = {
        "pillow": {"whole": lambda: [_pillow(some, draft=False) for some in data]},
        "cv2": {"whole": lambda: [_cv2(some, cv2.IMREAD_COLOR_RGB) for some in data]},
    }
    first = resize(decode_image(data[0]), SIZE, SIZE).astype(int)
    apart = np.abs(first - peers[peer]["whole"]()[0]).mean()  # type: ignore[index]
    return Work(
        ours={"whole": lambda: [resize(decode_image(some), SIZE, SIZE) for some in sources]},
        peer=peers[peer],
        facts={
            "images": len(data),
            "pixels": f"{KINDS[kind].width} x {KINDS[kind].height} to {SIZE} x {SIZE}",
            "apart_grey_levels": round(float(apart), 2),
        },
    )


def _training(kind: int, peer: str) -> Work:
    """A training image: ours draws a crop of the paper's, theirs shrinks the whole image."""
    data, sources = _photos(kind)
    reduced = cv2.IMREAD_REDUCED_COLOR_8 if kind else cv2.IMREAD_COLOR_RGB
    peers: dict[str, Ways] = {
        "pillow": {"draft": lambda: [_pillow(some, draft=True) for some in data]},
        "cv2": {"reduced": lambda: [_cv2(some, reduced) for some in data]},
    }
    return Work(
        ours={"crop": lambda: [now(some, np.random.default_rng(0)) for some in sources]},
        peer=peers[peer],
        facts={
            "images": len(data),
            "pixels": f"{KINDS[kind].width} x {KINDS[kind].height} to {SIZE} x {SIZE}",
        },
    )


def decode_pillow() -> Work:
    """Return 640 x 480 for evaluation, beside Pillow."""
    return _evaluation(0, "pillow")


def decode_cv2() -> Work:
    """Return 640 x 480 for evaluation, beside OpenCV, which shrinks by area."""
    return _evaluation(0, "cv2")


def train_decode_pillow() -> Work:
    """Return 12 megapixels for training, beside Pillow's draft mode."""
    return _training(1, "pillow")


def train_decode_cv2() -> Work:
    """Return 12 megapixels for training, beside OpenCV's reduced decoding."""
    return _training(1, "cv2")


def _search(batch: int, peer: str) -> Work:
    """The first 10 of 100,000 unit vectors, as our index has them: float16, mapped."""
    folder = Path(tempfile.mkdtemp(prefix="triptych_peers_"))
    vectors = write_million(folder / "v.arrow", VECTORS, clustered=False)
    queries = unit_rows(np.random.default_rng(1), batch).astype(np.float32)
    asked = torch.from_numpy(queries)
    run, found = (_faiss if peer == "faiss" else _usearch)(vectors, queries)
    ours = search_exact(vectors, asked, TOP)[1]
    return Work(
        ours={"float16": lambda: search_exact(vectors, asked, TOP)},
        peer=run,
        facts={
            "vectors": VECTORS,
            "width": WIDTH,
            "queries": batch,
            "same_share": round(float(np.mean(ours == found)), 4),
        },
    )


def _faiss(vectors: Sequence[Any], queries: Any) -> tuple[Ways, Any]:
    faiss = import_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    flat = faiss.IndexFlatIP(WIDTH)
    for part in vectors:
        flat.add(np.ascontiguousarray(part, dtype=np.float32))
    return {"Flat": lambda: flat.search(queries, TOP)}, flat.search(queries, TOP)[1]


def _usearch(vectors: Sequence[Any], queries: Any) -> tuple[Ways, Any]:
    from usearch.index import search

    whole = np.concatenate([np.asarray(part) for part in vectors])
    half, threads = queries.astype(np.float16), torch.get_num_threads()

    def run() -> Any:
        return search(whole, half, TOP, metric="ip", exact=True, threads=threads)

    return {"float16": run}, np.asarray(run().keys).reshape(len(queries), TOP)


def search_faiss_1() -> Work:
    """Return one query, beside faiss."""
    return _search(1, "faiss")


def search_faiss_64() -> Work:
    """Return 64 queries, beside faiss."""
    return _search(64, "faiss")


def search_usearch_1() -> Work:
    """Return one query, beside usearch."""
    return _search(1, "usearch")


def search_usearch_64() -> Work:
    """Return 64 queries, beside usearch."""
    return _search(64, "usearch")
