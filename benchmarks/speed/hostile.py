"""Requests that no honest client sends, for a server that must bear them."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.speed.http_client import form, request

JSON = "application/json"
PATHS = ("/v1/caption", "/v1/match", "/v1/embed_image", "/v1/classify", "/v1/search", "/v1/judge")
Rng = np.random.Generator


def mutated(rng: Rng, number: int, images: Sequence[bytes]) -> tuple[str, bytes]:
    """Return the kind and the bytes of a hostile request; kinds take turns."""
    kind = KINDS[number % len(KINDS)]
    return kind.__name__, kind(rng, images[number % len(images)])


def flipped_image(rng: Rng, image: bytes) -> bytes:
    """Send an image with changed bytes."""
    changed = bytearray(image)
    for place in rng.integers(0, len(changed), 1 + int(rng.integers(40))):
        changed[place] = int(rng.integers(256))
    return request(_path(rng), form({"text": "a"}, bytes(changed)))


def cut_image(rng: Rng, image: bytes) -> bytes:
    """Send the beginning of an image."""
    return request("/v1/caption", form({}, image[: int(rng.integers(len(image)))]))


def flipped_png(rng: Rng, image: bytes) -> bytes:
    """Send another format with changed bytes, of which some are in the header."""
    kind = ("PNG", "GIF", "WEBP", "BMP", "TIFF")[int(rng.integers(5))]
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).save(buffer, kind)
    changed = bytearray(buffer.getvalue())
    for place in rng.integers(0, min(len(changed), 200), 1 + int(rng.integers(6))):
        changed[place] = int(rng.integers(256))
    return request("/v1/embed_image", form({}, bytes(changed)))


def png_bomb(rng: Rng, image: bytes) -> bytes:
    """Send a PNG of few bytes that claims, or has, very many pixels."""
    side = int(rng.choice([9_000, 30_000, 2**31 - 1]))
    rows = zlib.compress(bytes(side + 1) * min(side, 2_000), 9) if side < 2**31 - 1 else b""
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
    chunks = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    ]
    return request("/v1/caption", form({}, b"\x89PNG\r\n\x1a\n" + b"".join(chunks)))


def text_bomb(rng: Rng, image: bytes) -> bytes:
    """Send a PNG whose text unfolds to very much."""
    folded = b"Comment\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(folded)) + b"zTXt" + folded
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + folded))
    buffer = io.BytesIO()
    Image.open(io.BytesIO(image)).save(buffer, "PNG")
    png = buffer.getvalue()
    return request("/v1/embed_image", form({}, png[:33] + chunk + png[33:]))


def scan_bomb(rng: Rng, image: bytes) -> bytes:
    """Send a progressive JPEG whose last scan stands there many times."""
    buffer = io.BytesIO()
    Image.new("L", (2000, 2000)).save(buffer, "JPEG", progressive=True)
    jpeg = buffer.getvalue()
    last = jpeg.rfind(b"\xff\xda")
    return request("/v1/caption", form({}, jpeg[:last] + jpeg[last:-2] * 5_000 + jpeg[-2:]))


def postscript(rng: Rng, image: bytes) -> bytes:
    """Send a program that Pillow would have run by another one."""
    told = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n%%EOF\n"
    return request("/v1/caption", form({}, told))


def named_file(rng: Rng, image: bytes) -> bytes:
    """Name a path or a URL in place of an image."""
    name = str(rng.choice(["/etc/passwd", "file:///etc/passwd", "http://127.0.0.1:1/a.jpg", "a"]))
    if rng.random() < 0.5:
        return request("/v1/caption", form({"image": name}))
    return _json("/v1/caption", {"items": [{"image": name}]})


def nested(rng: Rng, image: bytes) -> bytes:
    """Send very deep JSON."""
    depth = int(rng.choice([1_000, 100_000, 1_000_000]))
    opened = b'{"a":' if rng.random() < 0.5 else b"["
    whole = b'{"items":' + opened * depth
    if rng.random() < 0.3:
        return request("/v1/classify", form({"options": (opened * depth).decode()}))
    return request(_path(rng), whole, JSON)


def odd_values(rng: Rng, image: bytes) -> bytes:
    """Send JSON values that are no values, or of other types, or too large."""
    odd = [
        "1e999", "-1", "1" * 5_000, "NaN", "Infinity", "null", "true", "[]", "{}", '"\\ud800"',
        '"\\u0000"', "0.1", '"' + "a" * 100_000 + '"', "1e400", '["\\udfff"]', "2147483648",
    ]  # fmt: skip
    one, other = (odd[int(rng.integers(len(odd)))] for _ in range(2))
    encoded = json.dumps(base64.b64encode(image).decode())
    bodies = (
        f'{{"items":[{{"image":{encoded}}}],"options":{{"num_beams":{one},"top_p":{other}}}}}',
        f'{{"items":[{{"image":{encoded}}}],"options":{{"labels":{one},"top":{other}}}}}',
        f'{{"items":[{{"image":{encoded},"text":{one}}}],"model":{other}}}',
        f'{{"items":{one},"options":{other}}}',
        f'{{"items":[{{"text":{one}}}],"options":{{"top":{other}}}}}',
    )
    return request(_path(rng), bodies[int(rng.integers(len(bodies)))].encode(), JSON)


def odd_texts(rng: Rng, image: bytes) -> bytes:
    """Send texts of any characters."""
    codes = rng.integers(1, 0x2FFF, int(rng.integers(1, 400)))
    text = "".join(map(chr, codes))
    return _json("/v1/embed_text", {"items": [{"text": text}] * int(rng.integers(1, 4))})


def many_items(rng: Rng, image: bytes) -> bytes:
    """Send more items than are allowed."""
    return _json("/v1/embed_text", {"items": [{"text": "a"}] * int(rng.choice([65, 10_000]))})


def many_parts(rng: Rng, image: bytes) -> bytes:
    """Send a form of very many parts."""
    return request("/v1/match", form({f"text{n}": "a" for n in range(20_000)}))


def flipped_form(rng: Rng, image: bytes) -> bytes:
    """Send a form with changed bytes, some of them in its heads."""
    changed = bytearray(form({"text": "a red circle", "options": "{}"}, image))
    for place in rng.integers(0, 300, 1 + int(rng.integers(8))):
        changed[place] = int(rng.integers(256))
    return request("/v1/match", bytes(changed))


def cut_form(rng: Rng, image: bytes) -> bytes:
    """Send the beginning of a form, as if it were all, or as if the client had left."""
    body = form({"text": "a red circle"}, image)
    cut = body[: int(rng.integers(len(body)))]
    if rng.random() < 0.5:
        return request("/v1/match", cut)
    return request("/v1/match", body)[: -(len(body) - len(cut))]


def false_length(rng: Rng, image: bytes) -> bytes:
    """Claim another length than the body has."""
    told = str(rng.choice(["-1", "99999999999999999999", "1e3", "0x10", "100000000", "7"]))
    head = f"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Length: {told}\r\n"
    return head.encode() + b"Content-Type: application/json\r\n\r\n{}" + image


def endless_chunks(rng: Rng, image: bytes) -> bytes:
    """Send chunks beyond the limit, without a length."""
    head = b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
    chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
    number = int(rng.choice([1, 40]))
    return head + b"Content-Type: application/json\r\n\r\n" + chunk * number


def noise(rng: Rng, image: bytes) -> bytes:
    """Send what is no HTTP."""
    return rng.bytes(int(rng.integers(1, 4_000))) + b"\r\n\r\n"


def odd_heads(rng: Rng, image: bytes) -> bytes:
    """Send a request for odd paths with odd headers."""
    path = str(rng.choice(["/v1/../../etc/passwd", "/%00", "/v1/caption%2f", "//", "/v1/", "*"]))
    method = str(rng.choice(["GET", "PUT", "TRACE", "POST", "BREW"]))
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    head += f"Authorization: Bearer {'x' * int(rng.choice([1, 20_000]))}\r\n"
    return head.encode() + b"Content-Type: multipart/form-data; boundary=\r\nX: \xff\xfe\r\n\r\n"


KINDS: tuple[Callable[[Any, bytes], bytes], ...] = (
    flipped_image,
    cut_image,
    flipped_png,
    png_bomb,
    text_bomb,
    scan_bomb,
    postscript,
    named_file,
    nested,
    odd_values,
    odd_texts,
    many_items,
    many_parts,
    flipped_form,
    cut_form,
    false_length,
    endless_chunks,
    noise,
    odd_heads,
)

UNFINISHED = frozenset(kind.__name__ for kind in (cut_form, false_length, endless_chunks, noise))
"""Kinds that may lack their end: the client leaves, where it would otherwise be waited for."""


def _path(rng: Rng) -> str:
    return PATHS[int(rng.integers(len(PATHS)))]


def _json(path: str, value: Any) -> bytes:
    return request(path, json.dumps(value).encode(), JSON)
