"""What every request passes before anything reads it: who asks, how much, and how fast.

Limits hold for the API and the page alike. A body is counted while it arrives, so that a chunked
one, which says nothing of its length, is stopped as well; a request has a place from its head to
the end of its answer, so that memory is bounded whatever arrives.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping, Sequence
from typing import Any

from triptych.server.metrics import Metrics
from triptych.server.problems import RETRY_AFTER_S, Problem, problem_of
from triptych.server.settings import ServerSettings

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/v1/"
OPEN = frozenset({"/healthz", "/readyz"})
"""Answered without a token."""

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]", "::1", ""})
CLIENT_HAS_LEFT = 499
DRAIN_S = 2.0
"""How long the rest of a refused body is read: a client that writes may not hear an answer."""

log = logging.getLogger("triptych.server")


class Places:
    """Room for requests and their bodies.

    Attributes:
        requests: How many requests of the API are in the server.
        bytes: Of their bodies.
    """

    def __init__(self, max_requests: int, max_bytes: int) -> None:
        """Begin with all free."""
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self.requests = self.bytes = 0

    def enter(self) -> None:
        """Take a place.

        Raises:
            Problem: There is none.
        """
        if self.requests >= self._max_requests:
            raise _busy(f"{self.requests} requests are being answered: ask again later")
        self.requests += 1

    def leave(self) -> None:
        """Give it back."""
        self.requests -= 1

    def take(self, number: int) -> None:
        """Take room for bytes of a body.

        Raises:
            Problem: There is none.
        """
        if self.bytes + number > self._max_bytes:
            raise _busy("the requests that are being answered are large: ask again later")
        self.bytes += number

    def give_back(self, number: int) -> None:
        """Free the room of a body."""
        self.bytes -= number


class Guard:
    """ASGI middleware around everything."""

    def __init__(
        self,
        app: App,
        *,
        settings: ServerSettings,
        tokens: Sequence[str],
        places: Places,
        metrics: Metrics,
        routes: Collection[str],
    ) -> None:
        """Wrap an application.

        Args:
            app: What answers.
            settings: Limits.
            tokens: Whoever asks must present one of these; none is needed if there are none.
            places: Shared with whoever wants to know how full it is.
            metrics: Are told of each request.
            routes: Paths that are counted by name; all others together.
        """
        self._app, self._settings, self._places = app, settings, places
        self._metrics, self._routes = metrics, frozenset(routes)
        self._tokens = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._names = LOOPBACK_NAMES | {name.lower() for name in settings.host_names}
        self._names |= {settings.host}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()
        visit = _Visit(receive, send, self._settings, self._places)
        is_api = scope["path"].startswith(API) and scope["method"] == "POST"
        entered = False
        try:
            self._check(scope)
            visit.expect(_length(scope))
            if is_api:
                self._places.enter()
                entered = True
            await self._app(scope, visit.receive, visit.send)
            if visit.refusal is not None:  # whatever the application made of it
                await visit.refuse(visit.refusal, scope)
        except Problem as problem:
            await visit.refuse(problem, scope)
        except Exception as error:
            log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            await visit.refuse(problem_of(error), scope)
        finally:
            if entered:
                self._places.leave()
            self._places.give_back(visit.taken)
            visit.refusal = None  # its traceback leads to this frame, and so to the body
            name = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.count(name, visit.status, time.perf_counter() - begun)

    def _check(self, scope: Scope) -> None:
        """Refuse who may not ask.

        Raises:
            Problem: Another host's name, or no token.
        """
        headers = dict(scope["headers"])
        if self._settings.is_local and not self._tokens:
            host = headers.get(b"host", b"").decode("latin-1").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in self._names:  # a page elsewhere whose name was made to point here
                raise Problem(
                    421, f"Host is {name!r}: add --host-names {name or 'NAME'} to be asked by it"
                )
        if self._tokens and scope["path"] not in OPEN and not self._knows(headers):
            # Basic first: of several schemes in one header, Chromium takes the first one
            ways = 'Basic realm="triptych", charset="UTF-8", Bearer realm="triptych"'
            raise Problem(
                401,
                "a token is needed: send the header `Authorization: Bearer TOKEN`",
                {"WWW-Authenticate": ways},
            )

    def _knows(self, headers: MutableMapping[bytes, bytes]) -> bool:
        """Return whether a request has a token, as bearer or, from a browser, as a password."""
        scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
        given = value.strip()
        if scheme.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        digest = hashlib.sha256(given).digest()
        same = [hmac.compare_digest(digest, token) for token in self._tokens]
        return any(same)


class _Visit:
    """One request: counts its body, and knows whether an answer has begun.

    Attributes:
        taken: Bytes of the body that have room.
        refusal: Why the body is not read; None while nothing is wrong with it.
        status: Of the answer.
    """

    def __init__(
        self, receive: Receive, send: Send, settings: ServerSettings, places: Places
    ) -> None:
        self._receive, self._send = receive, send
        self._settings, self._places = settings, places
        self._deadline = asyncio.get_running_loop().time() + settings.read_timeout_s
        self.refusal: Problem | None = None
        self._is_read = self._has_begun = False
        self._seen = self.taken = 0
        self.status = CLIENT_HAS_LEFT

    def expect(self, length: int | None) -> None:
        """Refuse a body by what its head says of it, else take room for it."""
        if length is None:
            return
        self._limit(length)
        self._places.take(length)
        self.taken = length

    async def receive(self) -> Message:
        """Return what the client sends next, within limits."""
        if self._is_read:
            return await self._receive()
        if self.refusal is not None:
            raise self.refusal
        try:
            return await self._read()
        except Problem as problem:
            self.refusal = problem
            raise

    async def send(self, message: Message) -> None:
        """Pass on an answer, unless the request was refused while it arrived."""
        if self.refusal is not None:
            return
        if message["type"] == "http.response.start":
            self.status, self._has_begun = message["status"], True
        try:
            async with asyncio.timeout(self._settings.read_timeout_s):
                await self._send(message)
        except TimeoutError as error:
            raise ConnectionError("the client does not read its answer") from error

    async def refuse(self, problem: Problem, scope: Scope) -> None:
        """Answer with a problem, unless another answer has begun."""
        self.refusal = self.refusal or problem
        if self._has_begun:
            return
        self.status, self._has_begun = problem.status, True
        response = problem.response()
        if not await self._drain(scope):
            response.headers["Connection"] = "close"
        await response(scope, self._receive, self._send)

    async def _read(self) -> Message:
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            limit = self._settings.read_timeout_s
            raise Problem(408, f"the request did not arrive within {limit:g} s") from error
        if message["type"] != "http.request":
            self._is_read = True
            return message
        self._seen += len(message.get("body", b""))
        self._limit(self._seen)
        if self._seen > self.taken:
            self._places.take(self._seen - self.taken)
            self.taken = self._seen
        self._is_read = not message.get("more_body", False)
        return message

    def _limit(self, number: int) -> None:
        if number > self._settings.max_body:
            raise Problem(
                413, f"the body is larger than the {self._settings.max_body_mib:g} MiB allowed"
            )

    async def _drain(self, scope: Scope) -> bool:
        """Read what is left of the body and drop it; return whether this was all of it."""
        names = {name for name, _ in scope["headers"]}
        if self._is_read or not names & {b"content-length", b"transfer-encoding"}:
            return True
        if b"expect" in names and not self._seen:  # it waits for leave to send
            return False
        try:
            async with asyncio.timeout(DRAIN_S):
                while not self._is_read:
                    message = await self._receive()
                    self._is_read = not message.get("more_body", False)
        except TimeoutError:
            return False
        return True


def _length(scope: Scope) -> int | None:
    """Return the length that the head states; None where it states none.

    Raises:
        Problem: It is no number.
    """
    for name, value in scope["headers"]:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18:
                raise Problem(400, "Content-Length is no number")
            return int(value)
    return None


def _busy(why: str) -> Problem:
    return Problem(503, why, {"Retry-After": str(RETRY_AFTER_S)})
