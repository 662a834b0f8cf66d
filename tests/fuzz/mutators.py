"""Changes of files that fit many kinds: of bytes, lines, JSON and zip archives."""

import io
import json
import os
import random
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.fuzz.kind import Mutator

NESTED = "@nested@"
"""Stands for a value nested too deeply for `json.dumps`."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**12, -(10**12), 10**400),
    *(0.5, 1e308, float("nan"), float("inf"), -float("inf")),
    *("", " ", "\x00", "\ud800", "\x1b[31mred\x1b[0m", "\u202e", "../../etc/passwd", "/dev/zero"),
    *(
        "x" * 100_000,
        "1" * 5000,
        NESTED,
        [],
        {},
        [None],
        {"": None},
        [[]],
        "é" * 40,
        "{1..999999999}",
    ),
)
"""What a value becomes."""


def changed(pattern: str, change: Callable[[random.Random, bytes], bytes]) -> Mutator:
    """Return a mutator that replaces the content of a file whose name fits a pattern."""

    def mutate(rng: random.Random, folder: Path) -> None:
        path = a_file(rng, folder, pattern)
        if path is not None:
            path.write_bytes(change(rng, path.read_bytes()))

    return mutate


def a_file(rng: random.Random, folder: Path, pattern: str) -> Path | None:
    """Return a small regular file of a folder, at any depth, or None."""
    found = sorted(path for path in folder.rglob(pattern) if is_small(path))
    return rng.choice(found) if found else None


def is_small(path: Path) -> bool:
    """Return whether a mutator may read a path: a file of its own, and not a large one."""
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 1 << 26


def a_place(rng: random.Random, data: bytes) -> int:
    """Return where to change a file: often near its beginning or end, where formats are read."""
    if not data:
        return 0
    near = min(len(data) - 1, 256)
    return rng.choice(
        (
            rng.randint(0, len(data) - 1),
            rng.randint(0, near),
            len(data) - 1 - rng.randint(0, near),
        )
    )


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """Flip, cut, repeat, insert, overwrite or empty."""
    out, at = bytearray(data), a_place(rng, data)
    how = rng.randint(0, 8)
    if how <= 2:
        for _ in range(rng.choice((1, 1, 2, 8, 32))):
            if out:
                out[a_place(rng, data)] ^= 1 << rng.randint(0, 7)
    elif how == 3:
        del out[at:]
    elif how == 4:
        end = at + rng.randint(1, 64)
        del out[at:end]
    elif how == 5:
        out[at:at] = bytes(rng.choice((b"\0", b"\xff", b'"', b"\n", b"[", b"\xed\xa0\x80"))) * (
            rng.choice((1, 7, 4096))
        )
    elif how == 6:
        word = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**63 - 1, 2**64 - 1, 10**9))
        size = rng.choice((2, 4, 8))
        order = rng.choice(("little", "big"))
        out[at : at + size] = (word % 2 ** (8 * size)).to_bytes(size, order)
    elif how == 7:
        other, length = a_place(rng, data), rng.randint(1, 512)
        out[at:at] = data[other : other + length]
    else:
        return rng.choice(
            (b"", b"\n", b"\0" * 16, b"PK\x05\x06" + b"\0" * 18, b"\xef\xbb\xbf" + data)
        )
    return bytes(out)


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Change a value, a key or the encoding of a JSON text; other bytes stay."""
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError):
        return data
    plain = mutate_plain(rng, plain)
    return encoded(rng, json_text(rng, plain))


