"""A server in a process of its own, and clients that cost little of the processor it needs."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_S = 120
STOP_S = 120
LISTENING = re.compile(r"listening on http://[^:]+:(\d+)")
BOUNDARY = "triptych-benchmark"


class Served:
    """A running `triptych serve`.

    Attributes:
        process: The process.
        port: Where it listens.
    """

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def memory_mib(self) -> float:
        """Return its resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def is_running(self) -> bool:
        """Return whether it has not ended."""
        return self.process.poll() is None

    def stop(self) -> int:
        """Tell it to stop, and return its exit code."""
        if self.is_running():
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_S)


def start(log: Path, *words: str, **environment: str) -> Served:
    """Start `triptych serve` on a free port, and return when it listens.

    Args:
        log: The file that gets what it says.
        words: Of the command line.
        environment: Of the process, beside this one's; tokens of this one are not passed on.

    Raises:
        RuntimeError: It did not start; the message has what it said.
    """
    command = [sys.executable, "-m", "triptych", "serve", *words, "--port", "0"]
    own = {k: v for k, v in os.environ.items() if k != "TRIPTYCH_TOKENS"}
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, env=own | environment)
    begun = time.monotonic()
    while (found := LISTENING.search(said := _read(log))) is None:
        if process.poll() is not None or time.monotonic() - begun > START_S:
            process.kill()
            raise RuntimeError(f"the server did not start:\n{said[-2000:]}")
        time.sleep(0.05)
    return Served(process, int(found[1]))


@contextlib.contextmanager
def serve(model: Path, *flags: str) -> Iterator[Served]:
    """Start a server of a model on a free port, and stop it at the end.

    Raises:
        RuntimeError: It did not start, or did not end with 0.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        served = start(log, f"model={model}", *flags)
        try:
            yield served
        finally:
            code = served.stop()
            said = _read(log)
        if code:
            raise RuntimeError(f"the server ended with {code}:\n{said[-2000:]}")


def _read(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def form(fields: dict[str, str], image: bytes | None = None) -> bytes:
    """Return the body of a multipart form."""
    lines = [
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    if image is not None:
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="i"\r\n'
        lines.append(head.encode() + b"\r\n" + image + b"\r\n")
    return b"".join([*lines, f"--{BOUNDARY}--\r\n".encode()])


def request(path: str, body: bytes, content_type: str | None = None) -> bytes:
    """Return a POST request, whole."""
    kind = content_type or f"multipart/form-data; boundary={BOUNDARY}"
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


class Client:
    """One connection, which is opened again where the server closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, whole: bytes) -> tuple[int, Any]:
        """Send a request; return the status and the JSON of the answer, or its text.

        Raises:
            ConnectionError: The server closed the connection without an answer.
        """
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        try:
            writer.write(whole)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.partition(b"content-length:")[2].split()[0])
            body = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            await self.close()
            raise ConnectionError("no answer") from error
        if b"connection: close" in head:
            await self.close()
        text = body.decode("utf-8")
        return int(head.split(None, 2)[1]), json.loads(text) if text.startswith("{") else text

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            with contextlib.suppress(ConnectionError):
                await self._streams[1].wait_closed()
            self._streams = None
