"""`triptych train vlmo.stagewise`: VLMo's three stages one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from triptych.cli.parsing import SourceGroup, SourceOptions, parse

RECIPE = "vlmo.stagewise"

HELP = """Pre-train VLMo in its three stages: pictures, then texts, then pairs.

Without --data, on the built-in scenes, which are written first. Each stage is a run folder of its
own; an interrupted one goes on with `triptych train FOLDER --resume`. The stages alone are the
recipes dvae (which makes the targets of the first), vlmo.vision, vlmo.language and vlmo.pretrain.

Examples:
  triptych train vlmo.stagewise --scale tiny
  triptych train vlmo.stagewise --scale small --data pairs.jsonl --texts corpus.txt --out runs/mine
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagewiseOptions:
    """What to train on.

    Attributes:
        scale: smoke (seconds, learns nothing), tiny (under 20 minutes on two cores), small (hours,
            or one GPU), base, large (the paper's).
        out: The new folder; runs/vlmo.stagewise-SCALE if absent.
        sources: Pictures with captions; absent for the built-in scenes.
        source: How that data is read.
        texts: Texts for the language stage, such as one a line; absent for the captions.
        image_tokenizer: A model folder with a dVAE; absent to train one first.
        text_tokenizer: A tokenizer.json, vocab.txt or folder; absent to train one on the texts.
        seed: Seed of scenes, order, masks and dropout.
        num_threads: CPU threads; absent for all cores.
    """

    scale: Literal["smoke", "tiny", "small", "base", "large"] = "tiny"
    out: Path | None = None
    sources: Annotated[tuple[str, ...], tyro.conf.arg(name="data", metavar="PATH [PATH ...]")] = ()
    source: SourceGroup = field(default_factory=SourceOptions)
    texts: tuple[str, ...] = ()
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    seed: int = 0
    num_threads: int | None = None


def run(arguments: Sequence[str]) -> int:
    """Train the stages, and say where the model is."""
    from triptych.recipes.stagewise import StagewisePlan, scene_plan, train_stagewise

    options = parse(StagewiseOptions, arguments, verb=f"train {RECIPE}", description=HELP)
    out = options.out or Path("runs") / f"{RECIPE}-{options.scale}"
    shared = {"seed": options.seed, "num_threads": options.num_threads}
    if options.sources:
        plan = StagewisePlan(
            scale=options.scale,
            pairs=tuple(options.source.source(path) for path in options.sources),
            texts=tuple(SourceOptions().source(path) for path in options.texts),
            image_tokenizer=options.image_tokenizer,
            text_tokenizer=options.text_tokenizer,
            **shared,
        )
    else:
        plan = scene_plan(out / "data", options.scale, **shared)
    return report(train_stagewise(plan, out).elapsed_s, out)


def resume(folder: Path) -> int:
    """Go on with the stages of a folder."""
    from triptych.recipes.stagewise import resume_stagewise

    return report(resume_stagewise(folder).elapsed_s, folder)


def report(elapsed_s: float, folder: Path) -> int:
    """Say how long the last stage took and where its model is."""
    print(f"last stage: {elapsed_s:,.1f} s")
    print(f"model: {folder / 'pretrain' / 'model'}")
    return 0
