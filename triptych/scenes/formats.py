"""Scenes as the annotation files of the public datasets: values only, no files."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.core.errors import DataError
from triptych.scenes.clips import FRAMES_PER_S as CLIP_FRAMES_PER_S
from triptych.scenes.clips import NUM_FRAMES, Clip, ask_about_clip, ask_about_looks, caption_clip
from triptych.scenes.config import SceneConfig
from triptych.scenes.language import caption_variants, refer_variants
from triptych.scenes.layout import image_name
from triptych.scenes.questions import (
    NLI_LABELS,
    NUM_ANSWERS,
    NUM_FORMS,
    ask_variants,
    hypothesize,
    state_about_two,
)
from triptych.scenes.world import Scene, generate_scene, scene_random

Json = dict[str, Any]

_INFO: Json = {"description": "Triptych's built-in world", "version": "1", "year": 2024}
_TRIES = 400


@dataclass(frozen=True, slots=True)
class SplitContent:
    """The scenes of one split and how their images are called.

    Attributes:
        config: The world.
        split: Name of the split.
        first_image_id: Id of the first image; ids count on from it.
        scenes: One an image.
        captions: The captions of each image.
    """

    config: SceneConfig
    split: str
    first_image_id: int
    scenes: list[Scene]
    captions: list[list[str]]

    @classmethod
    def draw(
        cls,
        config: SceneConfig,
        split: str,
        first_image_id: int,
        num_images: int,
        captions_per_image: int,
    ) -> SplitContent:
        """Draw the scenes and captions of a split."""
        scenes = [generate_scene(config, split, index) for index in range(num_images)]
        captions = []
        for scene in scenes:
            rng = scene_random(config, split, scene.index, "captions")
            captions.append(caption_variants(scene, config, captions_per_image, rng))
        return cls(config, split, first_image_id, scenes, captions)

    def image_id(self, index: int) -> int:
        """Return the id of the image of a scene; unique over all splits."""
        return self.first_image_id + index

    def file_name(self, index: int) -> str:
        """Return the name of the image file of a scene."""
        return image_name(self.split, self.image_id(index))


def truth_lines(content: SplitContent) -> Iterator[Json]:
    """Yield the ground truth of each scene, with boxes in pixels."""
    for scene, captions in zip(content.scenes, content.captions):
        yield {
            "image_id": content.image_id(scene.index),
            "file_name": content.file_name(scene.index),
            "captions": captions,
            **scene.as_dict(content.config.image_size),
        }


def karpathy_json(contents: Sequence[SplitContent]) -> Json:
    """Return the captions of all splits as one Karpathy file."""
    images: list[Json] = []
    num_sentences = 0
    for content in contents:
        for index, captions in enumerate(content.captions):
            number = len(images)
            sentences = _karpathy_sentences(captions, number, num_sentences)
            num_sentences += len(sentences)
            entry: Json = {"filepath": content.split, "filename": content.file_name(index)}
            entry |= {"imgid": number, "cocoid": content.image_id(index), "split": content.split}
            entry["sentids"] = [sentence["sentid"] for sentence in sentences]
            images.append(entry | {"sentences": sentences})
    return {"images": images, "dataset": "scenes"}


def coco_captions_json(content: SplitContent) -> Json:
    """Return the captions of a split as COCO's official file."""
    annotations = []
    for index, captions in enumerate(content.captions):
        image_id = content.image_id(index)
        for number, caption in enumerate(captions):
            ids = {"id": image_id * 10 + number, "image_id": image_id}
            annotations.append(ids | {"caption": caption})
    images = _coco_images(content, "")
    return {"info": _INFO, "licenses": [], "images": images, "annotations": annotations}


