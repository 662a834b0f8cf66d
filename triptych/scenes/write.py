"""Write the built-in world as the files of the public datasets; equal seeds give equal bytes."""

from __future__ import annotations

import io
import json
import multiprocessing
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from triptych.core.config import to_dict
from triptych.core.errors import ConfigError, DataError, nearest
from triptych.core.files import has_entries, make_folder, write_atomic, write_json
from triptych.core.processes import end_with_parent
from triptych.scenes import formats as fm
from triptych.scenes.clips import Clip, generate_clip, render_clip, require_clips, write_mp4
from triptych.scenes.config import SPLITS, SceneConfig
from triptych.scenes.language import class_label
from triptych.scenes.layout import FORMATS, SceneFiles, image_name
from triptych.scenes.render import Image, render_mask, render_scene
from triptych.scenes.world import Scene, generate_scene

Progress = Callable[[str, int, int], None]
"""Called with a stage in words, how much of it is done, and how much there is."""

JPEG_QUALITY = 95
SAMPLES_PER_SHARD = 1000
IMAGES_PER_CLASS_IMAGE = 5

_CHUNK = 250  # images between two calls of the progress callback


def write_scenes(
    out: Path,
    num_images: int,
    *,
    num_val: int | None = None,
    num_test: int | None = None,
    num_compositional: int | None = None,
    num_clips: int = 0,
    config: SceneConfig | None = None,
    formats: Sequence[str] = FORMATS,
    captions_per_image: int = 2,
    questions_per_image: int = 3,
    phrases_per_image: int = 2,
    images_per_statement: int = 5,
    num_workers: int = 1,
    progress: Progress | None = None,
) -> SceneFiles:
    """Write images, their ground truth and annotations into an empty or new folder.

    The files depend on the arguments alone; `num_workers` changes nothing but the time.

    Args:
        out: The folder; made if it does not exist.
        num_images: Images of the training split.
        num_val: Images of the validation split; None is a tenth of `num_images`, from 8 to 500.
        num_test: Images of the test split; None as above.
        num_compositional: Images of the compositional split; None as above.
        num_clips: Clips of the training split; the others get a fifth of it each. Needs PyAV.
        config: The world; None is the default one.
        formats: Which of `layout.FORMATS` to write.
        captions_per_image: Captions of each image, in different phrasings.
        questions_per_image: Questions on each image, and on each clip.
        phrases_per_image: Referring phrases of each image, at most.
        images_per_statement: Images of a split for each of its statements about two of them.
        num_workers: Processes that paint and encode.
        progress: Told how far the writing is.

    Returns:
        The paths of all files.

    Raises:
        ConfigError: A number or a format is not usable.
        DataError: The folder is not empty, or PyAV is missing.
    """
    config = config or SceneConfig()
    few = min(500, max(8, num_images // 10))
    asked = (num_images, num_val, num_test, num_compositional)
    sizes = {s: few if n is None else n for s, n in zip(SPLITS, asked)}
    per_image = _PerImage(
        captions_per_image, questions_per_image, phrases_per_image, images_per_statement
    )
    _check_arguments(sizes, per_image, formats, num_workers)
    clips_of = _draw_clips(config, sizes, num_clips)  # now, as it may fail
    with _filled_at_once(out) as folder, ExitStack() as stack:
        files = SceneFiles(folder)
        contents = _draw_contents(config, sizes, captions_per_image, progress)
        painter = _Painter(config, files, num_workers, progress, stack)
        for content in contents:
            painter.paint_split(content)
            if "classes" in formats:
                painter.paint_classes(content)
        _write_annotations(files, contents, formats, per_image, progress)
        _write_clips(files, config, clips_of, questions_per_image, progress)
        counts = {split: size for split, size in sizes.items() if size}
        counts["clips"] = sum(map(len, clips_of.values()))
        summary = {"counts": counts, "formats": list(formats), "config": to_dict(config)}
        write_json(files.summary, summary)
    return SceneFiles(out)


@contextmanager
def _filled_at_once(out: Path) -> Iterator[Path]:
    """Give a folder beside `out` to write to; only when that is done, `out` has its entries."""
    if has_entries(out):
        raise DataError(f"{out} is not empty: choose another folder, or remove it first")
    target = out.resolve()
    unfinished = target.with_name(f".{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a call that was killed
    make_folder(unfinished)
    try:
        yield unfinished
        if target.exists():  # keep it: it may be the working folder of a shell
            for entry in sorted(unfinished.iterdir(), key=lambda path: path.is_file()):
                entry.rename(target / entry.name)
            unfinished.rmdir()
        else:
            unfinished.rename(target)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _PerImage:
    captions: int
    questions: int
    phrases: int
    for_statement: int


def _check_arguments(
    sizes: dict[str, int],
    per_image: _PerImage,
    formats: Sequence[str],
    num_workers: int,
) -> None:
    for name in formats:
        if name not in FORMATS:
            known = ", ".join(FORMATS)
            raise ConfigError(f"unknown format {name!r}{nearest(name, FORMATS)} (known: {known})")
    for split, size in sizes.items():
        least = 1 if split == "train" else 0
        if size < least:
            raise ConfigError(f"{size} images for {split}: must be at least {least}")
    for what in ("captions", "questions", "phrases"):
        number = getattr(per_image, what)
        if not 1 <= number <= 10:
            raise ConfigError(f"{what}_per_image = {number}: must be within 1 and 10")
    if per_image.for_statement < 1:
        number = per_image.for_statement
        raise ConfigError(f"images_per_statement = {number}: must be at least 1")
    if num_workers < 1:
        raise ConfigError(f"num_workers = {num_workers}: must be at least 1")


def _draw_clips(
    config: SceneConfig, sizes: dict[str, int], num_clips: int
) -> dict[str, list[Clip]]:
    """Draw the clips of each split, a fifth as many for those that are not for training.

    Raises:
        ConfigError: The number is below 0, or images of this size cannot be written as clips.
        DataError: PyAV is not installed, or objects leave no room to move.
    """
    if num_clips < 0:
        raise ConfigError(f"num_clips = {num_clips}: must be at least 0")
    if not num_clips:
        return {}
    require_clips(config)
    wanted = {s: num_clips if s == "train" else max(1, num_clips // 5) for s in sizes if sizes[s]}
    return {s: [generate_clip(config, s, index) for index in range(n)] for s, n in wanted.items()}


def _draw_contents(
    config: SceneConfig, sizes: dict[str, int], captions_per_image: int, progress: Progress | None
) -> list[fm.SplitContent]:
    contents, first_id = [], 1
    for number, (split, size) in enumerate(sizes.items()):
        if size:
            contents.append(fm.SplitContent.draw(config, split, first_id, size, captions_per_image))
        first_id += size
        _report(progress, "drawing scenes", number + 1, len(sizes))
    return contents


class _Painter:
    """Paints and encodes images, in this process or in several."""

    def __init__(
        self,
        config: SceneConfig,
        files: SceneFiles,
        num_workers: int,
        progress: Progress | None,
        stack: ExitStack,
    ) -> None:
        self.config, self.files, self.progress = config, files, progress
        self._map: Callable[..., Iterable[int]] = map
        if num_workers > 1:
            spawn = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(num_workers, mp_context=spawn, initializer=end_with_parent)
            self._map = stack.enter_context(pool).map

    def paint_split(self, content: fm.SplitContent) -> None:
        """Write the images of a split."""
        split, folder = content.split, self.files.split_images(content.split)
        folder.mkdir(parents=True, exist_ok=True)
        paint = partial(_paint_split, self.config, split, folder, content.first_image_id)
        self._run(paint, len(content.scenes), f"painting {split}")

    def paint_classes(self, content: fm.SplitContent) -> None:
        """Write images of one object into folders named by colour and shape."""
        split, total = content.split, max(1, len(content.scenes) // IMAGES_PER_CLASS_IMAGE)
        paint = partial(_paint_classes, self.config, split, self.files.classes(split))
        self._run(paint, total, f"painting classes of {split}")

    def _run(self, paint: Callable[[range], int], total: int, stage: str) -> None:
        chunks = [range(s, min(s + _CHUNK, total)) for s in range(0, total, _CHUNK)]
        done = 0
        for count in self._map(paint, chunks):
            done += count
            _report(self.progress, stage, done, total)


def _paint_split(
    config: SceneConfig, split: str, folder: Path, first_id: int, indices: range
) -> int:
    for index in indices:
        image = _paint(config, generate_scene(config, split, index))
        (folder / image_name(split, first_id + index)).write_bytes(_encode(image, ".jpg"))
    return len(indices)


def _paint_classes(config: SceneConfig, split: str, folder: Path, indices: range) -> int:
    for index in indices:
        scene = generate_scene(config, split, index, series="class", num_objects=1)
        class_folder = folder / class_label(scene.objects[0])
        class_folder.mkdir(parents=True, exist_ok=True)
        image = _encode(_paint(config, scene), ".jpg")
        (class_folder / f"{index:08d}.jpg").write_bytes(image)
    return len(indices)


def _paint(config: SceneConfig, scene: Scene) -> Image:
    return render_scene(scene, config.image_size, noise=config.noise)


def _encode(image: Image, extension: str) -> bytes:
    """Return (H, W, 3) RGB as JPEG with full colour resolution, or as PNG."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, 3]
    if extension == ".jpg":
        options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    _, data = cv2.imencode(extension, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)
    return bytes(data.tobytes())


def _write_annotations(
    files: SceneFiles,
    contents: list[fm.SplitContent],
    formats: Sequence[str],
    per_image: _PerImage,
    progress: Progress | None,
) -> None:
    for number, content in enumerate(contents):
        split = content.split
        _write_lines(files.truth(split), fm.truth_lines(content))
        if "captions" in formats:
            _write_compact(files.coco_captions(split), fm.coco_captions_json(content))
        if "vqa" in formats:
            questions, annotations = fm.vqa_json(content, per_image.questions)
            _write_compact(files.vqa_questions(split), questions)
            _write_compact(files.vqa_annotations(split), annotations)
        if "nlvr2" in formats:
            _write_statements(files, content, per_image.for_statement)
        if "snli_ve" in formats:
            _write_lines(files.snli_ve(split), fm.entailment_lines(content))
        if "shards" in formats:
            _write_shards(files, content)
        if "masks" in formats:
            _write_masks(files, content)
        _report(progress, "writing annotations", number + 1, len(contents))
    if "captions" in formats:
        _write_compact(files.karpathy, fm.karpathy_json(contents))
    if "refs" in formats:
        refs, instances = fm.refs_json(contents, per_image.phrases)
        _write_compact(files.refs, refs)
        _write_compact(files.instances, instances)
    if "text" in formats:
        lines = fm.corpus_lines(contents[0].config, len(contents[0].scenes))
        write_atomic(files.corpus, "".join(f"{line}\n" for line in lines))


def _write_statements(
    files: SceneFiles, content: fm.SplitContent, images_per_statement: int
) -> None:
    """Write NLVR2's lines, and both images of each under the names that NLVR2 gives them."""
    folder = files.nlvr2_images(content.split)
    folder.mkdir(parents=True, exist_ok=True)
    number = max(1, len(content.scenes) // images_per_statement)
    lines = []
    for line, *pair in fm.statement_lines(content, number):
        lines.append(line)
        stem = line["identifier"].rpartition("-")[0]
        for side, scene in enumerate(pair):
            image = _encode(_paint(content.config, scene), ".png")
            (folder / f"{stem}-img{side}.png").write_bytes(image)
    _write_lines(files.nlvr2(content.split), lines)


def _write_masks(files: SceneFiles, content: fm.SplitContent) -> None:
    """Write a PNG of classes for each image, a manifest of both, and the names of the classes."""
    folder, shapes = files.mask_images(content.split), content.config.shapes
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(files.mask_names, "".join(f"{name}\n" for name in ("background", *shapes)))
    lines = []
    for scene in content.scenes:
        name = content.file_name(scene.index)
        mask = folder / f"{Path(name).stem}.png"
        painted = render_mask(scene, content.config.image_size, shapes)
        mask.write_bytes(bytes(cv2.imencode(".png", painted)[1].tobytes()))
        image = files.split_images(content.split) / name
        lines.append(
            {what: path.relative_to(files.root).as_posix()
             for what, path in (("image", image), ("mask", mask))}
        )  # fmt: skip
    _write_lines(files.masks(content.split), lines)


def _write_shards(files: SceneFiles, content: fm.SplitContent) -> None:
    """Write WebDataset shards: image, first caption and ground truth of each scene."""
    folder, images = files.shards(content.split), files.split_images(content.split)
    folder.mkdir(parents=True, exist_ok=True)
    lines = fm.truth_lines(content)
    for number, start in enumerate(range(0, len(content.scenes), SAMPLES_PER_SHARD)):
        path = folder / f"{number:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
            for _, line in zip(range(start, start + SAMPLES_PER_SHARD), lines):
                key = f"{line['image_id']:012d}"
                _add_member(shard, f"{key}.jpg", (images / line["file_name"]).read_bytes())
                _add_member(shard, f"{key}.txt", line["captions"][0].encode())
                _add_member(shard, f"{key}.json", json.dumps(line).encode())


def _add_member(shard: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # owner, group and time stay 0: equal bytes on every machine
    member.size = len(data)
    shard.addfile(member, io.BytesIO(data))


def _write_clips(
    files: SceneFiles,
    config: SceneConfig,
    clips_of: dict[str, list[Clip]],
    questions_per_clip: int,
    progress: Progress | None,
) -> None:
    if not clips_of:
        return
    files.videos.mkdir(parents=True)
    clips = [clip for of_split in clips_of.values() for clip in of_split]
    for number, clip in enumerate(clips):
        frames = render_clip(clip, config.image_size, noise=config.noise)
        write_mp4(files.videos / f"video{number}.mp4", frames)
        _report(progress, "writing clips", number + 1, len(clips))
    _write_compact(files.clips, fm.clips_json(clips, config))
    for split in clips_of:
        questions = fm.clip_questions_json(clips, config, split, questions_per_clip)
        _write_compact(files.clip_questions(split), questions)


def _write_compact(path: Path, value: Any) -> None:
    write_atomic(path, json.dumps(value, separators=(",", ":")))


def _write_lines(path: Path, values: Iterable[Any] | Iterator[Any]) -> None:
    lines = (json.dumps(value, separators=(", ", ": ")) + "\n" for value in values)
    write_atomic(path, "".join(lines))


def _report(progress: Progress | None, stage: str, done: int, total: int) -> None:
    if progress:
        progress(stage, done, total)
