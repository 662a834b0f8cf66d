"""`triptych caption`: say what images show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import tyro

from triptych.cli.parsing import EngineGroup, EngineOptions, FolderArgument, parse
from triptych.core.errors import ConfigError

if TYPE_CHECKING:
    from triptych.generation.sampling import SamplingConfig

HELP = """Say what images show, one line an image.

Examples:
  triptych caption runs/mine/model image.jpg
  triptych caption runs/mine/model *.jpg --prompt "a photo of" --json
  triptych caption runs/mine/model image.jpg --top-p 0.9 --seed 1
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionOptions:
    """What to caption.

    Attributes:
        folder: A model folder, such as RUN_FOLDER/model.
        images: Image files.
        prompt: Words that every caption begins with.
        num_beams: Width of the beam search; the model folder's own if absent.
        top_p: Draw the words from the likeliest ones that have this probability together.
        top_k: Draw the words from the k likeliest ones.
        temperature: Draw the words; below 1 prefers likely ones.
        seed: Of the draws; other seeds give other captions.
        engine: How the model computes.
    """

    folder: FolderArgument
    images: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="IMAGE...")]]
    prompt: str | None = None
    num_beams: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    temperature: float | None = None
    seed: int = 0
    engine: EngineGroup = field(default_factory=EngineOptions)


def run(arguments: Sequence[str]) -> int:
    """Print a caption for each image."""
    options = parse(CaptionOptions, arguments, verb="caption", description=HELP)
    if not options.images:
        raise ConfigError("name at least one image: triptych caption MODEL_FOLDER IMAGE...")
    engine = options.engine.load(options.folder)
    captions = engine.caption(
        options.images,
        prompt=options.prompt,
        num_beams=options.num_beams,
        sampling=_sampling(options),
        seed=options.seed,
    )
    for image, caption in zip(options.images, captions, strict=True):
        if options.engine.json:
            print(json.dumps({"image": image, "caption": caption}, ensure_ascii=False))
        else:
            print(caption if len(options.images) == 1 else f"{image}\t{caption}")
    return 0


def _sampling(options: CaptionOptions) -> SamplingConfig | None:
    """Return how captions are drawn; None where no flag asks for draws."""
    given = {name: getattr(options, name) for name in ("top_p", "top_k", "temperature")}
    chosen = {name: value for name, value in given.items() if value is not None}
    if not chosen:
        return None
    if options.num_beams is not None:
        raise ConfigError(f"num_beams goes without {', '.join(chosen)}: search or draw")
    from triptych.generation.sampling import SamplingConfig

    return SamplingConfig(max_tokens=30, **chosen)
