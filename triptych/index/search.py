"""Search an index by words, by an image, or by both, in two stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.checkpoint.model_folder import hash_model_folder
from triptych.core.config import check
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.data.images import decode_image
from triptych.data.skips import ImageProblem
from triptych.index.approximate import open_approximate, search_approximate
from triptych.index.exact import search_exact
from triptych.index.store import (
    FAISS,
    IMAGES,
    VECTORS,
    IndexedImage,
    IndexState,
    Vectors,
    check_model,
    map_vectors,
    read_images,
    read_state,
)
from triptych.serving.engine import Engine
from triptych.serving.inputs import ImageInput
from triptych.serving.loading import load_model


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that was found.

    Attributes:
        image: The image.
        number: Its row in the index.
        score: Cosine of its vector with the query's.
        match: Probability by ITM that the text describes it; None where it was not re-ranked.
    """

    image: IndexedImage
    number: int
    score: float
    match: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "id": self.image.id,
            "path": self.image.image.path,
            "member": self.image.image.member,
            "captions": list(self.image.captions),
            "score": round(self.score, 6),
            "match": None if self.match is None else round(self.match, 6),
        }


class ImageIndex:
    """An index that is open to be searched. Not safe to be used by two threads at the same time.

    Attributes:
        folder: Where it lies.
        state: What it says of itself.
        engine: The model that built it.
    """

    def __init__(self, folder: Path, state: IndexState, engine: Engine) -> None:
        """Take an index and its model; `open_index` finds both."""
        self.folder, self.state, self.engine = folder, state, engine
        generation = folder / state.generation
        self._vectors: list[Vectors] = map_vectors(generation / VECTORS, state.width)
        found = sum(map(len, self._vectors))
        if found != state.num_images:
            raise DataError(
                f"{generation / VECTORS} holds {found} of {state.num_images} vectors: build the "
                "index again"
            )

    @cached_property
    def images(self) -> list[IndexedImage]:
        """All images, in the order of the vectors."""
        return list(read_images(self.folder / self.state.generation / IMAGES))

    @cached_property
    def _approximate(self) -> Any:
        """The faiss index, opened at the first search that asks for it."""
        return open_approximate(self.folder / self.state.generation / FAISS)

    def search(
        self,
        text: str | None = None,
        *,
        image: ImageInput | None = None,
        top: int = 10,
        rerank: int = 0,
        exact: bool = False,
    ) -> list[Hit]:
        """Return the images nearest to a text, to an image, or to both together.

        Args:
            text: Words.
            image: An image to find more like; with a text, the sum of both vectors is looked for.
            top: How many to return.
            rerank: Candidates that ITM scores with the text, at least `top` of them; 0 leaves the
                order by similarity.
            exact: Search all vectors, where the index has a faiss index too.

        Raises:
            CapabilityError: ITM is asked for without a text, or of a model that has none.
            ConfigError: Neither text nor image, or a number is out of range.
            DataError: The image, or the text, cannot be read.
        """
        check(top >= 1, "top", top, "be at least 1")
        check(rerank == 0 or rerank >= top, "rerank", rerank, f"be 0, or at least top ({top})")
        if rerank and text is None:
            raise CapabilityError("rerank scores images with a text: give one, or omit rerank")
        if rerank and "itm" not in self.engine.model.capabilities:
            raise CapabilityError(f"{self.state.model} has no ITM head: omit rerank")
        query = self._query(text, image)
        wanted = max(top, rerank)
        if self.state.recall_at_10 is None or exact:
            scores, numbers = search_exact(self._vectors, query, wanted)
        else:
            wanted = min(wanted, self.state.num_images)
            scores, numbers = search_approximate(self._approximate, query, wanted)
        hits = [
            Hit(self.images[number], number, score)
            for number, score in zip(numbers[0].tolist(), scores[0].tolist(), strict=True)
            if number >= 0
        ]
        if rerank:
            assert text is not None
            hits = self._reranked(hits, text)
        return hits[:top]

    def _query(self, text: str | None, image: ImageInput | None) -> Tensor:
        """Return the vector (1, E) to look for."""
        if text is None and image is None:
            raise ConfigError("there is nothing to search for: give a text, an image, or both")
        parts: list[Any] = []
        if text is not None:
            parts.append(self.engine.embed_texts(text))
        if image is not None:
            parts.append(self.engine.embed_images(image))
        total = torch.from_numpy(np.sum(parts, axis=0, dtype=np.float32))
        return F.normalize(total[None], dim=1)

    def _reranked(self, hits: Sequence[Hit], text: str) -> list[Hit]:
        """Score hits by ITM, the best first; images that can no longer be read come last."""
        pixels, readable, gone = [], [], []
        for hit in hits:
            try:
                pixels.append(decode_image(hit.image.image))
                readable.append(hit)
            except ImageProblem:
                gone.append(hit)
        matches = self.engine.match(pixels, [text] * len(pixels))
        assert isinstance(matches, list)
        scored = [replace(hit, match=float(m)) for hit, m in zip(readable, matches, strict=True)]
        return [*sorted(scored, key=lambda hit: -(hit.match or 0.0)), *gone]


def open_index(folder: str | Path, *, model: str | Path | None = None) -> ImageIndex:
    """Open an index with the model that built it.

    Args:
        folder: What `triptych index` wrote.
        model: The model folder, where it lies elsewhere by now; None takes the path that the index
            remembers.

    Raises:
        ConfigError: There is no index, or the model is another one.
        DataError: The index is damaged.
    """
    folder = Path(folder)
    state = read_state(folder)
    if state is None:
        raise ConfigError(
            f"{folder} holds no index: `triptych index MODEL_FOLDER DATA --out {folder}` builds one"
        )
    loaded = load_model(state.model if model is None else model, rounded=True)
    check_model(folder, state, loaded.folder, hash_model_folder(loaded.folder))
    return ImageIndex(folder, state, Engine(loaded))
