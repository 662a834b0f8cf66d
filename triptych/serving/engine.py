"""A model folder in use: captions, answers, boxes, match scores and embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import CapabilityError, DataError
from triptych.core.outputs import ImageFeatures
from triptych.data.caption_cleaning import clean_caption
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig, normalise_batch
from triptych.generation.beam import beam_search
from triptych.generation.cached import CachedDecoder
from triptych.models.mplug.model import MPLUG
from triptych.serving.inputs import ImageInput, as_list, broadcast, check_texts, read_image
from triptych.serving.loading import ServingSettings, read_model
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.finetuning.grounding import Grounding, GroundingConfig
from triptych.tasks.finetuning.vqa import VQA, VQAConfig
from triptych.text import Tokenizer

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
Box = tuple[float, float, float, float]
T = TypeVar("T")

IMAGES_PER_PASS = 32
PAIRS_PER_PASS = 128

NEEDS = {
    "caption": (("captioning", "pretraining"), "mplug.caption"),
    "answer": (("vqa",), "mplug.vqa"),
    "ground": (("grounding",), "mplug.grounding"),
    "match": (("retrieval", "pretraining"), "mplug.retrieval"),
    "embed": (("retrieval", "pretraining"), "mplug.retrieval"),
}
"""What a model must have been trained for to be asked, and the recipe that does it."""


class Engine:
    """A trained model, ready to be asked.

    Pictures are paths, PIL images or uint8 arrays. Every method takes one of each or a list, and
    returns one result or a list of them; a single picture goes with many texts, and a single text
    with many pictures. Not safe to be used by two threads at the same time.

    Attributes:
        folder: Where the model was read from.
        model: The network, in evaluation mode.
        tokenizer: Its words.
        preprocess: How pictures are prepared.
        settings: What the model was trained for.
        device: Where it computes.
        precision: "fp32", or "bf16" for autocast.
    """

    def __init__(
        self,
        model: MPLUG,
        tokenizer: Tokenizer,
        *,
        preprocess: ImageTransformConfig,
        settings: ServingSettings,
        folder: Path,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
    ) -> None:
        """Wrap a model; `load` is the usual way here."""
        self.folder, self.tokenizer, self.preprocess = folder, tokenizer, preprocess
        self.settings, self.device, self.precision = settings, device, precision
        self.model = model.eval().to(device)
        self._transform = ImageTransform(preprocess, train=False)

    def caption(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        prompt: str | None = None,
        num_beams: int | None = None,
    ) -> str | list[str]:
        """Say what pictures show.

        Args:
            images: One picture or many.
            prompt: Words that each caption must begin with, such as "a photo of".
            num_beams: Width of the beam search; None is the model folder's own, 5 unless set.

        Raises:
            CapabilityError: The model was trained neither for captioning nor with PrefixLM.
            DataError: A picture cannot be read, or the prompt is not usable.
        """
        self._require("caption")
        given, single = as_list(images)
        ids = [] if prompt is None else self._prompt_ids(prompt)
        task = self._captioning(num_beams, len(ids))
        texts: list[str] = []
        with torch.inference_mode(), self._autocast():
            for chunk in self._image_chunks(given):
                texts += self._caption_chunk(task, chunk, ids)
        return texts[0] if single else texts

    def answer(
        self, images: ImageInput | Sequence[ImageInput], questions: str | Sequence[str]
    ) -> str | list[str]:
        """Answer questions about pictures.

        Raises:
            CapabilityError: The model was not fine-tuned for answering.
            DataError: A picture cannot be read, or a question is empty.
        """
        self._require("answer")
        given, asked, single = broadcast(images, questions, "question")
        ids = self._encode(asked, "question", self.settings.limits.question)
        task = VQA(self.model, self.settings.task_config(VQAConfig), **self._words())
        texts: list[str] = []
        with torch.inference_mode(), self._autocast():
            for rows in _chunks(len(given), IMAGES_PER_PASS):
                texts += task.predict(self._batch(given, ids, rows)).texts or []
        return texts[0] if single else texts

    def ground(
        self, images: ImageInput | Sequence[ImageInput], phrases: str | Sequence[str]
    ) -> Box | list[Box]:
        """Find what phrases speak of.

        Returns:
            x0, y0, x1, y1 in pixels of the original upright picture, one box a phrase.

        Raises:
            CapabilityError: The model was not fine-tuned for grounding.
            DataError: A picture cannot be read, or a phrase is empty.
        """
        self._require("ground")
        given, asked, single = broadcast(images, phrases, "phrase")
        ids = self._encode(asked, "phrase", self.settings.limits.phrase)
        task = self._grounding()
        boxes: list[Box] = []
        with torch.inference_mode(), self._autocast():
            for rows in _chunks(len(given), IMAGES_PER_PASS):
                found = task.predict(self._batch(given, ids, rows)).boxes_xyxy
                assert found is not None
                boxes += [(b[0], b[1], b[2], b[3]) for b in found.tolist()]
        return boxes[0] if single else boxes

    def match(
        self, images: ImageInput | Sequence[ImageInput], texts: str | Sequence[str]
    ) -> float | list[float]:
        """Return the probability, 0 to 1, that a text describes a picture (ITM head).

        Raises:
            CapabilityError: The model has no trained matching head.
            DataError: A picture cannot be read, or a text is empty.
        """
        self._require("match")
        given, said, single = broadcast(images, texts, "text")
        ids = self._encode_captions(said)
        scores: list[float] = []
        with torch.inference_mode(), self._autocast():
            for rows in _chunks(len(given), PAIRS_PER_PASS):
                scores += self._match_chunk(given[rows], ids[rows])
        return scores[0] if single else scores

    def embed_images(self, images: ImageInput | Sequence[ImageInput]) -> NDArray[np.float32]:
        """Return (n, E) float32 embeddings of length 1; (E,) for a single picture.

        The dot product with a text's embedding is their similarity.

        Raises:
            CapabilityError: The model was not trained with a contrastive objective.
            DataError: A picture cannot be read.
        """
        self._require("embed")
        given, single = as_list(images)
        with torch.inference_mode(), self._autocast():
            rows = [
                _numpy(self.model.embed_image(self.model.encode_image(chunk)))
                for chunk in self._image_chunks(given)
            ]
        embeddings = self._joined(rows)
        return embeddings[0] if single else embeddings

    def embed_texts(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """Return (n, E) float32 embeddings of length 1; (E,) for a single text.

        Raises:
            CapabilityError: The model was not trained with a contrastive objective.
            DataError: A text is empty.
        """
        self._require("embed")
        given, single = as_list(texts)
        ids = self._encode_captions(given)
        with torch.inference_mode(), self._autocast():
            rows = [
                _numpy(self.model.embed_text(self.model.encode_text(*self._padded(ids[part]))))
                for part in _chunks(len(ids), PAIRS_PER_PASS)
            ]
        embeddings = self._joined(rows)
        return embeddings[0] if single else embeddings

    def _require(self, asked: str) -> None:
        enough, recipe = NEEDS[asked]
        if not set(enough) & set(self.settings.trained_for):
            trained = " and ".join(self.settings.trained_for) or "nothing"
            raise CapabilityError(
                f"{self.folder} was trained for {trained}, which does not teach `{asked}`. "
                "Fine-tune it: "
                f"triptych train {recipe} --data YOUR_DATA.jsonl --init-from {self.folder}"
            )

    def _autocast(self) -> AbstractContextManager[None]:
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _words(self) -> dict[str, Any]:
        """Return what a generating task must know of the tokenizer."""
        words = self.tokenizer
        return {"cls_id": words.cls_id, "sep_id": words.sep_id, "decode": words.decode}

    def _captioning(self, num_beams: int | None, prompt_length: int) -> Captioning:
        """Return the task with a search that fits the decoder's positions."""
        beam = self.settings.task_config(CaptioningConfig).beam
        room = self.model.config.text.max_positions - prompt_length
        if room < 2:
            raise DataError(f"prompt has {prompt_length} tokens and leaves no room: shorten it")
        longest = min(beam.max_tokens, room)
        beam = replace(beam, max_tokens=longest, min_tokens=min(beam.min_tokens, longest - 1))
        if num_beams is not None:
            beam = replace(beam, num_beams=num_beams)
        return Captioning(self.model, CaptioningConfig(beam=beam), **self._words())

    def _grounding(self) -> Grounding:
        config = self.settings.task_config(GroundingConfig)
        return Grounding(
            self.model,
            config,
            start_id=self.tokenizer.unused_id(config.start_unused),
            first_bin_id=self.tokenizer.unused_id(config.first_bin_unused),
        )

    def _caption_chunk(self, task: Captioning, image: Tensor, prompt_ids: list[int]) -> list[str]:
        start = torch.tensor([prompt_ids], device=self.device).expand(len(image), -1)
        found = beam_search(
            CachedDecoder(self.model.decoder, task.memory({"image": image})),
            start_id=self.tokenizer.cls_id,
            end_id=self.tokenizer.sep_id,
            config=task.config.beam,
            prompt=start if prompt_ids else None,
        )
        return [self.tokenizer.decode([*prompt_ids, *texts[0].token_ids]) for texts in found]

    def _match_chunk(self, images: list[ImageInput], ids: list[list[int]]) -> list[float]:
        """Score pairs; a picture that several texts share is encoded once."""
        distinct = {id(image): image for image in images}
        places = {key: place for place, key in enumerate(distinct)}
        index = torch.tensor([places[id(image)] for image in images], device=self.device)
        pictures = list(distinct.values())
        parts = [self.model.encode_image(chunk).tokens for chunk in self._image_chunks(pictures)]
        text = self.model.encode_text(*self._padded(ids))
        fused = self.model.fuse(ImageFeatures(torch.cat(parts)), text, image_index=index)
        scores = torch.softmax(self.model.match_logits(fused).float(), dim=-1)[:, 1]
        return [float(score) for score in scores]

    def _batch(
        self, images: list[ImageInput], ids: list[list[int]], rows: slice
    ) -> dict[str, Tensor]:
        """Return the keys that `predict` of a task reads."""
        image, sizes = self._prepared(images[rows], rows.start)
        token_ids, text_mask = self._padded(ids[rows])
        return {
            "image": image,
            "image_size_px": torch.tensor(sizes),
            "token_ids": token_ids,
            "text_mask": text_mask,
            "index": torch.arange(len(image)),
        }

    def _image_chunks(self, images: list[ImageInput]) -> Iterator[Tensor]:
        for rows in _chunks(len(images), IMAGES_PER_PASS):
            yield self._prepared(images[rows], rows.start)[0]

    def _prepared(
        self, images: list[ImageInput], first: int
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return (B, 3, S, S) float32 on the device, and original widths and heights in pixels."""
        done = [
            self._transform.apply(read_image(image, f"image {first + number}"))
            for number, image in enumerate(images)
        ]
        pixels = [picture.pixels for picture in done]
        batch = normalise_batch(pixels, self.preprocess.mean, self.preprocess.std)
        return batch.to(self.device), [(picture.width, picture.height) for picture in done]

    def _prompt_ids(self, prompt: str) -> list[int]:
        limit = self.settings.limits.caption
        return self._encode([prompt], "prompt", limit, add_sep=False)[0][1:]

    def _encode_captions(self, texts: list[str]) -> list[list[int]]:
        """Encode texts to match or embed, cleaned as training cleans captions."""
        limits = self.settings.limits
        cleaned = [clean_caption(text, limits.max_words) for text in check_texts(texts, "text")]
        return self._encode(cleaned, "text", limits.caption)

    def _encode(
        self, texts: list[str], what: str, max_tokens: int, *, add_sep: bool = True
    ) -> list[list[int]]:
        """Return `[CLS] pieces [SEP]` of lower-cased texts, as training reads them."""
        plain = [" ".join(text.lower().split()) for text in check_texts(texts, what)]
        id_lists = self.tokenizer.encode(plain, max_tokens=max_tokens, add_sep=add_sep)
        for text, ids in zip(texts, id_lists, strict=True):
            if len(ids) < 2 + add_sep:
                raise DataError(f"{what} {text!r} holds no word that can be read: say it in words")
        return id_lists

    def _joined(self, rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        return np.concatenate([np.zeros((0, self.model.config.proj_dim), np.float32), *rows])

    def _padded(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        token_ids, text_mask = self.tokenizer.pad(ids)
        return token_ids.to(self.device), text_mask.to(self.device)


def load(folder: str | Path, *, device: Device = "auto", precision: Precision = "auto") -> Engine:
    """Load a model folder.

    Args:
        folder: What `triptych train` writes to RUN_FOLDER/model.
        device: "auto" takes the GPU when there is one.
        precision: "auto" is bf16 autocast on a GPU that computes it, fp32 elsewhere.

    Raises:
        CheckpointError: The folder, or a file in it, is missing or does not fit.
    """
    folder = Path(folder)
    parts = read_model(folder)
    has_cuda = torch.cuda.is_available()
    place = torch.device(("cuda" if has_cuda else "cpu") if device == "auto" else device)
    if precision == "auto":
        native = place.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if native else "fp32"
    return Engine(
        parts.model,
        parts.tokenizer,
        preprocess=parts.preprocess,
        settings=parts.settings,
        folder=folder,
        device=place,
        precision=precision,
    )


def _chunks(total: int, size: int) -> Iterator[slice]:
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))


def _numpy(embedding: Tensor) -> NDArray[np.float32]:
    return np.asarray(embedding.float().cpu().numpy(), dtype=np.float32)
