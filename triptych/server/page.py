"""The web page: search an index and ask about an image, in the process of the HTTP API.

Gradio draws it. What is said to a browser is made by `page_replies.py`, which asks the server's
worker as the API does. Of Gradio's own routes only those that the page needs can be reached.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import gradio as gr
from anyio import to_thread
from fastapi import FastAPI, Request
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import triptych
from triptych.server.guard import Places
from triptych.server.images import FORMATS
from triptych.server.page_html import render
from triptych.server.page_replies import Chosen, Replies
from triptych.server.page_tools import TOOLS, Tool, has_own_classes
from triptych.server.problems import Problem
from triptych.server.service import Service

HEAD_ROOM = 4096  # of a body, for what is sent beside the image, in base64
TOPS = (12, 24, 48)
QUEUE = 16  # events that have not begun, each with its images
MAX_PATH = 200
SESSIONS_KEPT = 2  # Gradio keeps the last values of so many sessions; the page never reads them
MAX_SESSIONS = 1000
MAX_UNREAD = 256  # messages to browsers; what a search finds has up to half a megabyte
LIVE = '<div aria-live="polite">${value}</div>'
CLICKS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-number]");
  if (button) trigger("select", { number: Number(button.dataset.number) });
});
"""
REMOVES = """
element.addEventListener("click", (event) => {
  if (event.target.closest("[data-remove]")) trigger("clear");
});
"""
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
WORDS_HINT = "a red circle above a blue star"
SCROLL = "() => document.getElementById('%s').scrollIntoView({ behavior: 'smooth' })"
SYSTEM_FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "sans-serif"]
SYSTEM_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]

ROUTES = re.compile(
    r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/[\w./ -]+"
    r"|/gradio_api/(queue/join|queue/data|cancel|reset|heartbeat/\w+)"
)
"""What the page asks of Gradio. Uploads, files, proxies and all else are refused."""

