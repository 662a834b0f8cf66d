"""`triptych data scenes`: write the built-in world as public dataset formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from triptych.cli.parsing import SourceOptions, parse, shows_progress
from triptych.core.errors import TriptychError
from triptych.scenes.config import SceneConfig
from triptych.scenes.layout import FORMATS, SceneFiles

HELP = """Write images of coloured shapes with captions, questions, phrases and boxes.

The files have the formats of COCO, VQAv2, RefCOCO, NLVR2, SNLI-VE, MSRVTT and WebDataset.
If PyAV is installed, clips are written too: one per hundred images, or --num-clips.

Examples:
  triptych data scenes scenes --num-images 2000
  triptych data scenes scenes --num-images 500 --image-size 128 --materials --formats captions vqa
"""

IMAGES_PER_CLIP = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesOptions:
    """What to write.

    Attributes:
        out: A new or empty folder.
        num_images: Images of the training split.
        num_val: Images of the validation split; if absent, a tenth of num_images, 8 to 500.
        num_test: Images of the test split; if absent, as many as num_val.
        num_compositional: Images of the compositional split, whose colour-shape pairs never occur
            in training; if absent, as many as num_val.
        num_clips: Clips of the training split; needs `pip install triptych[video]`. If absent, a
            hundredth of num_images if that is installed, otherwise none.
        formats: Annotation formats to write.
        captions_per_image: Captions per image.
        questions_per_image: Questions per image.
        phrases_per_image: Largest number of referring phrases per image.
        images_per_statement: Images of a split for each of its statements about two of them
            (format nlvr2).
        num_workers: Processes that render images.
        world: What the images show.
    """

    out: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="OUT")]]
    num_images: int
    num_val: int | None = None
    num_test: int | None = None
    num_compositional: int | None = None
    num_clips: int | None = None
    formats: tuple[str, ...] = FORMATS
    captions_per_image: int = 2
    questions_per_image: int = 3
    phrases_per_image: int = 2
    images_per_statement: int = 5
    num_workers: int = 1
    world: Annotated[SceneConfig, tyro.conf.arg(name="")] = field(default_factory=SceneConfig)


def run(arguments: Sequence[str]) -> int:
    """Write the scenes, and print where they are and what to do with them."""
    options = parse(ScenesOptions, arguments, verb="data scenes", description=HELP)
    files = _write(options)
    print(f"wrote {options.num_images:,} training images and their annotations to {files.root}")
    if "captions" in options.formats:
        flags = SourceOptions(image_root=str(files.split_images("train"))).flags()
        captions = files.coco_captions("train")
        print(f"next: triptych data check {captions}{flags}")
        print(f"      triptych train mplug.pretrain --data {captions}{flags}")
    return 0


def _write(options: ScenesOptions) -> SceneFiles:
    from rich.progress import Progress

    from triptych.core.console import Console
    from triptych.scenes.write import write_scenes

    num_clips = _num_clips(options)
    with Progress(
        console=Console(stderr=True), transient=True, disable=not shows_progress()
    ) as progress:
        bar = progress.add_task("", total=None)
        return write_scenes(
            options.out,
            options.num_images,
            num_val=options.num_val,
            num_test=options.num_test,
            num_compositional=options.num_compositional,
            num_clips=num_clips,
            config=options.world,
            formats=options.formats,
            captions_per_image=options.captions_per_image,
            questions_per_image=options.questions_per_image,
            phrases_per_image=options.phrases_per_image,
            images_per_statement=options.images_per_statement,
            num_workers=options.num_workers,
            progress=lambda stage, done, total: progress.update(
                bar, description=stage, completed=done, total=total
            ),
        )


def _num_clips(options: ScenesOptions) -> int:
    """Return how many clips to write: as many as were asked for, or as can be written here."""
    if options.num_clips is not None:
        return options.num_clips
    from triptych.scenes.clips import require_clips

    try:
        require_clips(options.world)
    except TriptychError as error:
        print(f"no clips: {error}")
        return 0
    return max(1, options.num_images // IMAGES_PER_CLIP)
