"""A model folder in use: captions, answers, boxes, match scores and embeddings."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from triptych.core.errors import DataError
from triptych.core.outputs import ImageFeatures, Predictions
from triptych.data.masks import MaskClasses
from triptych.data.transforms.pipeline import ImageTransform
from triptych.evaluation.zero_shot import TEMPLATES, class_probabilities
from triptych.generation.sampling import SamplingConfig
from triptych.models.base import VisionLanguageModel, encode_frames, match_pairs
from triptych.serving.batches import IMAGES_PER_PASS, Ids, Images, OnError, Texts
from triptych.serving.captioning import (
    build_captioning,
    draw_of,
    generate_captions,
    refuse_generation,
)
from triptych.serving.classifying import (
    build_classifier,
    check_entailment,
    classifier_probabilities,
    embed_classes,
    sorted_by_probability,
)
from triptych.serving.inputs import (
    ImageInput,
    append_seen_words,
    as_list,
    broadcast,
    check_texts,
    chunks,
    is_clip,
    pair_up,
    reject_clips,
    transform_image,
)
from triptych.serving.loading import LoadedModel, load_model
from triptych.tasks.finetuning.grounding import GroundingConfig
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
from triptych.train.task import Task

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]
Box = tuple[float, float, float, float]

PAIRS_PER_PASS = 128


class Engine:
    """A trained model, ready to be asked.

    Images are paths, PIL images or uint8 arrays, or, but for places in them, clips: paths of video
    files or uint8 arrays (F, H, W, 3). Every method takes one of each or a list, and
    returns one result or a list of them; a single image goes with many texts, and a single text
    with many images. Threads may share an engine: they read images side by side and compute in
    turn, and get the answers that one thread would get.

    Attributes:
        folder: Where the model was read from.
        model: The network, in evaluation mode.
        tokenizer: Its tokenizer.
        preprocess: How images are prepared.
        settings: What the model was trained for.
        device: Where it computes.
        precision: "fp32", or "bf16" for autocast.
        classifier: The task whose classes it was fine-tuned for, if there is one.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        """Wrap a loaded model; `triptych.load` reads one from a folder."""
        self._loaded = loaded
        self.folder, self.tokenizer, self.preprocess = loaded.folder, loaded.tokenizer, loaded.image
        self.settings, self.device = loaded.settings, loaded.device
        self.precision = loaded.precision
        self.model: VisionLanguageModel = loaded.model.eval()
        self._transform = ImageTransform(loaded.image, train=False)
        self.classifier = build_classifier(loaded)
        if self.classifier is not None:
            self.classifier.modules.to(loaded.device)
        self._texts = Texts(loaded, self.classifier)
        self._turn = threading.Lock()

    def caption(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        prompt: str | None = None,
        num_beams: int | None = None,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
        generation: GenerationSettings | None = None,
        on_error: OnError = "raise",
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
            on_error: What is done about an image that cannot be used; see `OnError`.

        Raises:
            CapabilityError: The model was trained neither for captioning nor with PrefixLM.
            ConfigError: A number is out of range.
            DataError: An image cannot be read, or the prompt is not usable.
        """
        self.check_trained("caption")
        given, single = as_list(images)
        reader = self._reader(given, on_error)
        ids = None if prompt is None else self._texts.prompt(prompt)
        search = generation or GenerationSettings()
        search = search if num_beams is None else replace(search, num_beams=num_beams)
        parts = (self.model, self.tokenizer, self.settings)
        task = build_captioning(*parts, generation=search, prompt_ids=ids)
        draw = draw_of(sampling, seed)
        texts: list[str] = []
        for _, batch in reader.parts():
            with self._computing():
                said = generate_captions(task, batch["image"], draw)
            texts += [self.tokenizer.decode([*(ids or ()), *text]) for text in said]
        return reader.result(texts, single)

    def answer(
        self,
        images: ImageInput | Sequence[ImageInput],
        questions: str | Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        ocr_words: str | Sequence[str] | None = None,
        object_words: str | Sequence[str] | None = None,
        generation: GenerationSettings | None = None,
        on_error: OnError = "raise",
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
            on_error: What is done about an image that cannot be used; see `OnError`.

        Raises:
            CapabilityError: The model was not fine-tuned for answering.
            DataError: An image cannot be read, or a question or a choice is empty.
        """
        self.check_trained("answer")
        given, asked, single = broadcast(images, questions, "question")
        reader = self._reader(given, on_error)
        if isinstance(self.classifier, AnswerClassification):
            if choices is not None or ocr_words is not None or object_words is not None:
                raise DataError(f"{self.folder} answers from its own list and reads no other words")
            refuse_generation(generation, self.folder)
            shares = self._shares(reader, self._texts.classified(asked, "question"))
            return reader.result([next(iter(row)) for row in shares], single)
        ids = self._texts.questions(asked)
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
        for predictions in self._predicted(task, reader, ids):
            texts += predictions.texts or []
        return reader.result(texts, single)

    def ground(
        self,
        images: ImageInput | Sequence[ImageInput],
        phrases: str | Sequence[str],
        *,
        on_error: OnError = "raise",
    ) -> Box | list[Box]:
        """Find what phrases refer to.

        Args:
            images: One image or many.
            phrases: One phrase or many.
            on_error: What is done about an image that cannot be used; see `OnError`.

        Returns:
            x0, y0, x1, y1 in pixels of the original upright image, one box a phrase.

        Raises:
            CapabilityError: The model was not fine-tuned for grounding.
            DataError: An image cannot be read, or a phrase is empty.
        """
        self.check_trained("ground")
        given, asked, single = broadcast(images, phrases, "phrase")
        reject_clips(given)
        reader = self._reader(given, on_error)
        ids = self._texts.phrases(asked)
        task = self._loaded.bind(self.settings.task_config(GroundingConfig))
        boxes: list[Box] = []
        for predictions in self._predicted(task, reader, ids):
            assert predictions.boxes_xyxy is not None
            boxes += [(b[0], b[1], b[2], b[3]) for b in predictions.boxes_xyxy.tolist()]
        return reader.result(boxes, single)

    def match(
        self,
        images: ImageInput | Sequence[ImageInput],
        texts: str | Sequence[str],
        *,
        on_error: OnError = "raise",
    ) -> float | list[float]:
        """Return the probability, 0 to 1, that a text describes an image (ITM head).

        Args:
            images: One image or many.
            texts: One text or many.
            on_error: What is done about an image that cannot be used; see `OnError`.

        Raises:
            CapabilityError: The model has no trained matching head.
            DataError: An image cannot be read, or a text is empty.
        """
        self.check_trained("match")
        given, said, single = broadcast(images, texts, "text")
        reader = self._reader(given, on_error)
        ids = self._texts.captions(said)
        scores: list[float] = []
        for rows in chunks(len(given), PAIRS_PER_PASS):
            first_of, index = reader.distinct(rows)
            parts = []
            for part in chunks(len(first_of), IMAGES_PER_PASS):
                image = reader.prepared(first_of[part])[0]
                with self._computing():
                    parts.append(encode_frames(self.model, image))
            with self._computing():
                text = self.model.encode_text(**self._texts.padded(ids[rows]))
                pairs = torch.tensor(index, device=self.device)
                logits = match_pairs(self.model, ImageFeatures.join(parts), text, pairs)
                scores += torch.softmax(logits.float(), dim=-1)[:, 1].tolist()
            reader.share(first_of, rows, index)
        return reader.result(scores, single)

    def judge(
        self,
        first: ImageInput | Sequence[ImageInput],
        second: ImageInput | Sequence[ImageInput],
        statements: str | Sequence[str],
        *,
        on_error: OnError = "raise",
    ) -> float | list[float]:
        """Return the probability, 0 to 1, that a statement is true of two images.

        Args:
            first: The left image, or many.
            second: The right image, or as many.
            statements: One statement for each pair; one for all, or many of one pair.
            on_error: What is done about an image that cannot be used; see `OnError`.

        Raises:
            CapabilityError: The model was not fine-tuned with mplug.nlvr2.
            DataError: An image cannot be read, a statement is empty, or the numbers differ.
        """
        self.check_trained("judge")
        task = self.classifier
        assert isinstance(task, NLVR2)
        firsts, seconds, said, single = pair_up(first, second, statements)
        reject_clips([*firsts, *seconds])
        readers = [self._reader(side, on_error) for side in (firsts, seconds)]
        ids = self._texts.classified(said, "statement")
        found: list[Any] = []
        for rows in chunks(len(said), IMAGES_PER_PASS):
            both = [reader.prepared(range(rows.start, rows.stop))[0] for reader in readers]
            batch = self._texts.padded(ids[rows]) | {"image": torch.stack(both, dim=1)}
            with self._computing():
                found += torch.softmax(task.pair_scores(batch), dim=1)[:, 1].tolist()
        return readers[1].result(readers[0].result(found, False), single)

    def entail(
        self,
        images: ImageInput | Sequence[ImageInput],
        hypotheses: str | Sequence[str],
        *,
        premises: str | Sequence[str] | None = None,
        on_error: OnError = "raise",
    ) -> dict[str, float] | list[dict[str, float]]:
        """Classify hypotheses about images: entailment, neutral or contradiction.

        Args:
            images: One image or many.
            hypotheses: One hypothesis or many.
            premises: What is known of each image in words, for a model that reads it.
            on_error: What is done about an image that cannot be used; see `OnError`.

        Returns:
            Probabilities by label, the likeliest first.

        Raises:
            CapabilityError: The model was not fine-tuned with mplug.snli_ve, or reads no premises.
            DataError: An image cannot be read, or a text is empty.
        """
        self.check_trained("entail")
        check_entailment(self.classifier, premises is not None, self.folder)
        given, said, single = broadcast(images, hypotheses, "hypothesis")
        reader = self._reader(given, on_error)
        ids = self._texts.classified(said, "hypothesis")
        if premises is not None:
            known = broadcast(given, premises, "premise")[1]
            ids = self._texts.joined(self._texts.classified(known, "premise"), ids)
        return reader.result(self._shares(reader, ids), single)

    def classify(
        self,
        images: ImageInput | Sequence[ImageInput],
        labels: Sequence[str] | None = None,
        *,
        templates: Sequence[str] = TEMPLATES,
        on_error: OnError = "raise",
    ) -> dict[str, float] | list[dict[str, float]]:
        """Say which of some classes images show.

        A model that was fine-tuned for it has classes of its own; one that was trained with a
        contrastive objective needs no more than their names.

        Args:
            images: One image or many.
            labels: Names of the classes, two or more; None for a model with its own.
            templates: Sentences about a class; `{}` is its name. A class is their mean.
            on_error: What is done about an image that cannot be used; see `OnError`.

        Returns:
            Probabilities by label, the likeliest first; of names, the softmax of 100 times the
            cosines.

        Raises:
            CapabilityError: The model was trained for neither.
            DataError: An image cannot be read, or the labels are absent or unclear.
        """
        self.check_trained("classify")
        given, single = as_list(images)
        task = self.classifier
        if isinstance(task, ImageClassification):
            if labels is not None:
                raise DataError(f"{self.folder} has its own classes: omit the labels")
            reject_clips(given)
            reader = self._reader(given, on_error)
            own: list[dict[str, float]] = []
            for predictions in self._predicted(task, reader):
                own += classifier_probabilities(task, predictions)
            return reader.result(own, single)
        if labels is None:
            raise DataError(f"{self.folder} has no classes of its own: name some as labels")
        classes = embed_classes(labels, templates, self.embed_texts)
        reader = self._reader(given, on_error)
        embedded = torch.from_numpy(self._embedded(reader))
        shares = class_probabilities(embedded, classes).tolist()
        return reader.result([sorted_by_probability(labels, row) for row in shares], single)

    def segment(
        self, images: ImageInput | Sequence[ImageInput], *, on_error: OnError = "raise"
    ) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Return the class of each pixel of images.

        Args:
            images: One image or many.
            on_error: What is done about an image that cannot be used; see `OnError`.

        Returns:
            (H, W) uint8 an image, at its own size: positions in `segment_classes`.

        Raises:
            CapabilityError: The model was not fine-tuned for segmentation.
            DataError: An image cannot be read.
        """
        task = self._segmentation()
        given, single = as_list(images)
        reject_clips(given)
        reader = self._reader(given, on_error)
        found: list[NDArray[np.uint8]] = []
        for predictions in self._predicted(task, reader):
            found += predictions.scores["mask"]
        return reader.result(found, single)

    @property
    def segment_classes(self) -> MaskClasses:
        """What the model's masks show, and how masks that it was trained on number it."""
        return self._segmentation().config.mask_classes()

    def label(
        self,
        images: ImageInput | Sequence[ImageInput],
        texts: str | Sequence[str],
        *,
        on_error: OnError = "raise",
    ) -> dict[str, float] | list[dict[str, float]]:
        """Classify pairs of an image and a text with the classifier that was fine-tuned for it.

        Args:
            images: One image or many.
            texts: One text or many.
            on_error: What is done about an image that cannot be used; see `OnError`.

        Returns:
            Probabilities by label, the likeliest first.

        Raises:
            CapabilityError: The model was not fine-tuned with classify.pairs.
            DataError: An image cannot be read, or a text is empty.
        """
        self.check_trained("label")
        given, said, single = broadcast(images, texts, "text")
        reader = self._reader(given, on_error)
        return reader.result(self._shares(reader, self._texts.classified(said, "text")), single)

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
        self.check_trained("label_texts")
        assert isinstance(self.classifier, TextClassification)
        given, single = as_list(texts)
        ids = self._texts.classified(given, "text")
        if seconds is not None:
            others = self._texts.classified(as_list(seconds)[0], "second text")
            if len(others) != len(ids):
                raise DataError(f"{len(ids)} texts and {len(others)} second texts: give one each")
            ids = self._texts.joined(ids, others)
        found: list[dict[str, float]] = []
        for rows in chunks(len(ids), PAIRS_PER_PASS):
            batch = self._texts.padded(ids[rows])
            batch["index"] = torch.arange(len(ids[rows]))
            with self._computing():
                found += classifier_probabilities(self.classifier, self.classifier.predict(batch))
        return found[0] if single else found

    def embed_images(
        self, images: ImageInput | Sequence[ImageInput], *, on_error: OnError = "raise"
    ) -> NDArray[np.float32]:
        """Return (n, E) float32 embeddings of length 1; (E,) for a single image.

        The dot product with a text's embedding is their similarity.

        Args:
            images: One image or many.
            on_error: What is done about an image that cannot be used; see `OnError`.

        Raises:
            CapabilityError: The model was not trained with a contrastive objective.
            DataError: An image cannot be read.
        """
        self.check_trained("embed")
        given, single = as_list(images)
        embeddings = self._embedded(self._reader(given, on_error))
        return embeddings[0] if single else embeddings

    def embed_texts(self, texts: str | Sequence[str]) -> NDArray[np.float32]:
        """Return (n, E) float32 embeddings of length 1; (E,) for a single text.

        Raises:
            CapabilityError: The model was not trained with a contrastive objective.
            DataError: A text is empty.
        """
        self.check_trained("embed")
        given, single = as_list(texts)
        ids = self._texts.captions(given)
        rows = [self._embedded_texts(ids[part]) for part in chunks(len(ids), PAIRS_PER_PASS)]
        embeddings = self._joined(rows)
        return embeddings[0] if single else embeddings

    def prepare(self, image: ImageInput) -> ImageInput:
        """Read and resize an image ahead of a call, in any thread; a clip is returned as it is.

        Raises:
            DataError: It cannot be read.
        """
        if is_clip(image):
            return image
        return replace(transform_image(image, self._transform, "image"), region=None)

    def check_trained(self, asked: str) -> None:
        """Raise a CapabilityError, which names a recipe, unless the model was trained for it.

        Args:
            asked: One of these methods, or "embed".
        """
        self._loaded.check_trained(asked)

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute as in a forward pass, and alone: threads take turns."""
        with self._turn, torch.inference_mode(), self._loaded.autocast():
            yield

    def _reader(self, images: Sequence[ImageInput], on_error: OnError) -> Images:
        return Images(self._loaded, self._transform, images, on_error)

    def _predicted(
        self, task: Task, reader: Images, ids: Sequence[Ids] | None = None
    ) -> Iterator[Predictions]:
        """Yield what a task predicts of images, or of pairs of an image and a text, by parts."""
        for rows, batch in reader.parts():
            texts = {} if ids is None else self._texts.padded(ids[rows])
            with self._computing():
                predictions = task.predict(batch | texts)
            yield predictions

    def _shares(self, reader: Images, ids: Sequence[Ids]) -> list[dict[str, float]]:
        """Return the fused classifier's probabilities of each pair, the likeliest first."""
        task = self.classifier
        assert isinstance(task, (AnswerClassification, ImageTextClassification))
        found: list[dict[str, float]] = []
        for predictions in self._predicted(task, reader, ids):
            found += classifier_probabilities(task, predictions)
        return found

    def _segmentation(self) -> Segmentation:
        self.check_trained("segment")
        assert isinstance(self.classifier, Segmentation)
        return self.classifier

    def _embedded(self, reader: Images) -> NDArray[np.float32]:
        """Return embeddings of images (n, E); NaN for those that were skipped."""
        rows = []
        for _, batch in reader.parts():
            with self._computing():
                features = encode_frames(self.model, batch["image"])
                rows.append(_numpy(self.model.embed_image(features)))
        embeddings = self._joined(rows)
        embeddings[sorted(reader.skipped)] = np.nan
        return embeddings

    def _embedded_texts(self, ids: Sequence[Ids]) -> NDArray[np.float32]:
        with self._computing():
            return _numpy(self.model.embed_text(self.model.encode_text(**self._texts.padded(ids))))

    def _joined(self, rows: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return rows of embeddings as one array; (0, E) if there are none."""
        return np.concatenate(rows) if rows else self._embedded_texts([[self.tokenizer.cls_id]])[:0]


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
    return Engine(load_model(folder, device=device, precision=precision, rounded=True))


def _numpy(embedding: Tensor) -> NDArray[np.float32]:
    return np.asarray(embedding.float().cpu().numpy(), dtype=np.float32)
