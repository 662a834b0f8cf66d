"""Images to shards that hold their codes, so that training need not run the image tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from triptych.core.errors import DataError
from triptych.core.files import has_entries, writing
from triptych.data.codes import (
    CodeArray,
    CodesAbout,
    CodeShardWriter,
)
from triptych.data.collate.image import CODEBOOK_MEAN, CODEBOOK_STD, codebook_view
from triptych.data.images import decode_image
from triptych.data.manifest import read_records
from triptych.data.samples import SharedImage, group_by_image
from triptych.data.skips import VERB_FLAG, ImageProblem, SkipLog, Skipped
from triptych.data.source import DataSourceConfig
from triptych.data.transforms.pipeline import TransformedImage, normalise_batch
from triptych.data.transforms.randaugment import Pixels
from triptych.models.dvae.model import DVAE
from triptych.tasks.pretraining import image_tokenizer

IMAGES_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class TokenizedImages:
    """What was written.

    Attributes:
        num_images: Samples in the shards.
        num_records: Records that they serve; captions of one image share a sample.
        num_skipped: Entries and images that could not be used.
        about: How the codes were made.
    """

    num_images: int
    num_records: int
    num_skipped: int
    about: CodesAbout


def tokenize_images(
    source: DataSourceConfig,
    tokenizer: str | Path,
    out: Path,
    *,
    image_size: int | None = None,
    samples_per_shard: int = 1000,
    max_bad_share: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
) -> TokenizedImages:
    """Write WebDataset shards of a dataset's images, fields and codes.

    The codes are those of whole images: what `MaskedImageCollator` makes where images are
    neither cropped nor mirrored. Encoded images are copied as they are.

    Args:
        source: The dataset; each record has one image.
        tokenizer: What `image_tokenizer.load` reads.
        out: A new or empty folder; receives shards, `image_codes.json` and `skipped.jsonl`.
        image_size: Side in pixels of the tokenizer's view, 8 times the patches on a side of the
            encoder that will be trained; None takes the tokenizer's own.
        samples_per_shard: Images in a shard.
        max_bad_share: Fraction of the data that may be bad.
        progress: Told how many images are done, and how many there are.

    Raises:
        DataError: The folder is not empty, a record has no single image, or too much is bad.
        CheckpointError: There is no image tokenizer.
    """
    if has_entries(out):
        raise DataError(f"{out} is not empty: choose another folder, or remove it first")
    model = image_tokenizer.load(tokenizer, image_size=image_size)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    found = read_records(source)
    groups = group_by_image(found.records)
    writer = CodeShardWriter(out, samples_per_shard)
    log = SkipLog(out, len(groups) + len(found.skipped), max_bad_share, flag=VERB_FLAG)
    log.add_all(found.skipped)
    num_records = 0
    try:
        with writing(f"shards in {out}", out, only_full=True):
            for start in range(0, len(groups), IMAGES_AT_ONCE):
                rows = list(_read(groups[start : start + IMAGES_AT_ONCE], model.image_size, log))
                for (group, data, _), codes in zip(rows, _codes(model, rows), strict=True):
                    writer.write(group, data, codes)
                    num_records += len(group.records)
                if progress is not None:
                    progress(min(start + IMAGES_AT_ONCE, len(groups)), len(groups))
            writer.close()
    except BaseException:
        writer.discard()
        raise
    about = image_tokenizer.about_codes(model.encoder, model.image_size)
    about.save(out)
    return TokenizedImages(writer.num_written, num_records, log.num_bad, about)


_Row = tuple[SharedImage, bytes, Pixels]


def _read(groups: Sequence[SharedImage], size: int, log: SkipLog) -> Iterator[_Row]:
    """Yield each image's group, bytes and view; log what cannot be read."""
    for group in groups:
        try:
            data = group.image.read()
            pixels = decode_image(data)
        except ImageProblem as problem:
            record_id = group.records[0].record_id
            log.add(Skipped(problem.kind, str(group.image), str(problem), record_id))
            continue
        height, width = pixels.shape[:2]
        whole = TransformedImage(pixels, width, height, region=pixels)
        yield group, data, codebook_view(whole, size)


def _codes(model: DVAE, rows: Sequence[_Row]) -> list[CodeArray]:
    """Return (P,) codes of each image."""
    if not rows:
        return []
    image = normalise_batch([view for _, _, view in rows], CODEBOOK_MEAN, CODEBOOK_STD)
    device = next(model.parameters()).device
    found = model.codes(image.to(device)).cpu().numpy().astype(np.int64)
    return list(found)