POLICY = (
    (
        b"content-security-policy",
        b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        b"style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        b"object-src 'none'; base-uri 'self'; form-action 'self'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
"""Of a page that Gradio draws: it makes code of templates, and so needs 'unsafe-eval'."""

JOIN = "/gradio_api/queue/join"
EVENT_KEYS = {"data", "event_data", "fn_index", "session_hash", "trigger_id"}
CHOSEN_KEYS = {"data", "name", "number"}


@dataclass(frozen=True, slots=True)
class SearchPart:
    """What the search consists of."""

    words: gr.Textbox
    button: gr.Button
    pick: gr.HTML
    chip: gr.HTML
    top: gr.Radio
    rerank: gr.Checkbox
    grid: gr.HTML


@dataclass(frozen=True, slots=True)
class ImagePart:
    """What the image's part consists of.

    Attributes:
        results: Where panels show what was found; emptied with each new image.
        asks: The events that ask; ended by each new image.
    """

    pick: gr.HTML
    figure: gr.HTML
    tools: gr.Column
    more: gr.Button | None
    results: list[gr.HTML]
    asks: list[Any]


class Page:
    """The page of a server, as Gradio draws it."""

    def __init__(self, service: Service, places: Places) -> None:
        """Take what it asks, and the room that the API and the page share."""
        self._service, self._replies = service, Replies(service, places)

    def build(self) -> gr.Blocks:
        """Return the page."""
        names = ", ".join(self._service.engines)
        blocks: gr.Blocks = gr.Blocks(title=f"Triptych: {names}", analytics_enabled=False)
        with blocks:
            gr.HTML(self._replies.header())
            search = None
            with gr.Row(elem_id="tt-columns", equal_height=False):
                if self._service.index is not None:
                    search = self._search_part()
                image = self._image_part()
            self._connect_image(image)
            if search is not None:
                self._connect_search(search, image)
                blocks.load(self._first, [search.top], [search.grid], **QUIET)
            gr.HTML(render("footer", triptych.__version__))
        blocks.queue(max_size=QUEUE, default_concurrency_limit=None, api_open=False)
        blocks.state_session_capacity = SESSIONS_KEPT
        return blocks

    def _search_part(self) -> SearchPart:
        index = self._service.index
        assert index is not None
        with gr.Column(elem_id="tt-search", elem_classes="tt-part", scale=6, min_width=320):
            gr.HTML("<h2>Search</h2>")
            with gr.Row(elem_classes="tt-ask"):
                words = gr.Textbox(label="Words", placeholder=WORDS_HINT, max_lines=1, scale=5)
                button = gr.Button("Search", variant="primary", scale=1, min_width=96)
            pick = self._pick("Search by an image", pastes=False)
            chip = gr.HTML("", html_template=LIVE, js_on_load=REMOVES)
            with gr.Accordion("Options", open=False, elem_classes="tt-options"):
                top = gr.Radio(TOPS, value=TOPS[0], label="Results")
                rerank = gr.Checkbox(
                    label="Order the nearest by image-text matching",
                    info="Slower; needs words",
                    visible="itm" in index.engine.model.capabilities,
                )
            grid = gr.HTML("", html_template=LIVE, js_on_load=CLICKS, elem_id="tt-grid")
        return SearchPart(words, button, pick, chip, top, rerank, grid)

    def _pick(self, label: str, *, pastes: bool) -> gr.HTML:
        """Return where an image is chosen, dropped or, in one place, pasted."""
        script = (files("triptych.server") / "templates" / "page.js").read_text("utf-8")
        return gr.HTML(
            {},
            html_template=render("pick", label, [f"image/{kind.lower()}" for kind in FORMATS]),
            js_on_load=script,
            max_bytes=self._service.settings.max_body * 3 // 4 - HEAD_ROOM,
            pastes=pastes,
        )

    def _image_part(self) -> ImagePart:
        more, results, asks = None, [], []
        with gr.Column(elem_id="tt-image", elem_classes="tt-part", scale=5, min_width=320):
            gr.HTML("<h2>Image</h2>")
            pick = self._pick("Choose an image, drop one here, or paste one", pastes=True)
            figure = gr.HTML(self._replies.hint(), html_template=LIVE)
            with gr.Column(visible=False) as tools:
                if self._service.index is not None:
                    more = gr.Button("More like this", elem_id="tt-more")
                for tool in TOOLS:
                    models = self._service.models_for(tool.verb)
                    if models:
                        result, events = self._tool(tool, models, pick, figure)
                        results.append(result)
                        asks += events
        return ImagePart(pick, figure, tools, more, results, asks)

    def _tool(
        self, tool: Tool, models: list[str], pick: gr.HTML, figure: gr.HTML
    ) -> tuple[gr.HTML, list[Any]]:
        """Build a panel; return where it shows what was found, and its events."""
        with gr.Column(elem_classes="tt-tool", elem_id=f"tt-{tool.verb}"):
            second = self._second() if tool.two else gr.State({})
            with gr.Row(elem_classes="tt-ask"):
                field = gr.Textbox(
                    label=tool.field,
                    placeholder=tool.hint,
                    lines=tool.lines,
                    max_lines=tool.lines,
                    visible=bool(tool.field) and not self._needs_no_text(tool, models),
                    scale=5,
                )
                model = gr.Dropdown(
                    models, value=models[0], label="Model", visible=len(models) > 1, scale=2
                )
                button = gr.Button(tool.button, scale=1, min_width=96)
            result = gr.HTML("", html_template=LIVE)

        async def ask(name: str, chosen: Chosen, other: Chosen, text: str) -> tuple[Any, Any]:
            said = await self._replies.guarded(
                lambda: self._replies.ask(tool, name, chosen, other, text), chosen, other
            )
            html, drawn = (said, None) if isinstance(said, str) else said
            return html, gr.skip() if drawn is None else drawn

        inputs, outputs = [model, pick, second, field], [result, figure]
        options = {**QUIET, "show_progress_on": [result]}
        events = [button.click(ask, inputs, outputs, **options)]
        events.append(field.submit(ask, inputs, outputs, **options))
        return result, events

    def _second(self) -> gr.HTML:
        """Build where the second of two images is chosen."""

        async def show(chosen: Chosen) -> str:
            return await self._replies.guarded(lambda: self._replies.chip(chosen), chosen)

        second = self._pick("Choose the second image", pastes=False)
        chip = gr.HTML("", html_template=LIVE)
        second.upload(show, [second], [chip], **QUIET)
        return second

    def _needs_no_text(self, tool: Tool, models: list[str]) -> bool:
        """Return whether all models that are asked have classes of their own."""
        engines = [self._service.engines[name] for name in models]
        return tool.verb == "classify" and all(map(has_own_classes, engines))

    async def _first(self, top: int) -> str:
        return await self._replies.guarded(lambda: self._replies.first_images(top))

    async def _search(self, words: str, chosen: Chosen, top: int, rerank: bool) -> str:
        return await self._replies.guarded(
            lambda: self._replies.search(words, chosen, top, rerank), chosen
        )

    def _connect_image(self, image: ImagePart) -> None:
        image.pick.upload(
            self._opened(image), [image.pick], self._outputs(image), cancels=image.asks, **QUIET
        )

    def _outputs(self, image: ImagePart) -> list[Any]:
        """Return what a new image changes."""
        return [image.figure, image.tools, *image.results]

    def _opened(self, image: ImagePart) -> Callable[[Chosen], Awaitable[tuple[Any, ...]]]:
        """Return what shows a new image and empties the panels."""

        async def opened(chosen: Chosen) -> tuple[Any, ...]:
            figure = await self._replies.guarded(lambda: self._replies.figure(chosen), chosen)
            usable = "<figure" in figure
            return figure, gr.update(visible=usable), *("" for _ in image.results)

        return opened

    def _connect_search(self, search: SearchPart, image: ImagePart) -> None:
        asked = [search.words, search.pick, search.top, search.rerank]
        for event in (search.button.click, search.words.submit):
            event(self._search, asked, [search.grid], **QUIET)

        async def like(chosen: Chosen, words: str, top: int, rerank: bool) -> tuple[Any, ...]:
            async def opened() -> tuple[str]:
                return (await self._replies.chip(chosen, is_query=True),)

            chip = await self._replies.guarded(opened, chosen)
            if isinstance(chip, str):  # what is wrong; a later search by words goes without it
                return {}, "", chip
            return gr.skip(), *chip, await self._search(words, chosen, top, rerank)

        async def more(chosen: Chosen, top: int) -> tuple[Any, ...]:
            _, *shown = await like(chosen, "", top, False)
            return chosen, "", *shown

        def hit(event: gr.EventData) -> Chosen:
            return {"number": event.number}

        search.pick.upload(
            like,
            [search.pick, search.words, search.top, search.rerank],
            [search.pick, search.chip, search.grid],
            **QUIET,
        )
        search.chip.clear(lambda: ({}, ""), [], [search.pick, search.chip], **QUIET)
        shown = search.grid.select(hit, [], [image.pick], **QUIET)
        shown.then(
            self._opened(image),
            [image.pick],
            self._outputs(image),
            cancels=image.asks,
            **QUIET,
        ).then(None, js=SCROLL % "tt-image")
        if image.more is not None:
            image.more.click(
                more,
                [image.pick, search.top],
                [search.pick, search.words, search.chip, search.grid],
                **QUIET,
            ).then(None, js=SCROLL % "tt-search")


def mount_page(app: FastAPI) -> None:
    """Put the page at / of what `build_app` made."""
    blocks = Page(app.state.service, app.state.places).build()
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        show_error=False,
        theme=_theme(),
        css=(files("triptych.server") / "templates" / "page.css").read_text("utf-8"),
    )
    mounted = app.router.routes[-1]
    assert isinstance(mounted, Mount)
    guard = PageGuard(mounted.app, blocks._queue)
    mounted.app = guard
    app.state.close_page = guard.close


def _theme() -> gr.Theme:
    """Return a theme that asks no other host for fonts."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.slate,
        font=SYSTEM_FONT,
        font_mono=SYSTEM_MONO,
    )


class PageGuard:
    """Gradio's app with nothing but what the page needs.

    Behind its other routes, and behind the files that its events may name, is a history of ways to
    the server's own files. So paths and events are compared with what the page sends. Gradio does
    not see the `Origin` of a request either: asked by any name but localhost, it lets the pages of
    every origin read its answers, with the user's credentials.
    """

    def __init__(self, page: ASGIApp, queue: Any) -> None:
        """Wrap Gradio's app; `queue` is its queue of events."""
        self._page, self._queue = page, queue
        self._open: set[asyncio.Task[Any]] = set()
        self._closed: set[asyncio.Task[Any]] = set()
        self._mailboxes = queue.pending_messages_per_session = Mailboxes()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what the page sends, and refuse the rest."""
        if scope["type"] != "http":
            await self._page(scope, receive, send)
            return
        path = scope["path"]
        if not ROUTES.fullmatch(path) or ".." in path:
            asked = f"{scope['method']} {path[:MAX_PATH]}"
            problem = Problem(404, f"there is no {asked}: /openapi.json lists the routes")
            await problem.response()(scope, receive, send)
            return
        kept = [pair for pair in scope["headers"] if pair[0] != b"origin"]
        scope = {**scope, "headers": kept}
        if path == JOIN and scope["method"] == "POST":
            body = await Request(scope, receive).body()
            receive = _replay(body, receive)
            if not await to_thread.run_sync(_is_event, body):
                problem = Problem(422, "this is no event of the page: reload it")
                await problem.response()(scope, receive, send)
                return
            self._mailboxes.trim()
            for session in self._queue.pending_event_ids_session.keys() - self._mailboxes:
                del self._queue.pending_event_ids_session[session]
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            await self._page(scope, receive, _with_policy(send))
        except asyncio.CancelledError:
            if task not in self._closed:
                raise
            with suppress(RuntimeError):  # it has ended its answer itself
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._open.discard(task)
            self._closed.discard(task)

    def close(self) -> None:
        """End what browsers listen to, because the server stops."""
        for task in list(self._open):
            self._closed.add(task)
            task.cancel()


class Mailboxes(OrderedDict[str, Any]):
    """Messages to sessions that they have not read yet, of which there are not too many.

    Gradio keeps them for whoever sent an event, whether it is ever read or not, and stops for
    everybody where it finds no place for one.
    """

    def __missing__(self, session: str) -> Any:
        """Return where the messages to a dropped session go: nowhere."""
        return asyncio.Queue()

    def __delitem__(self, session: str) -> None:
        """Drop a session; it may be dropped already."""
        self.pop(session, None)

    def trim(self) -> None:
        """Drop the oldest sessions past a number, and those with the most unread messages."""
        while len(self) > MAX_SESSIONS:
            self.popitem(last=False)
        unread = {session: messages.qsize() for session, messages in self.items()}
        while sum(unread.values()) > MAX_UNREAD:
            session = max(unread, key=unread.__getitem__)
            del unread[session], self[session]


def _with_policy(send: Send) -> Send:
    """Return what adds to each answer that a browser asks no other host for anything."""

    async def add(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *POLICY]}
        await send(message)

    return add


def _is_event(body: bytes) -> bool:
    """Return whether a body is what the page sends: texts, numbers, and images as `Chosen`."""
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(event, dict) or not event.keys() <= EVENT_KEYS:
        return False
    values = event.get("data")
    return isinstance(values, list) and all(
        all(key in CHOSEN_KEYS and not isinstance(part, (dict, list)) for key, part in one.items())
        if isinstance(one, dict)
        else not isinstance(one, list)
        for one in values
    )


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return what gives a body that was read, and then what else the client sends."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