def json_text(rng: random.Random, plain: Any) -> str:
    """Return JSON with lone surrogates as they are, and deep values."""
    text = json.dumps(plain, ensure_ascii=rng.random() < 0.5)
    depth = rng.choice((100, 3000, 200_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    nested = opening * depth + ("1" if opening != "[" else "") + closing * depth
    return text.replace(json.dumps(NESTED), nested)


def encoded(rng: random.Random, text: str) -> bytes:
    """Return a text as bytes, mostly in UTF-8."""
    encoding = rng.choice(("utf-8",) * 12 + ("utf-16", "utf-8-sig", "latin-1"))
    errors = "replace" if encoding == "latin-1" else "surrogatepass"
    return text.encode(encoding, errors)


def mutate_plain(rng: random.Random, plain: Any) -> Any:
    """Return plain values with one of them changed, in place where that is possible."""
    places: list[tuple[Any, Any]] = []
    stack = [plain]
    while stack:
        value = stack.pop()
        items = value.items() if isinstance(value, dict) else ()
        items = enumerate(value) if isinstance(value, list) else items
        for key, inner in items:
            places.append((value, key))
            stack.append(inner)
    if not places or rng.random() < 0.05:
        return rng.choice(VALUES)
    holder, key = rng.choice(places)
    how = rng.randint(0, 6)
    if how <= 2:
        holder[key] = rng.choice(VALUES)
    elif how == 3:
        del holder[key]
    elif how == 4 and isinstance(holder[key], int | float):
        holder[key] = holder[key] * rng.choice((-1, 2, 1000, 10**9, 10**15, 0.5))
    elif how == 5 and isinstance(holder, dict):
        other = rng.choice(("", "kind", f"{key}x", "__class__", "\ud800", key.upper()))
        holder[other] = holder.pop(key)
    else:
        holder[key] = rng.choice(([holder[key]], [holder[key]] * 3, {"a": holder[key]}))
    return plain


def mutate_lines(rng: random.Random, data: bytes) -> bytes:
    """Change, repeat, drop or swap a line; in a line of JSON, a value of it."""
    lines = data.split(b"\n")
    at = rng.randint(0, len(lines) - 1)
    how = rng.randint(0, 5)
    if how <= 2:
        lines[at] = mutate_json(rng, lines[at]) if lines[at][:1] in b"{[" else lines[at]
        lines[at] = mutate_bytes(rng, lines[at]) if how == 2 else lines[at]
    elif how == 3:
        lines[at:at] = [lines[at]] * rng.choice((1, 2, 500))
    elif how == 4:
        del lines[at]
    else:
        lines[at] = rng.choice(
            (b'"', b"\0", b'"' * 3, b"," * 5000, b"x" * 200_000, b"\r", b"\xff\xfe")
        )
    return b"\n".join(lines)


def mutate_zip(rng: random.Random, data: bytes) -> bytes:
    """Change, rename, drop, repeat or compress a member of a zip archive."""
    members = list(unzipped(data).items())
    if not members:
        return data
    at = rng.randint(0, len(members) - 1)
    name, content = members[at]
    how = rng.randint(0, 4)
    if how == 0:
        members[at] = name, mutate_bytes(rng, content)
    elif how == 1:
        other = rng.choice(("", "/etc/passwd", "../out", name.upper(), f"x/{name}", "data.pkl"))
        members[at] = other or "empty", content
    elif how == 2:
        del members[at]
    elif how == 3:
        members[at] = name, content[: rng.randint(0, len(content))]
    else:
        return zip_bomb(name)
    out = io.BytesIO()
    stored = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(out, "w", stored) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return out.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    """Return the members of a zip archive; none of one that is damaged, or is a bomb."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > 64 << 20:
                return {}
            return {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # an earlier mutator has been there
        return {}


def zip_bomb(*names: str, gib: int = 4) -> bytes:
    """Return a zip archive of a few MB whose members are zeros of some GiB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 26)) + packer.flush(zlib.Z_FULL_FLUSH)
    stream = piece * (16 * gib) + packer.flush()
    size = min(gib << 30, 2**32 - 2)
    out, directory = bytearray(), bytearray()
    for name in names:
        encoded_name = name.encode()
        shared = (
            (20).to_bytes(2, "little")
            + b"\0\0\x08\0"
            + b"\0\0\x21\0"
            + bytes(4)
            + len(stream).to_bytes(4, "little")
            + size.to_bytes(4, "little")
            + len(encoded_name).to_bytes(2, "little")
            + b"\0\0"
        )
        directory += b"PK\x01\x02\x14\0" + shared + bytes(10) + len(out).to_bytes(4, "little")
        directory += encoded_name
        out += b"PK\x03\x04" + shared + encoded_name + stream
    end = b"PK\x05\x06" + bytes(4) + len(names).to_bytes(2, "little") * 2
    end += len(directory).to_bytes(4, "little") + len(out).to_bytes(4, "little") + b"\0\0"
    return bytes(out + directory + end)


def special(pattern: str = "*") -> Mutator:
    """Return a mutator that puts something else in a file's place, or removes it."""

    def mutate(rng: random.Random, folder: Path) -> None:
        path = a_file(rng, folder, pattern)
        if path is None:
            return
        path.unlink()
        how = rng.randint(0, 6)
        if how == 0:
            os.mkfifo(path)
        elif how == 1:
            path.symlink_to("/dev/zero")
        elif how == 2:
            path.symlink_to(path.name)
        elif how == 3:
            path.mkdir()
        elif how == 4:
            path.touch()
            os.truncate(path, 3 << 30)  # takes no room on the disk
        elif how == 5:
            path.symlink_to("/proc/self/mem")

    return mutate


def whole(pattern: str, *contents: Callable[[random.Random], bytes]) -> Mutator:
    """Return a mutator that replaces a file by one that was made to be hostile."""
    return changed(pattern, lambda rng, _: rng.choice(contents)(rng))


def remove_tree(folder: Path) -> None:
    """Remove a case, whatever became of it."""
    shutil.rmtree(folder, ignore_errors=True)
