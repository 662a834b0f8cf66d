"""From what the browser sends to what the page shows; no Gradio in here.

An image that a user chose stays in the browser and comes with each question (`page.js`); none of it
is written to a disk or kept in memory.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from pathlib import PurePath
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread

from triptych.core.errors import DataError
from triptych.data.images import decode_image
from triptych.data.records import ImageSource
from triptych.data.skips import ImageProblem
from triptych.index.search import ImageIndex
from triptych.index.store import IndexedImage
from triptych.report.html import encode_image, thumbnail
from triptych.server.guard import Places
from triptych.server.images import count_pixels, decode
from triptych.server.page_html import Pixels, ShownHit, render, render_figure
from triptych.server.page_tools import TOOLS, Tool
from triptych.server.problems import problem_of
from triptych.server.schemas import MAX_TEXT
from triptych.server.searching import SEARCH
from triptych.server.service import Service
from triptych.server.worker import Kind
from triptych.serving.verb import Item
from triptych.serving.verbs import VERBS

THUMBNAILS_KEPT = 1024
CHIP_PX = 96
DECODERS = 2
RERANKED = 64
MAX_NAME = 200
COPIES = 4  # of an image that is sent: the body, what Gradio reads of it, its bytes, its pixels
T = TypeVar("T")
log = logging.getLogger("triptych.server")

Chosen = Mapping[str, Any]
"""What the browser says of an image: `{"data": data URL, "name": file name}`, `{"number": row of
the index}`, or nothing. Anybody can write it, so it is checked."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An image that was chosen.

    Attributes:
        source: Its bytes, or where they lie.
        name: What to call it.
        pixels: How many it has.
    """

    source: bytes | ImageSource
    name: str
    pixels: int

    def decode(self) -> Pixels:
        """Return its pixels (H, W, 3) uint8.

        Raises:
            DataError: It cannot be read.
        """
        if isinstance(self.source, bytes):
            return decode(self.source, self.name)
        try:
            return decode_image(self.source)
        except ImageProblem as problem:  # its text says where the image lies on the server
            log.warning("%s", problem)
            raise DataError(f"{self.name}: this image can no longer be read") from problem


class Replies:
    """What the page of a server shows."""

    def __init__(self, service: Service, places: Places) -> None:
        """Take what it asks, and the room that the API and the page share."""
        self._service, self._places = service, places
        self._threads = CapacityLimiter(DECODERS)
        if service.index is not None:
            _ = service.index.images  # read now: it takes seconds for a million of them
        self._thumbnail = lru_cache(THUMBNAILS_KEPT)(self._make_thumbnail)

    @property
    def _index(self) -> ImageIndex:
        if self._service.index is None:
            raise DataError("this server has no index")
        return self._service.index

    def header(self) -> str:
        """Return the top of the page: what it is for, the models, the index and the version."""
        index = self._service.index
        names = list(self._service.engines)
        facts = [("Model" if len(names) == 1 else "Models", ", ".join(names))]
        if index is not None:
            facts.append(("Index", f"{index.folder.name}, {index.state.num_images:,} images"))
        title = "Ask about an image" if index is None else "Search your images"
        return render("header", title, facts)

    def hint(self) -> str:
        """Return what can be done with an image, until one is chosen."""
        tools = [tool for tool in TOOLS if self._service.models_for(tool.verb)]
        abilities = [(tool.field or tool.button).partition(",")[0] for tool in tools]
        return render("hint", self._service.index is not None, abilities)

    async def first_images(self, top: int) -> str:
        """Return the first images of the index: something to see before a search."""
        rows = list(enumerate(self._index.images[:top]))
        shown = [await self._shown(number, image) for number, image in rows]
        note = "The first images of the index. Describe what you look for, or choose an image."
        return render("hits", note, shown)

    async def search(self, words: str, chosen: Chosen, top: int, rerank: bool) -> str:
        """Return what a search finds."""
        started = time.perf_counter()
        said, index = _text(words), self._index
        opened = [self._opened(chosen)] if chosen else []
        if not said and not opened:
            raise DataError("there is nothing to search for: write a few words or choose an image")
        reranked = max(RERANKED, top) if rerank and said else 0
        options = SEARCH.options(top=top, rerank=reranked)
        texts = {"text": said} if said else {}
        kind = Kind(
            (SEARCH.name, options),
            SEARCH.name,
            lambda items: SEARCH.find(index, items, options, "raise"),  # type: ignore[arg-type]
        )
        future = self._service.worker.submit(
            kind,
            lambda: [Item(tuple(image.decode() for image in opened), texts)],
            size=1,
            pixels=sum(image.pixels for image in opened),
        )
        hits = (await asyncio.wrap_future(future))[0]
        took_ms = 1000 * (time.perf_counter() - started)
        shown = [await self._shown(h.number, h.image, h.score, h.match) for h in hits]
        note = f"{len(hits)} of {index.state.num_images:,} images, {took_ms:.0f} ms"
        return render("hits", note, shown)

    async def chip(self, chosen: Chosen, *, is_query: bool = False) -> str:
        """Return an image, small: the one that a search is for, or the second of two."""
        opened = self._opened(chosen)
        pixels = await self._in_thread(opened.decode)
        return render("chip", encode_image(pixels, max_side_px=CHIP_PX), opened.name, is_query)

    async def figure(self, chosen: Chosen) -> str:
        """Return the image that was chosen."""
        opened = self._opened(chosen)
        return await self._in_thread(lambda: render_figure(opened.decode(), opened.name))

    async def ask(
        self, tool: Tool, model: str, chosen: Chosen, second: Chosen, text: str
    ) -> tuple[str, str | None]:
        """Return what a model answers about the chosen image, and the image with what was found.

        Args:
            tool: The panel.
            model: Name of the model.
            chosen: The image.
            second: The second one, of a panel for two.
            text: Of the panel's field.
        """
        verb = VERBS[tool.verb]
        images = [self._opened(one) for one in (chosen, second)[: verb.num_images]]
        engine = self._service.engines.get(model)
        if engine is None:
            raise DataError(f"this server has no model {model!r}")
        texts, options = tool.read(_text(text), engine, self._service.settings.max_items)

        def prepare() -> list[Item]:
            decoded = [image.decode() for image in images]
            return [verb.item(decoded, given) for given in texts]

        _, future = self._service.submit(
            verb,
            prepare,
            size=len(texts),
            pixels=sum(image.pixels for image in images),
            options=verb.read_options(options),
            model=model,
        )
        answers = await asyncio.wrap_future(future)
        found = tool.show(answers, engine)
        if found.box is None and found.mask is None:
            return found.html, None
        opened = images[0]
        figure = await self._in_thread(
            lambda: render_figure(
                opened.decode(),
                opened.name,
                box=found.box,
                phrase=found.phrase,
                mask=found.mask,
            )
        )
        return found.html, figure

    async def guarded(self, reply: Callable[[], Awaitable[T]], *chosen: Chosen) -> T | str:
        """Return a reply, or, where it fails, the message that the HTTP API would give.

        Args:
            reply: Calls a method of this class.
            chosen: What was sent of images, which has a place until the reply.
        """
        size = sum(len(str(one.get("data"))) for one in chosen if isinstance(one, dict)) * COPIES
        try:
            with self._place(size):
                return await reply()
        except Exception as error:
            problem = problem_of(error)
            if problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
                log.error("a reply of the page failed", exc_info=error)
            return render("problem", problem.detail)

    @contextmanager
    def _place(self, size: int) -> Iterator[None]:
        self._places.enter()
        try:
            self._places.take(size)
            try:
                yield
            finally:
                self._places.give_back(size)
        finally:
            self._places.leave()

    def _opened(self, chosen: Chosen) -> Opened:
        """Return what the browser says of an image, checked, and not decoded.

        Raises:
            DataError: Nothing was chosen, it is no image, or it is larger than the server takes.
        """
        given: Mapping[str, Any] = chosen if isinstance(chosen, Mapping) else {}
        number, data = given.get("number"), given.get("data")
        if isinstance(number, int):
            images = self._index.images
            if not 0 <= number < len(images):
                raise DataError(f"the index has no image {number}")
            image = images[number]
            return Opened(image.image, _name(image), image.width_px * image.height_px)
        if not isinstance(data, str) or not data.startswith("data:"):
            raise DataError("there is no image yet: choose one first")
        name = PurePath(str(given.get("name") or "image")).name[:MAX_NAME]
        try:
            source = base64.b64decode(data.partition(",")[2], validate=True)
        except binascii.Error as error:
            raise DataError(f"{name} did not arrive whole: choose it again") from error
        pixels, most = count_pixels(source, name), self._service.settings.max_pixels
        if pixels > most:
            raise DataError(f"{name} has {pixels:,} pixels, and at most {most:,} are taken")
        return Opened(source, name, pixels)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await to_thread.run_sync(work, limiter=self._threads)

    async def _shown(
        self,
        number: int,
        image: IndexedImage,
        score: float | None = None,
        match: float | None = None,
    ) -> ShownHit:
        small = await self._in_thread(lambda: self._thumbnail(number))
        return ShownHit(number, _name(image), small, score, match)

    def _make_thumbnail(self, number: int) -> str | None:
        return thumbnail(self._index.images[number].image)


def _text(text: Any) -> str:
    found = str(text or "").strip()
    if len(found) > MAX_TEXT:
        raise DataError(f"the text has {len(found):,} characters: shorten it to {MAX_TEXT:,}")
    return found


def _name(image: IndexedImage) -> str:
    return image.captions[0] if image.captions else image.id
