"""Load models, listen, and stop when told to."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from PIL import Image
from uvicorn.protocols.http.h11_impl import H11Protocol

from triptych.checkpoint.model_folder import hash_model_folder
from triptych.core.errors import ConfigError
from triptych.core.machine import num_cores
from triptych.index.search import ImageIndex, open_index
from triptych.index.store import read_state
from triptych.server.settings import ServerSettings
from triptych.serving.engine import Device, Engine, Precision, load
from triptych.serving.verbs import VERBS

BACKLOG = 2048
CONNECTIONS_A_PLACE = 16
"""Connections that may be open for each place in the queue: most keep silent or are refused."""


def name_models(given: Sequence[str]) -> dict[str, Path]:
    """Return folders by the names that clients use.

    Args:
        given: Each NAME=FOLDER, or FOLDER: its name is the last part, or the one before `model`.

    Raises:
        ConfigError: Two have the same name.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, is_named, path = text.partition("=")
        folder = Path(path if is_named else text)
        if not is_named:
            name = folder.parent.name if folder.name == "model" else folder.name
        name = name or "model"
        if name in found:
            raise ConfigError(
                f"{found[name]} and {folder} are both called {name!r}: name them, such as "
                f"a={found[name]} b={folder}"
            )
        found[name] = folder
    return found


def leave_a_core() -> None:
    """Let torch compute with all cores but one, which HTTP and decoding get.

    Threads of one product wait for each other, so that one which shares its core with a request
    delays them all: for 16 clients on two cores, one thread captions 1.7 times as many images.
    """
    torch.set_num_threads(max(1, min(torch.get_num_threads(), num_cores() - 1)))


def load_models(
    folders: dict[str, Path], device: Device = "auto", precision: Precision = "auto"
) -> dict[str, Engine]:
    """Load the models of some folders."""
    return {
        name: load(folder, device=device, precision=precision) for name, folder in folders.items()
    }


def load_index(folder: Path, engines: dict[str, Engine]) -> ImageIndex:
    """Open an index; where its model is loaded, that one answers.

    Raises:
        ConfigError: There is no index, or its model cannot be found.
    """
    state = read_state(folder)
    if state is not None:
        for engine in engines.values():
            if hash_model_folder(engine.folder) == state.model_key:
                return ImageIndex(folder, state, engine)
    return open_index(folder)


def serve(app: FastAPI, settings: ServerSettings, *, has_tokens: bool) -> int:
    """Answer requests until a signal arrives, then finish what runs; return the exit code.

    Args:
        app: Made by `build_app`.
        settings: The same as the application's.
        has_tokens: Whether it asks for tokens.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    if not settings.is_local and not has_tokens:
        print("\n".join(warning_of(settings)), file=sys.stderr, flush=True)
    try:
        listener = _listen(settings)
    except ConfigError:
        app.state.service.close(settings.grace_s)
        raise
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # clients hear it instead
    Image.MAX_IMAGE_PIXELS = settings.max_pixels
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=_protocol(settings),
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=max(1, round(settings.grace_s)),
    )
    server = _Server(config, app, settings)
    previous = {sig: signal.signal(sig, signal.SIG_IGN) for sig in (signal.SIGTERM, signal.SIGINT)}
    gc.collect()
    gc.freeze()  # what is loaded stays: without it, cycles of requests are found often and cheaply
    try:
        server.run([listener])
    finally:
        gc.unfreeze()
        for sig, handler in previous.items():
            signal.signal(sig, handler)
    if not app.state.service.close(max(0.0, server.deadline - time.monotonic())):
        print("triptych: stopped before all requests were answered", file=sys.stderr, flush=True)
        os._exit(0)  # the computing thread cannot be stopped, and must not be waited for
    return 0


def _listen(settings: ServerSettings) -> socket.socket:
    """Return the socket that clients connect to.

    Raises:
        ConfigError: The address cannot be listened on.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        found = socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG)
        # accepted sockets inherit it; without it a body waits 40 ms for the ACK of its head
        found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return found
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port} ({error.strerror or error}): choose "
            "another --host or --port"
        ) from error


def describe(app: FastAPI, url: str) -> list[str]:
    """Return what a person should know who starts a server: who answers what, and where."""
    service = app.state.service
    lines = []
    for name, engine in service.engines.items():
        refusals = service.why_not(name)
        verbs = [verb for verb in VERBS if verb not in refusals]
        lines.append(f"{name}: {', '.join(verbs)} ({engine.folder})")
    if service.index is not None:
        index = service.index
        lines.append(f"search: {index.state.num_images:,} images ({index.folder})")
    lines.append(f"listening on {url} (API: {url}/openapi.json)")
    return lines


def warning_of(settings: ServerSettings) -> list[str]:
    """Return what is said where strangers may ask."""
    return [
        "*" * 78,
        f"WARNING: {settings.host} can be reached from other machines, and no token is needed:",
        "anybody there can use these models. Set TRIPTYCH_TOKENS or --tokens FILE,",
        "or take --host 127.0.0.1.",
        "*" * 78,
    ]


class _Server(uvicorn.Server):
    """Uvicorn, but it says when it listens, and does not wait for the page's open connections."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: ServerSettings) -> None:
        super().__init__(config)
        self._app, self._settings = app, settings
        self.deadline = time.monotonic()

    async def startup(self, sockets: Any = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            address = self.servers[0].sockets[0].getsockname()
            host = f"[{address[0]}]" if ":" in address[0] else address[0]
            for line in describe(self._app, f"http://{host}:{address[1]}"):
                print(line, file=sys.stderr, flush=True)

    async def shutdown(self, sockets: Any = None) -> None:
        """Stop accepting, and end when the last request of the API is answered."""
        self.deadline = time.monotonic() + self._settings.grace_s
        watch = asyncio.ensure_future(self._end_when_idle())
        await super().shutdown(sockets)
        watch.cancel()

    async def _end_when_idle(self) -> None:
        places, worker = self._app.state.places, self._app.state.service.worker
        await asyncio.sleep(0.1)
        while (places.requests or len(worker)) and time.monotonic() < self.deadline:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # answers are on their way
        close_page = getattr(self._app.state, "close_page", None)
        if close_page is not None:
            close_page()
            await asyncio.sleep(0.2)
        self.force_exit = True


def _protocol(settings: ServerSettings) -> type[H11Protocol]:
    """Return HTTP/1.1 of which the head of a request must arrive in time, on few connections."""
    most = CONNECTIONS_A_PLACE * max(settings.queue, 16)

    class Protocol(H11Protocol):
        _head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > most:
                transport.close()
                return
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _wait_for_head(self) -> None:
            """Start the clock where a request is to begin, stop it where one runs."""
            if self.cycle is not None and not self.cycle.response_complete:
                self._stop_timer()
            elif self._head_timer is None and not self.transport.is_closing():
                seconds = settings.read_timeout_s
                self._head_timer = self.loop.call_later(seconds, self._give_up)

        def _stop_timer(self) -> None:
            if self._head_timer is not None:
                self._head_timer.cancel()
                self._head_timer = None

        def _give_up(self) -> None:
            self._head_timer = None
            if self.cycle is None or self.cycle.response_complete:
                self.transport.close()

    return Protocol
