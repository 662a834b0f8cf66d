"""Make one batch: decode, transform, collate; replace or exclude what cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from triptych.core.errors import DataError
from triptych.data.caption_cleaning import mentions_side
from triptych.data.collate.base import (
    AnyCollator,
    Collator,
    LedCollator,
    PairCollator,
    SampleProblem,
    TextCollator,
    ViewCollator,
    int_tensor,
)
from triptych.data.images import Decoded, decode_for_training, decode_image, decode_to_shrink
from triptych.data.order import SampleRng
from triptych.data.records import ImageSource, Record
from triptych.data.skips import ImageProblem, SkipKind, Skipped
from triptych.data.transforms.pipeline import (
    CropPlan,
    ImageTransform,
    Planned,
    TransformedImage,
    normalise_batch,
)
from triptych.data.transforms.randaugment import Pixels
from triptych.data.video import decode_frames

REPLACEMENT_STREAM = 1  # the first of MAX_REPLACEMENTS
MAX_REPLACEMENTS = 64  # with 1 % bad samples, as many in a row have a chance of 1e-128
MAX_BAD_KEPT = 10_000  # of the samples that cannot be used; others are tried again
BYTES_PER_MIB = 2**20


@dataclass(slots=True)
class Built:
    """What a worker hands back for one step.

    Attributes:
        batch: The tensors; None where nothing could be used.
        num_samples: Samples in the batch.
        skipped: What could not be used.
        error: What went wrong, where the run must stop.
        traceback: Where it went wrong.
    """

    batch: dict[str, Tensor] | None = None
    num_samples: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    error: str | None = None
    traceback: str = ""

    def pin_memory(self) -> Built:
        """Return this with its tensors in pinned memory, from which a GPU copies by itself."""
        if self.batch is not None:
            self.batch = {name: tensor.pin_memory() for name, tensor in self.batch.items()}
        return self


class ImageCache:
    """Decode images, and keep the first ones that fit into a bounded memory.

    Nothing is evicted: in a new permutation each epoch every image is equally likely to come
    next, so which ones are kept does not matter, while eviction by age would throw each one out
    before it comes again.
    """

    def __init__(self, max_bytes: int) -> None:
        """Keep up to `max_bytes` of pixels; 0 keeps nothing."""
        self._room = max_bytes
        self._known: dict[tuple[Hashable, ...], Pixels] = {}
        self._reduced: dict[tuple[Hashable, ...], Decoded] = {}
        self._jpegs: dict[tuple[Hashable, ...], tuple[int, int]] = {}

    def __call__(self, source: ImageSource, *, whole: bool = False) -> Pixels:
        """Return the decoded image (H, W, 3) uint8.

        Args:
            source: The image.
            whole: Whether a very large one is not shrunk, since a box or a mask counts its pixels.

        Raises:
            ImageProblem: It cannot be read or decoded.
        """
        if whole:
            return self._kept((source.path, source.offset, "whole"), lambda: decode_image(source))
        return self._kept((source.path, source.offset), lambda: decode_to_shrink(source)[0])

    def planned(self, source: ImageSource, plan: CropPlan) -> tuple[Pixels, Planned]:
        """Return an image at the size that its crop needs, and what was planned for it.

        The result depends on the image and the crop alone, not on what is kept: a JPEG is kept at
        each size that crops have asked for.

        Raises:
            ImageProblem: It cannot be read or decoded.
        """
        name = (source.path, source.offset)
        size = self._jpegs.get(name)
        found = self._reduced.get((*name, 1 if size is None else plan.factor(*size)))
        if found is None:
            found = decode_for_training(source, plan.factor)
            size = (found.width, found.height)
            if found.pixels.nbytes <= self._room:
                self._room -= found.pixels.nbytes
                self._reduced[(*name, plan.factor(*size) if found.is_jpeg else 1)] = found
                if found.is_jpeg:
                    self._jpegs[name] = size
        width, height = found.width, found.height
        return found.pixels, Planned(width, height, found.factor, plan.draw(width, height))

    def clip(self, path: str, num_frames: int) -> Pixels:
        """Return evenly spread frames of a clip, (num_frames, H, W, 3) uint8.

        Raises:
            ImageProblem: It cannot be read or decoded.
            DataError: PyAV is not installed.
        """
        return self._kept(("clip", path, num_frames), lambda: decode_frames(path, num_frames))

    def _kept(self, key: tuple[Hashable, ...], decode: Callable[[], Pixels]) -> Pixels:
        found = self._known.get(key)
        if found is None:
            found = decode()
            if found.nbytes <= self._room:
                self._room -= found.nbytes
                self._known[key] = found
        return found


class BatchBuilder:
    """Makes batches from positions in the dataset.

    Args:
        records: The dataset.
        collator: Makes text, box and key tensors; a `TextCollator` needs no images, a
            `PairCollator` two a sample.
        transform: Prepares the images.
        seed: Seed of the run.
        train: Whether what cannot be used is replaced (True) or skipped.
        cache_mib: Memory for decoded images, in MiB.
    """

    def __init__(
        self,
        records: Sequence[Record],
        collator: AnyCollator[Any],
        transform: ImageTransform,
        seed: int,
        train: bool,
        cache_mib: int,
    ) -> None:
        self.records, self.collator, self.transform = records, collator, transform
        self._texts = collator if isinstance(collator, TextCollator) else None
        self._pairs = collator if isinstance(collator, PairCollator) else None
        led = isinstance(collator, LedCollator) and collator.is_led
        self._led: Any = collator if led else None
        self._region_side = collator.region_side if isinstance(collator, ViewCollator) else 1
        self.seed, self.train = seed, train
        self._decode = ImageCache(cache_mib * BYTES_PER_MIB)
        self._rng = SampleRng()
        self._bad: dict[int, Skipped] = {}  # not read again

    def build(
        self,
        samples: Sequence[tuple[int, int]],
        note: Callable[[int], None] | None = None,
        lead: tuple[int, int] | None = None,
    ) -> Built:
        """Make the batch of some samples, each (epoch, index).

        Args:
            samples: Epoch and index of each.
            note: Called with the index of each sample before it is made.
            lead: Epoch and index of the sample that decides for the batches of all processes, where
                it is in another one's; made only for a `LedCollator` that asks.

        Returns:
            The batch with `image` (B, 3, S, S) float32, or (B, 2, 3, S, S) of pairs, or
            (B, F, 3, S, S) where a sample shows a clip, unless it is of texts alone, and `index`
            (B,) int64 among its keys. An image among clips is shown in all F frames.

        Raises:
            DataError: A sample failed in a way that is not its data's fault; the message names it.
        """
        built = Built()
        found = []
        for epoch, index in samples:
            if note is not None:
                note(index)
            made = self._replaceable(epoch, index, built)
            if made is not None:
                found.append(made)
            if built.error is not None:
                return built
        if found:
            indices, pixels, made_samples = zip(*found, strict=True)
            config = self.transform.config
            built.num_samples = len(found)
            if lead is None or self._led is None:
                built.batch = self.collator.batch(made_samples)
            else:
                leader = self._replaceable(*lead, built)
                if leader is None:
                    return built
                built.batch = self._led.led_batch(made_samples, leader[2])
            num_shown = max(map(len, pixels))
            if num_shown:
                whole = [list(shown) * (num_shown // len(shown)) for shown in pixels]
                flat = [array for arrays in whole for array in arrays]
                image = normalise_batch(flat, config.mean, config.std)
                several = (-1, num_shown, *image.shape[1:])
                built.batch["image"] = image if num_shown == 1 else image.view(several)
            built.batch["index"] = int_tensor(indices)
        return built

    def name(self, index: int) -> str:
        """Return how messages call a record."""
        record = self.records[index]
        where = record.image or record.video
        return f"record {record.record_id}" + ("" if where is None else f" ({where})")

    def _replaceable(
        self, epoch: int, index: int, built: Built
    ) -> tuple[int, list[Pixels], Any] | None:
        """Make the sample; in training, another one where it cannot be used."""
        found = self._usable(index, self._rng.at(self.seed, epoch, index), built)
        if found is not None or not self.train:
            return found
        for number in range(MAX_REPLACEMENTS):
            # each try draws from its own stream: one that is known to be bad draws nothing more
            rng = self._rng.at(self.seed, epoch, index, REPLACEMENT_STREAM + number)
            found = self._usable(int(rng.integers(len(self.records))), rng, built)
            if found is not None:
                return found
        built.error = (
            f"{self.name(index)} cannot be used, nor can any of {MAX_REPLACEMENTS} samples drawn "
            f"in its place: {built.skipped[-1].message}. Run `triptych data check` on the data"
        )
        return None

    def _usable(
        self, index: int, rng: np.random.Generator, built: Built
    ) -> tuple[int, list[Pixels], Any] | None:
        """Make the sample, or note why it cannot be used."""
        if index in self._bad:
            built.skipped.append(self._bad[index])
            return None
        try:
            pixels, sample = self._make(index, rng)
            return index, pixels, sample
        except (ImageProblem, SampleProblem) as problem:
            record = self.records[index]
            shown = record.image or record.video
            is_its = isinstance(problem, ImageProblem) and shown is not None
            where = str(shown) if is_its else f"record {record.record_id}"
            skipped = Skipped(problem.kind, where, str(problem), record.record_id)
        except Exception as error:
            kind = type(error).__name__
            raise DataError(f"{self.name(index)} failed: {kind}: {error}") from error
        if len(self._bad) < MAX_BAD_KEPT:
            self._bad[index] = skipped
        built.skipped.append(skipped)
        return None

    def _make(self, index: int, rng: np.random.Generator) -> tuple[list[Pixels], Any]:
        record = self.records[index]
        if self._texts is not None:
            return [], self._texts.text_sample(record, rng)
        if self._pairs is not None:
            return self._make_pair(self._pairs.arrange(record, rng), self._pairs, rng)
        collator: Collator[Any] = self.collator  # type: ignore[assignment]
        allow_flip = not any(map(mentions_side, record_texts(record)))
        if record.image is not None:
            whole = any((record.phrase, record.box, record.mask))
            image = self._transformed(record.image, rng, allow_flip=allow_flip, whole=whole)
            return [image.pixels], collator.sample(record, image, rng)
        if record.video is None:
            message = f"record {record.record_id}: has no image and no clip"
            raise SampleProblem(SkipKind.MISSING_FIELD, message)
        frames = self._decode.clip(record.video, self.transform.config.num_frames)
        images = self.transform.apply_alike(frames, rng, allow_flip=allow_flip)
        return [image.pixels for image in images], collator.sample(record, images[0], rng)

    def _make_pair(
        self, record: Record, collator: PairCollator[Any], rng: np.random.Generator
    ) -> tuple[list[Pixels], Any]:
        """Make a sample of two images; each has its own crop, and is mirrored or not alone."""
        allow_flip = not any(map(mentions_side, record_texts(record)))
        pixels = [
            self._transformed(source, rng, allow_flip=allow_flip).pixels for source in record.images
        ]
        return pixels, collator.pair_sample(record, rng)

    def _transformed(
        self,
        source: ImageSource,
        rng: np.random.Generator,
        *,
        allow_flip: bool,
        whole: bool = False,
    ) -> TransformedImage:
        """Decode and transform an image; `whole`: all of it, since pixels count."""
        plan = None if whole else self.transform.plan(rng, self._region_side)
        if plan is None:
            pixels = self._decode(source, whole=whole)
            return self.transform.apply(pixels, rng, allow_flip=allow_flip)
        pixels, planned = self._decode.planned(source, plan)
        return self.transform.apply(pixels, rng, allow_flip=allow_flip, planned=planned)


class RecordTexts:
    """All texts of a dataset, made again each time that they are gone through."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._records = records

    def __iter__(self) -> Iterator[str]:
        return (text for record in self._records for text in record_texts(record))


def record_texts(record: Record) -> list[str]:
    """Return every text of a record that may describe its image."""
    fields = (
        record.caption,
        record.question,
        record.phrase,
        record.statement,
        record.premise,
        record.hypothesis,
        record.text,
        *record.answers,
    )
    return [text for text in fields if text]