def vqa_json(content: SplitContent, questions_per_image: int) -> tuple[Json, Json]:
    """Return the questions and the annotations of a split as VQAv2's two files."""
    questions, annotations = [], []
    for scene in content.scenes:
        image_id = content.image_id(scene.index)
        rng = scene_random(content.config, content.split, scene.index, "questions")
        asked = ask_variants(scene, content.config, questions_per_image, rng)
        for number, question in enumerate(asked):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + number}
            questions.append({**ids, "question": question.text})
            answers = [
                {"answer": question.answer, "answer_confidence": "yes", "answer_id": answer_id}
                for answer_id in range(1, NUM_ANSWERS + 1)
            ]
            types = {"question_type": question.question_type, "answer_type": question.answer_type}
            chosen = {"multiple_choice_answer": question.answer, "answers": answers}
            annotations.append({**ids, **types, **chosen})
    head = {"info": _INFO, "license": {}, "data_type": "mscoco", "data_subtype": content.split}
    task = {"task_type": "Open-Ended"}
    return {**head, **task, "questions": questions}, {**head, "annotations": annotations}


def refs_json(contents: Sequence[SplitContent], phrases_per_image: int) -> tuple[list[Json], Json]:
    """Return the referring phrases of all splits, and the instances that they refer to."""
    refs: list[Json] = []
    sentence_id = 0
    for content in contents:
        for scene in content.scenes:
            rng = scene_random(content.config, content.split, scene.index, "phrases")
            by_target: dict[int, list[str]] = {}
            for phrase in refer_variants(scene, phrases_per_image, rng):
                by_target.setdefault(phrase.target, []).append(phrase.text)
            for target, texts in by_target.items():
                refs.append(_ref(content, scene, target, texts, len(refs), sentence_id))
                sentence_id += len(texts)
    return refs, _instances_json(contents)


def statement_lines(
    content: SplitContent, num_statements: int
) -> Iterator[tuple[Json, Scene, Scene]]:
    """Yield lines of NLVR2, half of them true, each with its left and right scene.

    Raises:
        DataError: The split has too few different scenes for a statement.
    """
    for number in range(num_statements):
        rng = scene_random(content.config, content.split, number, "statements")
        form, truth = rng.randrange(NUM_FORMS), number % 2 == 0
        for _ in range(_TRIES):
            left, right = rng.choice(content.scenes), rng.choice(content.scenes)
            said = state_about_two(left, right, content.config, rng, form=form, truth=truth)
            if said:
                break
            if len(content.scenes) < 20:  # so few images may allow no statement of this form
                form = rng.randrange(NUM_FORMS)
        else:
            raise DataError(
                f"split {content.split}: no statement fits its {len(content.scenes)} images; "
                "ask for more images or exclude the format 'nlvr2'"
            )
        line = {"identifier": f"{content.split}-{number}-0-0", "sentence": said}
        yield line | {"label": str(truth)}, left, right


def entailment_lines(content: SplitContent) -> Iterator[Json]:
    """Yield one line of SNLI-VE for each image, the three labels in turn."""
    for scene, captions in zip(content.scenes, content.captions):
        rng = scene_random(content.config, content.split, scene.index, "hypotheses")
        label = NLI_LABELS[scene.index % 3]
        made = None
        while made is None:
            made = hypothesize(scene, content.config, rng, label=label)
        file_name = content.file_name(scene.index)
        key = file_name.removesuffix(".jpg")
        yield {
            "Flickr30K_ID": key,
            "Flikr30kID": file_name,
            "captionID": f"{file_name}#0",
            "pairID": f"{file_name}#0r1{label[0]}",
            "gold_label": label,
            "sentence1": captions[0],
            "sentence2": made.text,
        }


def corpus_lines(config: SceneConfig, num_lines: int) -> Iterator[str]:
    """Yield sentences on scenes that are never painted: captions and true statements in turn."""
    for index in range(num_lines):
        scene = generate_scene(config, "train", index, series="text")
        rng = scene_random(config, "train", index, "text")
        said = hypothesize(scene, config, rng, label="entailment") if index % 2 else None
        yield said.text if said else caption_variants(scene, config, 1, rng)[0]


