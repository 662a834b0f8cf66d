"""Searching as a verb: asked like those of the table, but of an index instead of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import TypedDict

from triptych.core.config import check
from triptych.index.search import Hit
from triptych.serving.verb import Item, TextField, Verb


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchOptions:
    """How an index is searched.

    Attributes:
        top: How many images to return.
        rerank: Candidates that ITM scores with the text, at least `top` of them; 0 scores none.
        exact: Compare with every vector, where the index has a faiss index too.
    """

    top: int = 10
    rerank: int = 0
    exact: bool = False

    def __post_init__(self) -> None:
        """Check ranges."""
        check(self.top >= 1, "top", self.top, "be at least 1")


class Found(TypedDict):
    """An image of the index."""

    id: str
    path: str
    member: str | None
    captions: list[str]
    score: float
    match: float | None


def _search(
    index: Any, items: Sequence[Item], options: SearchOptions, on_error: object
) -> list[list[Hit]]:
    """Search an index for each item."""
    return [
        index.search(
            item.texts.get("text"),
            image=item.images[0] if item.images else None,
            top=options.top,
            rerank=options.rerank,
            exact=options.exact,
        )
        for item in items
    ]


SEARCH = Verb(
    name="search",
    about="find images of the index by words, by an image, or by both together",
    capability="embed",
    num_images=1,
    texts=(TextField("text", "what the image shows", required=False),),
    options=SearchOptions,
    gives={"hits": list[Found]},
    find=_search,
    tell=lambda index, item, hits, options: {"hits": [hit.to_dict() for hit in hits]},
)
"""Asks an index instead of a model; of the image and the text of an item, one may be missing."""
