"""Approximate search by faiss, and how much of the exact result it finds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from triptych.core.errors import DataError
from triptych.core.extras import import_extra
from triptych.index.exact import search_exact
from triptych.index.store import Vectors

HNSW_LINKS = 32
BUILD_EFFORT, SEARCH_EFFORT = 80, 64
NUM_QUERIES = 256
"""Indexed vectors that are searched again to measure the recall."""


def import_faiss() -> Any:
    """Return faiss.

    Raises:
        CapabilityError: It is not installed.
    """
    return import_extra("faiss", "search", "approximate search", "search exactly")


def build_approximate(vectors: Sequence[Vectors], path: Path) -> tuple[str, float]:
    """Write an HNSW graph over fp16 vectors (Malkov and Yashunin, 2018).

    Args:
        vectors: Parts (n, E) float16, of length 1.
        path: The file that faiss writes.

    Returns:
        A description of the index, and its recall: the share of the exact first 10 that it finds
        for 256 of the vectors, moved a little so that they are not their own answer alone.
    """
    faiss = import_faiss()
    width = vectors[0].shape[1]
    index = faiss.IndexHNSWSQ(
        width, faiss.ScalarQuantizer.QT_fp16, HNSW_LINKS, faiss.METRIC_INNER_PRODUCT
    )
    index.hnsw.efConstruction = BUILD_EFFORT
    index.hnsw.efSearch = SEARCH_EFFORT
    first = np.asarray(vectors[0], dtype=np.float32)
    index.train(first)
    for part in vectors:
        index.add(np.ascontiguousarray(part, dtype=np.float32))
    faiss.write_index(index, str(path))
    queries = _queries(vectors)
    _, found = index.search(queries.numpy(), 10)
    _, exact = search_exact(vectors, queries, 10)
    shared = [len(set(one) & set(other)) for one, other in zip(found.tolist(), exact.tolist())]
    method = f"HNSW{HNSW_LINKS},SQfp16, efSearch {SEARCH_EFFORT}"
    return method, sum(shared) / exact.size


def _queries(vectors: Sequence[Vectors]) -> torch.Tensor:
    """Return unit vectors near some of the indexed ones."""
    whole = np.concatenate([part[:: max(1, len(part) // NUM_QUERIES)] for part in vectors])
    chosen = torch.from_numpy(whole[:: max(1, len(whole) // NUM_QUERIES)]).float()
    noise = torch.randn(chosen.shape, generator=torch.Generator().manual_seed(0))
    moved = chosen + 0.3 * noise / chosen.shape[1] ** 0.5
    return torch.nn.functional.normalize(moved, dim=1)


def open_approximate(path: Path) -> Any:
    """Map the index in a file.

    Raises:
        CapabilityError: faiss is not installed.
        DataError: The file cannot be read.
    """
    faiss = import_faiss()
    try:
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except (RuntimeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error}): build the index again") from error


def search_approximate(
    index: Any, queries: torch.Tensor, top: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Search what `open_approximate` returned; see `search_exact`."""
    index.hnsw.efSearch = max(SEARCH_EFFORT, 2 * top)
    scores, numbers = index.search(queries.numpy(), top)
    return scores, numbers
