"""`triptych data tokenize-images`: shards that hold each image's codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from triptych.cli.parsing import SourceGroup, SourceOptions, parse, shows_progress

if TYPE_CHECKING:
    from triptych.workflows.tokenize_images import TokenizedImages

HELP = """Write WebDataset shards of images with their codes from an image tokenizer.

Masked image modelling then reads its targets instead of computing them at each step. The codes
are those of whole images, so training must neither crop nor mirror them.

Examples:
  triptych train dvae --data my.jsonl --out runs/dvae
  triptych data tokenize-images my.jsonl --tokenizer runs/dvae/model --out shards
  triptych train flava.image --data shards --task.stored-codes
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeOptions:
    """What to tokenize, and with which tokenizer.

    Attributes:
        manifest: A manifest (.jsonl, .csv), an annotation file of a public dataset, a folder of
            images or of .tar shards, or a shard pattern.
        tokenizer: A model folder that `triptych train dvae` made, or released weights: FLAVA's in
            transformers' layout, or DALL-E's `encoder.pkl`.
        out: A new or empty folder for the shards.
        source: How the manifest is read.
        image_size: Side in pixels of the tokenizer's input: 8 times the patches per side of the
            encoder to train (112 for 224 px in patches of 16); if absent, the tokenizer's own.
        samples_per_shard: Images per shard.
        max_bad_share: Largest allowed share of bad images, 0 to 1.
    """

    manifest: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="MANIFEST")]]
    tokenizer: str
    out: Path
    source: SourceGroup = field(default_factory=SourceOptions)
    image_size: int | None = None
    samples_per_shard: int = 1000
    max_bad_share: float = 0.01


def run(arguments: Sequence[str]) -> int:
    """Write the shards, and print what they hold."""
    options = parse(TokenizeOptions, arguments, verb="data tokenize-images", description=HELP)
    found = _tokenize(options)
    print(
        f"wrote {found.num_images:,} images of {found.num_records:,} records with their codes "
        f"to {options.out}; {found.num_skipped:,} could not be used"
    )
    print(
        f"codes: {found.about.num_codes:,} in the codebook, of {found.about.image_size} px, "
        f"tokenizer {found.about.tokenizer}"
    )
    return 0


def _tokenize(options: TokenizeOptions) -> TokenizedImages:
    from rich.progress import Progress

    from triptych.core.console import Console
    from triptych.workflows.tokenize_images import tokenize_images

    with Progress(
        console=Console(stderr=True), transient=True, disable=not shows_progress()
    ) as progress:
        bar = progress.add_task("tokenizing images", total=None)
        return tokenize_images(
            options.source.source(options.manifest),
            options.tokenizer,
            options.out,
            image_size=options.image_size,
            samples_per_shard=options.samples_per_shard,
            max_bad_share=options.max_bad_share,
            progress=lambda done, total: progress.update(bar, completed=done, total=total),
        )
