"""A model folder in use: captions, answers, boxes, match scores and embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import DataError
from triptych.core.outputs import ImageFeatures
from triptych.data.caption_cleaning import clean_caption
from triptych.data.collate.base import IdArray, TextCache
from triptych.data.collate.classification import join_pair
from triptych.data.masks import MaskClasses
from triptych.data.transforms.pipeline import ImageTransform
from triptych.evaluation.zero_shot import (
    TEMPLATES,
    class_embeddings,
    class_probabilities,
    prompts,
)
from triptych.generation.sampling import SamplingConfig
from triptych.models.base import VisionLanguageModel, encode_frames, match_pairs
from triptych.serving.captioning import (
    build_captioning,
    draw_of,
    generate_captions,
    refuse_generation,
)
from triptych.serving.classifying import (
    build_classifier,
    check_entailment,
    check_names,
    classifier_probabilities,
    sorted_by_probability,
)
from triptych.serving.inputs import (
    ImageInput,
    append_seen_words,
    as_list,
    broadcast,
    check_one_kind,
    check_texts,
    chunks,
    encode_plain,
    pair_up,
    prepare_images,
    reject_clips,
)
from triptych.serving.loading import LoadedModel, load_model
from triptych.tasks.finetuning.grounding import Grounding, GroundingConfig
from triptych.tasks.finetuning.image_classification import ImageClassification
from triptych.tasks.finetuning.image_text_classification import (
    AnswerClassification,
    ImageTextClassification,
)
from triptych.tasks.finetuning.nlvr2 import NLVR2
from triptych.tasks.finetuning.segmentation import Segmentation
from triptych.tasks.finetuning.text_classification import TextClassification
from triptych.tasks.finetuning.text_generator import GenerationSettings
from triptych.tasks.finetuning.vqa import VQA, VQAConfig

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
Box = tuple[float, float, float, float]
T = TypeVar("T")

IMAGES_PER_PASS = 32
PAIRS_PER_PASS = 128


class Engine:
    """A trained model, ready to be asked.

    Images are paths, PIL images or uint8 arrays, or, but for places in them, clips: paths of video
    files or uint8 arrays (F, H, W, 3). Every method takes one of each or a list, and
    returns one result or a list of them; a single image goes with many texts, and a single text
    with many images. Not safe to be used by two threads at the same time.

    Attributes:
        folder: Where the model was read from.
        model: The network, in evaluation mode.
        tokenizer: Its tokenizer.
        preprocess: How images are prepared.
        settings: What the model was trained for.
        device: Where it computes.
        precision: "fp32", or "bf16" for autocast.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        """Wrap a loaded model; `triptych.load` reads one from a folder."""
        self._loaded = loaded
        self.folder, self.tokenizer, self.preprocess = loaded.folder, loaded.tokenizer, loaded.image
        self.settings, self.device = loaded.settings, loaded.device
        self.precision = loaded.precision
        self.model: VisionLanguageModel = loaded.model.eval()
        self._transform = ImageTransform(loaded.image, train=False)
        self._classifier = build_classifier(loaded)
        if self._classifier is not None:
            self._classifier.modules.to(loaded.device)

    def caption(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        prompt: str | None = None,
        num_beams: int | None = None,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
        generation: GenerationSettings | None = None,
    ) -> str | list[str]:
        """Say what images show.

        Args:
            images: One image or many.
            prompt: Words that each caption must begin with, such as "a photo of". None is the
                model folder's own prompt, if it has one, which is not part of the captions.
            num_beams: Width of the beam search; None is the model folder's own, 5 unless set.
            sampling: Draws the captions, one for each image, in place of the search.
            seed: Seed of the draws; equal calls give equal captions.
            generation: Lengths, length penalty and end of the search; None is the folder's own.

        Raises:
            CapabilityError: The model was trained neither for captioning nor with PrefixLM.
            ConfigError: A number is out of range.
            DataError: An image cannot be read, or the prompt is not usable.
        """
        self._require("caption")
        given, single = as_list(images)
        ids = None if prompt is None else self._prompt_ids(prompt)
        search = generation or GenerationSettings()
        search = search if num_beams is None else replace(search, num_beams=num_beams)
        parts = (self.model, self.tokenizer, self.settings)
        task = build_captioning(*parts, generation=search, prompt_ids=ids)
        draw = draw_of(sampling, seed)
        texts: list[str] = []
        with torch.inference_mode(), self._loaded.autocast():
            for chunk in self._image_chunks(given):
                said = generate_captions(task, chunk, draw)
                texts += [self.tokenizer.decode([*(ids or ()), *text]) for text in said]
        return texts[0] if single else texts

    def answer(
        self,
        images: ImageInput | Sequence[ImageInput],
        questions: str | Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        ocr_words: str | Sequence[str] | None = None,
        object_words: str | Sequence[str] | None = None,
        generation: GenerationSettings | None = None,
    ) -> str | list[str]:
        """Answer questions about images.

        Args:
            images: One image or many.
            questions: One question or many.
            choices: The answers to choose from; None is the model folder's own list, if it has
                one, and free words otherwise.
            ocr_words: Words that were read in the image, one text a question, or one for all.
            object_words: Names of what the image holds, likewise.
            generation: How answers are generated, unless from a list.

        Raises:
            CapabilityError: The model was not fine-tuned for answering.
            DataError: An image cannot be read, or a question or a choice is empty.
        """
        self._require("answer")
        given, asked, single = broadcast(images, questions, "question")
        if isinstance(self._classifier, AnswerClassification):
            if choices is not None or ocr_words is not None or object_words is not None:
                raise DataError(f"{self.folder} answers from its own list and reads no other words")
            refuse_generation(generation, self.folder)
            said = [next(iter(shares)) for shares in self._labels(given, asked, "question")]
            return said[0] if single else said
        ids = self._encode(asked, "question", self.settings.limits.question)
        if ocr_words is not None or object_words is not None:
            limit = self.settings.limits.question
            ids = append_seen_words(self.tokenizer, ids, ocr_words, object_words, limit)
        config = self.settings.task_config(VQAConfig)
        if choices is not None:
            config = replace(config, answer_list=tuple(check_texts(list(choices), "choice")))
        task = VQA(self._loaded.model, config, self.tokenizer)
        if generation is not None:
            task.generate_with(generation)
        texts: list[str] = []
        with torch.inference_mode(), self._loaded.autocast():
            for rows in chunks(len(given), IMAGES_PER_PASS):
                texts += task.predict(self._batch(given, ids, rows)).texts or []
        return texts[0] if single else texts

    def ground(
        self, images: ImageInput | Sequence[ImageInput], phrases: str | Sequence[str]
    ) -> Box | list[Box]:
        """Find what phrases refer to.

        Returns:
            x0, y0, x1, y1 in pixels of the original upright image, one box a phrase.

        Raises:
            CapabilityError: The model was not fine-tuned for grounding.
            DataError: An image cannot be read, or a phrase is empty.
        """
        self._require("ground")
        given, asked, single = broadcast(images, phrases, "phrase")
        reject_clips(given)
        ids = self._encode(asked, "phrase", self.settings.limits.phrase)
        task = self._grounding()
        boxes: list[Box] = []
        with torch.inference_mode(), self._loaded.autocast():
            for rows in chunks(len(given), IMAGES_PER_PASS):
                found = task.predict(self._batch(given, ids, rows)).boxes_xyxy
                assert found is not None
                boxes += [(b[0], b[1], b[2], b[3]) for b in found.tolist()]
        return boxes[0] if single else boxes

    def match(
        self, images: ImageInput | Sequence[ImageInput], texts: str | Sequence[str]
    ) -> float | list[float]:
        """Return the probability, 0 to 1, that a text describes an image (ITM head).

        Raises:
            CapabilityError: The model has no trained matching head.
            DataError: An image cannot be read, or a text is empty.
        """
        self._require("match")
        given, said, single = broadcast(images, texts, "text")
        ids = self._encode_captions(said)
        scores: list[float] = []
        with torch.inference_mode(), self._loaded.autocast():
            for rows in chunks(len(given), PAIRS_PER_PASS):
                scores += self._match_chunk(given[rows], ids[rows])
        return scores[0] if single else scores

    def judge(
        self,
        first: ImageInput | Sequence[ImageInput],
        second: ImageInput | Sequence[ImageInput],
        statements: str | Sequence[str],
    ) -> float | list[float]:
        """Return the probability, 0 to 1, that a statement is true of two images.

        Args:
            first: The left image, or many.
            second: The right image, or as many.
            statements: One statement for each pair; one for all, or many of one pair.

        Raises:
            CapabilityError: The model was not fine-tuned with mplug.nlvr2.
            DataError: An image cannot be read, a statement is empty, or the numbers differ.
        """
        self._require("judge")
        task = self._classifier
        assert isinstance(task, NLVR2)
        firsts, seconds, said, single = pair_up(first, second, statements)
        reject_clips([*firsts, *seconds])
        ids = [row.tolist() for row in self._classifier_ids(said, "statement")]
        found: list[float] = []
        with torch.inference_mode(), self._loaded.autocast():
            for rows in chunks(len(said), IMAGES_PER_PASS):
                both = self._prepared([*firsts[rows], *seconds[rows]], rows.start)[0]
                batch = dict(zip(("token_ids", "text_mask"), self._padded(ids[rows]), strict=True))
                batch["image"] = both.view(2, -1, *both.shape[1:]).transpose(0, 1)
                found += torch.softmax(task.pair_scores(batch), dim=1)[:, 1].tolist()
        return found[0] if single else found

    def entail(
        self,
        images: ImageInput | Sequence[ImageInput],
        hypotheses: str | Sequence[str],
        *,
        premises: str | Sequence[str] | None = None,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Classify hypotheses about images: entailment, neutral or contradiction.

        Args:
            images: One image or many.
            hypotheses: One hypothesis or many.
            premises: What is known of each image in words, for a model that reads it.

        Returns:
            Probabilities by label, the likeliest first.

        Raises:
            CapabilityError: The model was not fine-tuned with mplug.snli_ve, or reads no premises.
            DataError: An image cannot be read, or a text is empty.
        """
        self._require("entail")
        task = self._classifier
        assert isinstance(task, ImageTextClassification)
        check_entailment(task, premises is not None, self.folder)
        given, said, single = broadcast(images, hypotheses, "hypothesis")
        ids = self._classifier_ids(said, "hypothesis")
        if premises is not None:
            known = broadcast(given, premises, "premise")[1]
            before = self._classifier_ids(known, "premise")
            limit = task.config.max_text_tokens
            ids = [join_pair(*pair, limit) for pair in zip(before, ids, strict=True)]
        found = self._shares(given, [row.tolist() for row in ids])
        return found[0] if single else found

    def classify(
        self,
        images: ImageInput | Sequence[ImageInput],
        labels: Sequence[str] | None = None,
        *,
        templates: Sequence[str] = TEMPLATES,
    ) -> dict[str, float] | list[dict[str, float]]:
        """Say which of some classes images show.

        A model that was fine-tuned for it has classes of its own; one that was trained with a
        contrastive objective needs no more than their names.

        Args:
            images: One image or many.
            labels: Names of the classes, two or more; None for a model with its own.
            templates: Sentences about a class; `{}` is its name. A class is their mean.

        Returns:
            Probabilities by label, the likeliest first; of names, the softmax of 100 times the
            cosines.

        Raises:
            CapabilityError: The model was trained for neither.
            DataError: An image cannot be read, or the labels are absent or unclear.
        """
        self._require("classify")
        given, single = as_list(images)
        task = self._classifier
        if isinstance(task, ImageClassification):
            if labels is not None:
                raise DataError(f"{self.folder} has its own classes: omit the labels")
            own: list[dict[str, float]] = []
            for batch in self._image_batches(given):
                own += classifier_probabilities(task, task.predict(batch))
            return own[0] if single else own
        if labels is None:
            raise DataError(f"{self.folder} has no classes of its own: name some as labels")
        check_names(labels, templates)
        sentences = [text for row in prompts(labels, templates) for text in row]
        rows = torch.from_numpy(self.embed_texts(sentences)).view(len(labels), len(templates), -1)
        embedded = torch.from_numpy(np.asarray(self.embed_images(given)))
        shares = class_probabilities(embedded, class_embeddings(rows)).tolist()
        found = [sorted_by_probability(labels, row) for row in shares]
        return found[0] if single else found

    def segment(
        self, images: ImageInput | Sequence[ImageInput]
    ) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Return the class of each pixel of images.

        Returns:
            (H, W) uint8 an image, at its own size: positions in `segment_classes`.

        Raises:
            CapabilityError: The model was not fine-tuned for segmentation.
            DataError: An image cannot be read.
        """
        task = self._segmentation()
        given, single = as_list(images)
        found: list[NDArray[np.uint8]] = []
        for batch in self._image_batches(given):
            found += task.predict(batch).scores["mask"]
        return found[0] if single else found

    @property
    def segment_classes(self) -> MaskClasses:
        """What the model's masks show, and how masks that it was trained on number it."""
        return self._segmentation().config.mask_classes()

    def label(
        self, images: ImageInput | Sequence[ImageInput], texts: str | Sequence[str]
    ) -> dict[str, float] | list[dict[str, float]]:
        """Classify pairs of an image and a text with the classifier that was fine-tuned for it.

        Returns:
            Probabilities by label, the likeliest first.

        Raises:
            CapabilityError: The model was not fine-tuned with classify.pairs.
            DataError: An image cannot be read, or a text is empty.
        """
        self._require("label")
        given, said, single = broadcast(images, texts, "text")
        found = self._labels(given, said, "text")
        return found[0] if single else found

    def label_texts(
        self, texts: str | Sequence[str], seconds: str | Sequence[str] | None = None
    ) -> dict[str, float] | list[dict[str, float]]:
        """Classify texts, or pairs of texts, with the classifier that was fine-tuned for it.

        Args:
            texts: One text or many.
            seconds: The second text of each pair, where the model was trained on pairs.

        Returns:
            Probabilities by label, the likeliest first; of a regression {"value": the number}.

        Raises:
            CapabilityError: The model was not fine-tuned with classify.texts.
            DataError: A text is empty, or the numbers of texts differ.
        """
        self._require("label_texts")
        assert isinstance(self._classifier, TextClassification)
        given, single = as_list(texts)
        ids = self._classifier_ids(given, "text")
        if seconds is not None:
            others = self._classifier_ids(as_list(seconds)[0], "second text")
            if len(others) != len(ids):
                raise DataError(f"{len(ids)} texts and {len(others)} second texts: give one each")
            limit = self._classifier.config.max_text_tokens
            ids = [join_pair(*pair, limit) for pair in zip(ids, others, strict=True)]
        found: list[dict[str, float]] = []
        with torch.inference_mode(), self._loaded.autocast():
            for rows in chunks(len(ids), PAIRS_PER_PASS):
                token_ids, text_mask = self._padded([row.tolist() for row in ids[rows]])
                batch = {"token_ids": token_ids, "text_mask": text_mask}
                batch["index"] = torch.arange(len(token_ids))
                found += classifier_probabilities(self._classifier, self._classifier.predict(batch))
        return found[0] if single else found

    def embed_images(self, images: ImageInput | Sequence[ImageInput]) -> NDArray[np.float32]:
        """Return (n, E) float32 embeddings of length 1; (E,) for a single image.

        The dot product with a text's embedding is their similarity.

        Raises:
            CapabilityError: The model was not trained with a contrastive objective.
            DataError: An image cannot be read.
        """
        self._require("embed")
        given, single = as_list(images)
        with torch.inference_mode(), self._loaded.autocast():
            rows = [
                _numpy(self.model.embed_image(encode_frames(self.model, chunk)))
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
        rows = [self._embedded_texts(ids[part]) for part in chunks(len(ids), PAIRS_PER_PASS)]
        embeddings = self._joined(rows)
        return embeddings[0] if single else embeddings

    def _labels(
        self, images: list[ImageInput], texts: list[str], what: str
    ) -> list[dict[str, float]]:
        """Return the fused classifier's probabilities of each pair, the likeliest first."""
        return self._shares(images, [row.tolist() for row in self._classifier_ids(texts, what)])

    def _shares(self, images: list[ImageInput], ids: list[list[int]]) -> list[dict[str, float]]:
        task = self._classifier
        assert isinstance(task, (AnswerClassification, ImageTextClassification))
        found: list[dict[str, float]] = []
        with torch.inference_mode(), self._loaded.autocast():
            for rows in chunks(len(images), IMAGES_PER_PASS):
                found += classifier_probabilities(
                    task, task.predict(self._batch(images, ids, rows))
                )
        return found

    def _classifier_ids(self, texts: Sequence[str], what: str) -> list[IdArray]:
        """Encode texts as the classifier's training does."""
        assert self._classifier is not None
        config: Any = self._classifier.config  # type: ignore[attr-defined]
        encode = TextCache(self.tokenizer, config.max_text_tokens)
        found = [encode(text).ids for text in check_texts(list(texts), what)]
        for text, ids in zip(texts, found, strict=True):
            if len(ids) <= 2:
                raise DataError(f"{what} {text!r} holds no word that can be read: say it in words")
        return found

    def _require(self, asked: str) -> None:
        self._loaded.check_trained(asked)

    def _segmentation(self) -> Segmentation:
        self._require("segment")
        assert isinstance(self._classifier, Segmentation)
        return self._classifier

    def _image_batches(self, images: list[ImageInput]) -> Iterator[dict[str, Tensor]]:
        """Yield what `predict` reads of images alone, in the context for a forward pass."""
        reject_clips(images)
        with torch.inference_mode(), self._loaded.autocast():
            for rows in chunks(len(images), IMAGES_PER_PASS):
                image, sizes = self._prepared(images[rows], rows.start)
                index = torch.arange(len(image))
                yield {"image": image, "image_size_px": torch.tensor(sizes), "index": index}

    def _grounding(self) -> Grounding:
        config = self.settings.task_config(GroundingConfig)
        return Grounding(
            self._loaded.model,
            config,
            start_id=self.tokenizer.unused_id(config.start_unused),
            first_bin_id=self.tokenizer.unused_id(config.first_bin_unused),
        )

    def _match_chunk(self, images: list[ImageInput], ids: list[list[int]]) -> list[float]:
        """Score pairs; an image that several texts share is encoded once."""
        distinct = {id(image): image for image in images}
        index_of = {key: number for number, key in enumerate(distinct)}
        index = torch.tensor([index_of[id(image)] for image in images], device=self.device)
        unique = list(distinct.values())
        check_one_kind(unique)
        parts = [encode_frames(self.model, chunk) for chunk in self._image_chunks(unique)]
        text = self.model.encode_text(*self._padded(ids))
        logits = match_pairs(self.model, ImageFeatures.join(parts), text, index)
        scores = torch.softmax(logits.float(), dim=-1)[:, 1]
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
        for rows in chunks(len(images), IMAGES_PER_PASS):
            yield self._prepared(images[rows], rows.start)[0]

    def _prepared(
        self, images: list[ImageInput], first: int
    ) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return what `prepare_images` does, on the device."""
        batch, sizes = prepare_images(images, first, self._transform)
        return batch.to(self.device), sizes

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
        return encode_plain(self.tokenizer, texts, what, max_tokens, add_sep=add_sep)

    def _embedded_texts(self, ids: list[list[int]]) -> NDArray[np.float32]:
        with torch.inference_mode(), self._loaded.autocast():
            return _numpy(self.model.embed_text(self.model.encode_text(*self._padded(ids))))

    def _joined(self, rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return rows of embeddings as one array; (0, E) if there are none."""
        return np.concatenate(rows) if rows else self._embedded_texts([[self.tokenizer.cls_id]])[:0]

    def _padded(self, ids: list[list[int]]) -> tuple[Tensor, Tensor]:
        token_ids, text_mask = self.tokenizer.pad(ids)
        return token_ids.to(self.device), text_mask.to(self.device)


def load(folder: str | Path, *, device: Device = "auto", precision: Precision = "auto") -> Engine:
    """Load a model folder.

    Args:
        folder: What `triptych train` writes to RUN_FOLDER/model; or a folder of transformers with
            a FLAVA model, or its id on the hub, such as "facebook/flava-full".
        device: "auto" takes the GPU when there is one.
        precision: "auto" is bf16 autocast where the processor has instructions for it, else fp32.

    Raises:
        CheckpointError: The folder, or a file in it, is missing or does not fit.
        ConfigError: There is no such device.
    """
    return Engine(load_model(folder, device=device, precision=precision))


def _numpy(embedding: Tensor) -> NDArray[np.float32]:
    return np.asarray(embedding.float().cpu().numpy(), dtype=np.float32)
