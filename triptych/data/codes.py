"""Codes of images, made once by an image tokenizer and stored beside the images in shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from triptych.core.errors import DataError
from triptych.core.files import write_json
from triptych.data.records import ImageSource, Record
from triptych.data.samples import SharedImage, add_member, image_extension, sample_entry
from triptych.data.skips import ImageProblem, SkipKind
from triptych.data.storage import RemoteError

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
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            return cls(str(plain["tokenizer"]), int(plain["num_codes"]), int(plain["image_size"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} cannot be read ({type(error).__name__}: {error}): it belongs to the "
                "shards that `triptych data tokenize-images` writes"
            ) from error


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
        ImageProblem: They are missing, damaged, or of another number.
        RemoteError: A URL failed on every try.
    """
    try:
        found = np.load(io.BytesIO(source.read()), allow_pickle=False)
    except RemoteError:
        raise
    except (ValueError, EOFError, OSError) as error:
        raise ImageProblem(SkipKind.NOT_AN_IMAGE, f"{source}: no stored codes: {error}") from error
    if found.ndim != 1 or found.dtype.kind != "u" or num_codes not in (None, len(found)):
        wanted = "a row" if num_codes is None else f"{num_codes}"
        raise ImageProblem(
            SkipKind.NOT_AN_IMAGE,
            f"{source}: holds {found.shape} {found.dtype}, not {wanted} of codes: they were made "
            "for another patch grid",
        )
    return found.astype(np.int64)  # type: ignore[no-any-return]


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
