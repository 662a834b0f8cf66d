"""What the HTTP server costs, and what it bears; prints JSON.

`throughput`: captions of single images by 16 clients over HTTP, over one call of `model.caption`
on all images at once, in turn.
`latency`: 4 clients ask for the embedding of an image, one request after the other, for a minute:
the 99th percentile over the median.
`overload`: 200 clients ask without a pause for a minute where 32 requests have room: requests that
were neither answered nor refused, growth of the server's memory, and wrong answers.
`hostile`: requests and images that were mutated, bombs included: crashes, hangs and 500s.

    python -m benchmarks.speed.serving throughput
    python -m benchmarks.speed.serving overload --model runs/demo/pretrain/model --seconds 10
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.hostile import UNFINISHED, mutated
from benchmarks.speed.http_client import Client, Served, form, request, serve
from benchmarks.speed.mplug_timing import ratio_range, speedup, time_in_turn
from triptych.scenes.write import write_scenes
from triptych.serving.engine import load

CLIENTS, PATIENT_CLIENTS, MANY_CLIENTS, PLACES = 16, 4, 200, 32
WARM_REQUESTS = 64
HANG_S = 30.0
SAME_COSINE = 0.999
"""Of an embedding that was computed beside others with one that was computed alone."""


def write_images(folder: str, number: int) -> list[Path]:
    """Return images of scenes."""
    write_scenes(Path(folder), 8, num_test=number, formats=("captions",), captions_per_image=1)
    return sorted(path for path in Path(folder).rglob("*.jpg"))[:number]


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    """Compare captions over HTTP with a call of the model."""
    with tempfile.TemporaryDirectory() as folder, serve(options.model) as served:
        paths = write_images(folder, options.images)
        asked = [request("/v1/caption", form({}, path.read_bytes())) for path in paths]
        engine = load(options.model)
        said: dict[str, list[str]] = {}

        def plain() -> None:
            captions = engine.caption(paths)
            assert isinstance(captions, list)
            said["plain"] = captions

        def over_http() -> None:
            found = asyncio.run(ask_all(served, asked))
            said["http"] = [answer["answers"][0]["caption"] for answer in found]

        seconds = time_in_turn({"plain": plain, "http": over_http}, options.rounds)
    same = sum(a == b for a, b in zip(said["plain"], said["http"], strict=True))
    return {
        "served_throughput_ratio": speedup(seconds, "plain", "http"),
        "range": ratio_range(seconds, "plain", "http"),
        "captions_per_s": round(len(paths) / statistics.median(seconds["http"]), 1),
        "same": round(same / len(paths), 4),
        "protocol": f"{len(paths)} images of 64 px, {CLIENTS} clients, {options.rounds} rounds",
    }


async def ask_all(served: Served, asked: Sequence[bytes]) -> list[Any]:
    """Send all requests, each client the next one when it has its answer; return the answers."""
    answers: list[Any] = [None] * len(asked)
    todo = iter(range(len(asked)))

    async def run() -> None:
        client = Client(served.port)
        for number in todo:
            status, answers[number] = await client.send(asked[number])
            if status != 200:
                raise RuntimeError(f"{status}: {answers[number]}")
        await client.close()

    await asyncio.gather(*(run() for _ in range(CLIENTS)))
    return answers


def latency(options: argparse.Namespace) -> dict[str, Any]:
    """Measure how long clients wait."""
    with tempfile.TemporaryDirectory() as folder, serve(options.model) as served:
        paths = write_images(folder, 64)
        asked = [request("/v1/embed_image", form({}, path.read_bytes())) for path in paths]
        took: list[float] = []

        async def run(client: Client, number: int) -> None:
            begun = time.perf_counter()
            status, answer = await client.send(asked[number % len(asked)])
            if status != 200:
                raise RuntimeError(f"{status}: {answer}")
            took.append(time.perf_counter() - begun)

        asyncio.run(for_a_while(served, PATIENT_CLIENTS, options.seconds, run))
    late, middle = np.percentile(took, [99, 50])
    return {
        "served_p99_over_p50": round(float(late / middle), 2),
        "p50_ms": round(1000 * float(middle), 2),
        "p99_ms": round(1000 * float(late), 2),
        "requests": len(took),
        "protocol": f"{PATIENT_CLIENTS} clients, images of 64 px, {options.seconds:g} s",
    }


async def for_a_while(
    served: Served,
    clients: int,
    seconds: float,
    run: Callable[[Client, int], Awaitable[None]],
) -> None:
    """Let clients ask without a pause; the first requests, which warm the server, not counted."""
    warm = Client(served.port)
    for number in range(WARM_REQUESTS):
        await run(warm, number)
    await warm.close()
    end = time.monotonic() + seconds

    async def ask(first: int) -> None:
        client, number = Client(served.port), first
        while time.monotonic() < end:
            await run(client, number)
            number += clients
        await client.close()

    await asyncio.gather(*(ask(first) for first in range(clients)))


def overload(options: argparse.Namespace) -> dict[str, Any]:
    """Ask for more than there is room for."""
    statuses: Counter[int] = Counter()
    wrong = sent = 0
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(options.model, "--queue", str(PLACES)) as served,
    ):
        paths = write_images(folder, 64)
        right = load(options.model).embed_images(paths)
        asked = [request("/v1/embed_image", form({}, path.read_bytes())) for path in paths]
        memory: list[float] = []

        async def run(client: Client, number: int) -> None:
            nonlocal wrong, sent
            if sent == WARM_REQUESTS:
                memory.append(served.memory_mib())
            sent += 1
            try:
                status, answer = await client.send(asked[number % len(asked)])
            except ConnectionError:
                return
            statuses[status] += 1
            if status == 200:
                given = np.array(answer["answers"][0]["embedding"])
                wrong += float(given @ right[number % len(asked)]) < SAME_COSINE
            elif sent > WARM_REQUESTS:
                memory.append(served.memory_mib())

        asyncio.run(ask_each_size(served, paths[:PLACES]))
        asyncio.run(for_a_while(served, MANY_CLIENTS, options.seconds, run))
        memory.append(served.memory_mib())
    return {
        "overload_unaccounted": sent - statuses[200] - statuses[503],
        "overload_memory_mib": round(max(memory) - memory[0], 1),
        "overload_wrong": wrong,
        "sent": sent,
        "answered": statuses[200],
        "refused": statuses[503],
        "protocol": f"{MANY_CLIENTS} clients, room for {PLACES} requests, {options.seconds:g} s",
    }


async def ask_each_size(served: Served, paths: Sequence[Path]) -> None:
    """Ask for each number of items that may run together: torch keeps kernels of each, for good."""
    items = [{"image": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    client = Client(served.port)
    for number in range(1, len(items) + 1):
        body = json.dumps({"items": items[:number]}).encode()
        status, answer = await client.send(request("/v1/embed_image", body, "application/json"))
        if status != 200:
            raise RuntimeError(f"{status}: {answer}")
    await client.close()


def hostile(options: argparse.Namespace) -> dict[str, Any]:
    """Send what no honest client sends."""
    bad: Counter[str] = Counter()
    statuses: Counter[int] = Counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(options.model, "--read-timeout-s", "5") as served,
    ):
        images = [path.read_bytes() for path in write_images(folder, 8)]
        before = served.memory_mib()

        async def run() -> None:
            rng = np.random.default_rng(0)
            for number in range(options.requests):
                name, whole = mutated(rng, number, images)
                try:
                    async with asyncio.timeout(HANG_S):
                        status = await send_alone(served.port, whole, name in UNFINISHED)
                except TimeoutError:
                    bad[f"hang: {name}"] += 1
                    continue
                statuses[status] += 1
                if status >= 500 and status != 503:
                    bad[f"{status}: {name}"] += 1
                if not served.is_running():
                    raise RuntimeError(f"request {number}, {name}, ended the server")
            client = Client(served.port)
            status, _ = await client.send(request("/v1/embed_image", form({}, images[0])))
            bad["an honest request is not answered"] += status != 200
            await client.close()

        asyncio.run(run())
        grown = served.memory_mib() - before
    return {
        "hostile_requests": sum(bad.values()),
        "found": +bad,
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "memory_mib": round(grown, 1),
        "protocol": f"{options.requests:,} requests, of a seed",
    }


async def send_alone(port: int, whole: bytes, leaves: bool) -> int:
    """Send bytes on a connection of their own; return the status, 0 where there is no answer.

    Args:
        port: Of the server.
        whole: What is sent.
        leaves: Whether the client hangs up after it.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(whole)
        if leaves:
            writer.write_eof()
        line = await reader.readline()
        return int(line.split()[1]) if line.startswith(b"HTTP/1.1 ") else 0
    except ConnectionError:
        return 0
    finally:
        writer.close()


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "throughput": throughput,
    "latency": latency,
    "overload": overload,
    "hostile": hostile,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--model", type=Path, default=Path("runs/demo/pretrain/model"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    print(json.dumps(PARTS[options.part](options)))


if __name__ == "__main__":
    main()
