"""Codes of images, made once by an image tokenizer and stored beside the images in shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from triptych.core.errors import DataError
from triptych.core.files import write_json
from triptych.core.reading import read_json_object
from triptych.data.records import ImageSource, Record
from triptych.data.samples import SharedImage, add_member, image_extension, sample_entry
from triptych.data.skips import ImageProblem, SkipKind

CodeArray = NDArray[np.int64]

CODES_EXTENSION = "codes.npy"
"""Name of a sample's codes in a shard, behind its key."""

ABOUT_FILE = "image_codes.json"
"""File beside the shards that says how the codes were made."""


@dataclass(frozen=True, slots=True)
class CodesAbout:
    """How stored codes were made.

    Attributes:
        tokenizer: Fingerprint of the image tokenizer's weights.
        num_codes: Entries of its codebook.
        image_size: Side in pixels of the image that it saw.
    """

    tokenizer: str
    num_codes: int
    image_size: int

    def save(self, folder: Path) -> None:
        """Write it beside the shards."""
        plain = {name: getattr(self, name) for name in ("tokenizer", "num_codes", "image_size")}
        write_json(folder / ABOUT_FILE, plain)

    @classmethod
    def load(cls, folder: Path) -> CodesAbout:
        """Read it from a folder of shards.

        Raises:
            DataError: The file is missing or says something else.
        """
        path = folder / ABOUT_FILE
        plain = read_json_object(path)
        made_by, codes, side = (plain.get(f.name) for f in fields(cls))
        if not (isinstance(made_by, str) and _is_size(codes) and _is_size(side)):
            raise DataError(
                f"{path}: expected a `tokenizer` and sizes from 1 on (`num_codes`, `image_size`), "
                "as `triptych data tokenize-images` writes them beside its shards"
            )
        return cls(made_by, codes, side)


def _is_size(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class CodeShardWriter:
    """Writes WebDataset shards of images, their manifest fields and their codes.

    Args:
        folder: Where `000000.tar`, `000001.tar` ... go.
        samples_per_shard: Images in a shard.
    """

    def __init__(self, folder: Path, samples_per_shard: int) -> None:
        self.folder, self.samples_per_shard = folder, samples_per_shard
        self.num_written = 0
        self._shard: tarfile.TarFile | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, image: SharedImage, data: bytes, codes: CodeArray) -> None:
        """Add one sample.

        Args:
            image: The image and its records.
            data: Its encoded bytes.
            codes: (P,) int64.
        """
        if self.num_written % self.samples_per_shard == 0:
            self.close()
            path = self.folder / f"{self.num_written // self.samples_per_shard:06d}.tar"
            self._shard = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        assert self._shard is not None
        key = f"{self.num_written:09d}"
        fields = json.dumps(sample_entry(image.records), ensure_ascii=False)
        add_member(self._shard, f"{key}.{image_extension(image.image, data)}", data)
        add_member(self._shard, f"{key}.json", fields.encode())
        add_member(self._shard, f"{key}.{CODES_EXTENSION}", encode_codes(codes))
        self.num_written += 1

    def close(self) -> None:
        """End the current shard."""
        shard, self._shard = self._shard, None
        if shard is not None:
            shard.close()

    def discard(self) -> None:
        """Remove the shards again: half a dataset is none."""
        with suppress(OSError):  # a full disk takes no end of the file either
            self.close()
        for number in range(-(-self.num_written // self.samples_per_shard)):
            (self.folder / f"{number:06d}.tar").unlink(missing_ok=True)


def encode_codes(codes: CodeArray) -> bytes:
    """Return codes (P,) as the bytes of an .npy file, two bytes a code where that suffices."""
    buffer = io.BytesIO()
    small = codes.max(initial=0) <= np.iinfo(np.uint16).max
    np.save(buffer, codes.astype(np.uint16 if small else np.uint32))
    return buffer.getvalue()


def read_codes(source: ImageSource, num_codes: int | None = None) -> CodeArray:
    """Return stored codes, (P,) int64.

    Args:
        source: Where they lie.
        num_codes: How many an image must have; None takes any number.

    Raises:
        ImageProblem: They are missing, damaged, of another number, or beyond the codebook that the
            file beside the shards describes.
        DataError: That file is damaged.
        RemoteError: A URL failed on every try.
    """
    data = source.read()
    try:
        found = _parse_codes(data)
    except Exception as error:  # numpy parses the header as Python text, and raises what that does
        raise ImageProblem(
            SkipKind.NOT_AN_IMAGE, f"{source}: no stored codes: {type(error).__name__}: {error}"
        ) from error
    if num_codes not in (None, len(found)):
        raise ImageProblem(
            SkipKind.NOT_AN_IMAGE,
            f"{source}: holds {len(found)} codes, not {num_codes}: they were made for another "
            "patch grid",
        )
    entries = _codebook_entries(Path(source.path).parent)
    if entries is not None and found.max(initial=0) >= entries:
        raise ImageProblem(
            SkipKind.NOT_AN_IMAGE,
            f"{source}: has the code {found.max()}, and the codebook {entries} entries",
        )
    return found.astype(np.int64)


@lru_cache(maxsize=64)
def _codebook_entries(folder: Path) -> int | None:
    """Return how many codes there are in a folder of shards; None where it does not say."""
    return CodesAbout.load(folder).num_codes if (folder / ABOUT_FILE).exists() else None


def _parse_codes(data: bytes) -> NDArray[np.unsignedinteger[Any]]:
    """Read an .npy file of codes; nothing is allocated on the word of its header."""
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of .npy, which `np.save` does not write for codes")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    if len(shape) != 1 or dtype.kind != "u":
        raise ValueError(f"holds {shape} {dtype}, not a row of codes")
    start, size = file.tell(), shape[0] * dtype.itemsize
    if size != len(data) - start:
        raise ValueError(f"claims {size} bytes of codes and has {len(data) - start}")
    return np.frombuffer(data, dtype, offset=start)


def check_stored_codes(
    records: Sequence[Record], *, num_codes: int, image_size: int, tokenizer: str | None
) -> None:
    """Raise a DataError unless every record has codes of the wanted kind.

    Args:
        records: The training data.
        num_codes: Entries of the codebook that the model knows.
        image_size: Side in pixels of the image that has one code a patch.
        tokenizer: Fingerprint of the image tokenizer; None takes any.
    """
    folders: set[Path] = set()
    for record in records:
        if record.codes is None:
            raise DataError(
                f"record {record.record_id}: has no stored codes; make them with "
                "`triptych data tokenize-images`, or let the tokenizer run in training"
            )
        folders.add(Path(record.codes.path).parent)
    for folder in sorted(folders):
        found = CodesAbout.load(folder)
        wanted = CodesAbout(tokenizer or found.tokenizer, num_codes, image_size)
        if found != wanted:
            raise DataError(
                f"{folder}: its codes were made by another image tokenizer or for another size "
                f"({found}, but training wants {wanted}): run `triptych data tokenize-images` again"
            )