def clips_json(clips: Sequence[Clip], config: SceneConfig) -> Json:
    """Return clips as MSRVTT's file; clip k is called videok."""
    names = {"val": "validate"}
    videos: list[Json] = []
    sentences: list[Json] = []
    for number, clip in enumerate(clips):
        split = names.get(clip.scene.split, clip.scene.split)
        times = {"start time": 0.0, "end time": NUM_FRAMES / CLIP_FRAMES_PER_S}
        ids = {"video_id": f"video{number}", "id": number, "category": 0, "url": ""}
        videos.append({**ids, "split": split, **times})
        for phrasing in range(2):
            caption = caption_clip(clip, config, phrasing)
            ids = {"video_id": f"video{number}", "sen_id": len(sentences)}
            sentences.append({**ids, "caption": caption})
    return {"info": _INFO, "videos": videos, "sentences": sentences}


def clip_questions_json(
    clips: Sequence[Clip], config: SceneConfig, split: str, questions_per_clip: int
) -> list[Json]:
    """Return the questions on the clips of one split as MSRVTT-QA's file.

    Beside the official fields each has a `question_type`.

    Args:
        clips: All clips, in the order of their numbers.
        config: The world.
        split: The split whose clips are asked about.
        questions_per_clip: How many different questions at most on motion, and on looks.
    """
    lines: list[Json] = []
    for number, clip in enumerate(clips):
        if clip.scene.split != split:
            continue
        rng = scene_random(config, split, clip.scene.index, "clip questions")
        tries = range(8 * questions_per_clip)
        for drawn in (
            [ask_about_clip(clip, rng) for _ in tries],
            [ask_about_looks(clip, config, rng) for _ in tries],
        ):
            distinct = {question.text: question for question in drawn if question}
            for question in list(distinct.values())[:questions_per_clip]:
                ids = {"id": len(lines), "video_id": number, "category_id": 0}
                told = {"question": question.text, "answer": question.answer}
                lines.append({**ids, **told, "question_type": question.question_type})
    return lines


def _karpathy_sentences(captions: list[str], number: int, first_id: int) -> list[Json]:
    """Return the sentences of image `number`; their tokens are words without punctuation."""
    return [
        {"raw": raw, "tokens": re.findall(r"\w+", raw), "imgid": number, "sentid": first_id + step}
        for step, raw in enumerate(captions)
    ]


def _coco_images(content: SplitContent, folder: str) -> list[Json]:
    size = {"width": content.config.image_size, "height": content.config.image_size}
    return [
        {"id": content.image_id(i), "file_name": folder + content.file_name(i), **size}
        for i in range(len(content.scenes))
    ]


def _annotation_id(image_id: int, target: int) -> int:
    return image_id * 10 + target


def _ref(
    content: SplitContent,
    scene: Scene,
    target: int,
    texts: list[str],
    ref_id: int,
    first_sentence_id: int,
) -> Json:
    image_id = content.image_id(scene.index)
    sentences = [
        {"sent": text, "raw": text, "tokens": text.split(), "sent_id": first_sentence_id + number}
        for number, text in enumerate(texts)
    ]
    return {
        "ref_id": ref_id,
        "image_id": image_id,
        "ann_id": _annotation_id(image_id, target),
        "category_id": _category_id(content.config, scene.objects[target].shape),
        "file_name": f"{content.split}/{content.file_name(scene.index)}",
        "split": content.split,
        "sent_ids": [sentence["sent_id"] for sentence in sentences],
        "sentences": sentences,
    }


def _category_id(config: SceneConfig, shape: str) -> int:
    return config.shapes.index(shape) + 1


def _instances_json(contents: Sequence[SplitContent]) -> Json:
    images, annotations = [], []
    config = contents[0].config
    for content in contents:
        images += _coco_images(content, f"{content.split}/")
        for scene in content.scenes:
            image_id = content.image_id(scene.index)
            for target, item in enumerate(scene.objects):
                box = item.box(config.image_size)
                ids = {"id": _annotation_id(image_id, target), "image_id": image_id}
                ids["category_id"] = _category_id(config, item.shape)
                area = round(box[2] * box[3], 2)
                annotations.append({**ids, "bbox": list(box), "area": area, "iscrowd": 0})
    categories = [
        {"id": _category_id(config, shape), "name": shape, "supercategory": "shape"}
        for shape in config.shapes
    ]
    lists = {"images": images, "annotations": annotations, "categories": categories}
    return {"info": _INFO, "licenses": [], **lists}
