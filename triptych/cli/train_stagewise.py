"""`triptych train vlmo.stagewise` and `flava.stagewise`: the stages one after the other."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from triptych.cli.parsing import SourceGroup, SourceOptions, parse, refuse_repeats
from triptych.core.errors import ConfigError

ABOUT = {
    "vlmo": """Pre-train VLMo in its three stages: images, then texts, then pairs.

For single stages use the recipes dvae (which makes the targets of the first), vlmo.vision,
vlmo.language and vlmo.pretrain.""",
    "flava": """Pre-train FLAVA in its stages: images, texts, then both with pairs in one run.

For single stages use the recipes dvae (which makes the targets of the first), flava.image (or dino,
see --image-objective), flava.text and flava.joint.""",
}

HELP = """{about}

Without --data, the stages train on the built-in scenes, which are written first. Each stage has its
own run folder; after an interruption, continue with `triptych train FOLDER --resume`.

Examples:
  triptych train {recipe} --scale tiny
  triptych train {recipe} --scale small --data pairs.jsonl --texts corpus.txt --out runs/mine
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StagewiseOptions:
    """What to train on.

    Attributes:
        scale: smoke (seconds, a few steps only), tiny (about 20 minutes on two cores), small
            (hours, or one GPU), base, large (the paper's).
        out: The new folder; if absent, runs/FAMILY.stagewise-SCALE.
        sources: Images with captions; if absent, the built-in scenes.
        source: How that data is read.
        texts: Texts for the text stage, such as one per line; if absent, the captions.
        images: Images for the image stages (dVAE, vision, FLAVA's joint stage too), such as a
            folder; if absent, those of the pairs.
        image_objective: How FLAVA's image encoder learns from images: mim predicts masked patches,
            dino compares crops.
        image_tokenizer: A model folder with a dVAE; if absent, one is trained first.
        text_tokenizer: A tokenizer.json, vocab.txt or folder; if absent, one is trained on the
            texts.
        seed: Seed of scenes, order, masks and dropout.
        num_threads: CPU threads; if absent, all cores.
    """

    scale: Literal["smoke", "tiny", "small", "base", "large"] = "tiny"
    out: Path | None = None
    sources: Annotated[tuple[str, ...], tyro.conf.arg(name="data", metavar="PATH [PATH ...]")] = ()
    source: SourceGroup = field(default_factory=SourceOptions)
    texts: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    image_objective: Literal["mim", "dino"] = "mim"
    image_tokenizer: str | None = None
    text_tokenizer: str | None = None
    seed: int = 0
    num_threads: int | None = None


def run(
    recipe: str,
    arguments: Sequence[str],
    *,
    resume_if_begun: bool = False,
    accept_changed_data: bool = False,
) -> int:
    """Train the stages of vlmo.stagewise or flava.stagewise, and print where the model is.

    Args:
        recipe: Which of the two.
        arguments: What follows it on the command line.
        resume_if_begun: Whether to go on with the stages in --out, if there are any.
        accept_changed_data: Whether they then go on with data that has changed.
    """
    from triptych.workflows.stagewise import (
        StagewisePlan,
        is_stagewise,
        scene_plan,
        train_stagewise,
    )

    family = recipe.split(".")[0]
    text = HELP.format(about=ABOUT[family], recipe=recipe)
    refuse_repeats(arguments, "--data", "--texts", "--images")
    options = parse(StagewiseOptions, arguments, verb=f"train {recipe}", description=text)
    out = options.out or Path("runs") / f"{recipe}-{options.scale}"
    if resume_if_begun and is_stagewise(out):
        return resume(out, accept_changed_data=accept_changed_data)
    if options.sources:
        plan = StagewisePlan(
            family=family,
            scale=options.scale,
            pairs=tuple(options.source.source(path) for path in options.sources),
            texts=tuple(SourceOptions().source(path) for path in options.texts),
            images=tuple(SourceOptions().source(path) for path in options.images),
            image_objective=options.image_objective,
            seed=options.seed,
            num_threads=options.num_threads,
        )
    else:
        _refuse_data_options(options)
        plan = scene_plan(
            out / "data",
            options.scale,
            family=family,
            image_objective=options.image_objective,
            seed=options.seed,
            num_threads=options.num_threads,
        )
    plan = replace(
        plan, image_tokenizer=options.image_tokenizer, text_tokenizer=options.text_tokenizer
    )
    try:
        return report(train_stagewise(plan, out).elapsed_s, out)
    except KeyboardInterrupt:  # between two stages; within one, the trainer says how to go on
        if is_stagewise(out):
            print(f"triptych: continue with `triptych train {out} --resume`", file=sys.stderr)
        raise


def _refuse_data_options(options: StagewiseOptions) -> None:
    """Raise where an option concerns the user's own data, and there is none."""
    given = {
        "--texts": bool(options.texts),
        "--images": bool(options.images),
        "an option for reading --data": bool(options.source.flags()),
    }
    for name, is_given in given.items():
        if is_given:
            raise ConfigError(
                f"{name} needs --data: without your own pairs, the stages train on the "
                "built-in scenes"
            )


def resume(folder: Path, *, accept_changed_data: bool = False) -> int:
    """Go on with the stages of a folder."""
    from triptych.workflows.stagewise import resume_stagewise

    result = resume_stagewise(folder, accept_changed_data=accept_changed_data)
    return report(result.elapsed_s, folder)


def report(elapsed_s: float, folder: Path) -> int:
    """Print how long the last stage took and where its model is."""
    from triptych.workflows.stagewise import last_stage

    print(f"last stage: {elapsed_s:,.1f} s")
    print(f"model: {last_stage(folder) / 'model'}")
    return 0
