"""The demo: from scratch to measured models on the built-in scenes.

Scenes are written in public formats and read back by the readers that real datasets use; training
and evaluation are the recipes and the evaluator that a user calls.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from triptych.core.config import check
from triptych.core.errors import ConfigError
from triptych.core.files import folder_for_one, has_entries, write_json
from triptych.core.outputs import MetricValue, Predictions
from triptych.data.manifest import read_records
from triptych.data.records import Record
from triptych.evaluation.bootstrap import ratio_value
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.scenes.language import compute_caption_objects, count_objects_named
from triptych.scenes.layout import SceneFiles
from triptych.scenes.write import write_scenes
from triptych.tasks.finetuning.captioning import caption_references
from triptych.tasks.registry import evaluations
from triptych.workflows.baselines import Baseline, baselines_of
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.predictors import evaluation_records
from triptych.workflows.run import finish_run, is_finished, prepare_tokenizer
from triptych.workflows.scene_data import scene_source
from triptych.workflows.side_by_side import train_side_by_side

DEMO_FILE = "demo.json"
"""In the folder of a demo: what was asked for, and the seconds that each stage has taken."""

DEMO_SPLITS = ("test", "compositional")
FORMATS = ("captions", "vqa", "refs")


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSize:
    """How much of everything a scale takes.

    Attributes:
        recipes: Scale of the recipes that the stages start from: model, batch and learning rates.
        num_images: Training images.
        num_test: Images of each test split.
        pretrain_steps: Pre-training steps.
        vqa_steps: Fine-tuning steps for questions.
        grounding_steps: Fine-tuning steps for phrases.
        rerank_top_k: Candidates that ITM re-ranks.
    """

    recipes: str
    num_images: int
    num_test: int
    pretrain_steps: int
    vqa_steps: int
    grounding_steps: int
    rerank_top_k: int = 16


SIZES = {
    "smoke": DemoSize(
        recipes="smoke",
        num_images=48,
        num_test=12,
        pretrain_steps=4,
        vqa_steps=2,
        grounding_steps=2,
        rerank_top_k=4,
    ),
    "tiny": DemoSize(
        recipes="tiny",
        num_images=24_000,
        num_test=500,
        pretrain_steps=1900,
        vqa_steps=1000,
        grounding_steps=800,
    ),
    "small": DemoSize(
        recipes="tiny",
        num_images=48_000,
        num_test=500,
        pretrain_steps=3800,
        vqa_steps=2000,
        grounding_steps=1600,
    ),
}
"""small is tiny with twice the images and the steps: what the same model learns then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """One number of the demo beside what guessing gives.

    Attributes:
        key: Name in `results.json`, such as "i2t_r1" or "compositional_vqa".
        task: Such as "retrieval".
        split: "test" or "compositional".
        value: The number with interval and protocol.
        chance: What drawing at random gives; None where that has no meaning.
        blind: What the best answer without looking gives; None where there is none.
    """

    key: str
    task: str
    split: str
    value: MetricValue
    chance: float | None = None
    blind: float | None = None


@dataclass(slots=True)
class DemoResult:
    """What a demo leaves.

    Attributes:
        folder: Holds data, runs and results.
        scores: Every number, in the order of the table.
        configs: The resolved configuration of each stage.
        times_s: Seconds of each stage, those before an interruption included.
        earlier_s: Seconds that the demo took before it was interrupted.
        predictions: Generated texts and boxes by (task, split) and position.
        records: The records that were scored, by (task, split).
    """

    folder: Path
    scores: list[Score] = field(default_factory=list)
    configs: dict[str, RunConfig] = field(default_factory=dict)
    times_s: dict[str, float] = field(default_factory=dict)
    earlier_s: float = 0.0
    predictions: dict[tuple[str, str], dict[int, object]] = field(default_factory=dict)
    records: dict[tuple[str, str], list[Record]] = field(default_factory=dict)

    def run(self, stage: str) -> Path:
        """Return the run folder of a stage: pretrain, vqa or grounding."""
        return self.folder / stage

    def model(self, stage: str) -> Path:
        """Return the model folder of a stage."""
        return self.run(stage) / "model"


def run_demo(
    folder: Path,
    scale: str = "tiny",
    *,
    seed: int = 0,
    num_threads: int | None = None,
    console: Console | None = None,
) -> DemoResult:
    """Write scenes, pre-train, fine-tune for questions and phrases, and evaluate.

    In the folder of an interrupted demo, go on where it was: what is finished is kept, and what is
    half trained continues from its last checkpoint.

    Args:
        folder: Receives `demo.json`, `data/`, `tokenizer/` and one run folder a stage; must be new,
            empty, or that of a demo with the same arguments.
        scale: smoke, tiny or small.
        seed: Seed of scenes and training.
        num_threads: CPU threads; None leaves torch's choice.
        console: Where to report; standard output if absent.

    Raises:
        ConfigError: No such scale, or the folder is in use.
    """
    if scale not in SIZES:
        raise ConfigError(f"scale = {scale!r}: must be one of {', '.join(SIZES)}")
    check(seed >= 0, "seed", seed, "be at least 0")
    settings = {"scale": scale, "seed": seed, "num_threads": num_threads}
    _check_folder(folder, settings)
    console = console or Console()
    with folder_for_one(folder):
        times_s = _begin(folder, settings)
        result = DemoResult(folder, times_s=times_s, earlier_s=sum(times_s.values()))
        _train_and_evaluate(result, SIZES[scale], seed, num_threads, console)
    return result


def resume_command(folder: Path) -> str | None:
    """Return the command that continues the demo in a folder; None if there is none."""
    if not (folder / DEMO_FILE).is_file():
        return None
    return demo_command(**_read_state(folder)["settings"], out=folder)


def demo_command(
    scale: str, seed: int, num_threads: int | None = None, out: Path | None = None
) -> str:
    """Return the command line of a demo."""
    threads = "" if num_threads is None else f" --num-threads {num_threads}"
    folder = "" if out is None else f" --out {shlex.quote(str(out))}"
    return f"triptych demo --scale {scale} --seed {seed}{threads}{folder}"


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Raise where a folder holds something other than an interrupted demo of these settings."""
    if not has_entries(folder):
        return
    if not (folder / DEMO_FILE).is_file():
        raise ConfigError(
            f"{folder} is not empty: choose another folder with --out (`make demo DEMO_OUT=...`), "
            "or delete it"
        )
    if _read_state(folder)["settings"] != settings:
        raise ConfigError(
            f"{folder} holds another demo: continue it with `{resume_command(folder)}`, choose "
            f"another folder with --out, or delete {folder}"
        )


def _begin(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """Note the settings, or return the seconds of each stage of the interrupted demo."""
    if (folder / DEMO_FILE).is_file():
        times_s: dict[str, float] = _read_state(folder)["times_s"]
        return times_s
    write_json(folder / DEMO_FILE, {"settings": settings, "times_s": {}})
    return {}


def _read_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / DEMO_FILE).read_text(encoding="utf-8"))
    return state


def _train_and_evaluate(
    result: DemoResult, size: DemoSize, seed: int, num_threads: int | None, console: Console
) -> None:
    """Do each stage that is not done."""
    folder = result.folder
    with _timed(result, "scenes", console, f"writing {size.num_images:,} scenes"):
        files = SceneFiles(folder / "data")
        if not files.summary.is_file():
            _write(files.root, size, seed)
        if not (folder / "tokenizer" / "tokenizer.json").is_file():
            _train_tokenizer(folder / "tokenizer", files, size)
    runs = demo_runs(folder, files, size, seed, num_threads)
    result.configs.update(runs)
    pretraining = runs.pop("pretrain")
    with _timed(result, "pretrain", console, f"pre-training: {size.pretrain_steps:,} steps"):
        if not is_finished(result.run("pretrain")):
            finish_run(pretraining, result.run("pretrain"), console=console)
    with _timed(result, "fine-tuning", console, "fine-tuning for questions and for phrases"):
        folders = {stage: result.run(stage) for stage in runs}
        train_side_by_side(runs, folders, num_threads=num_threads, console=console)
    for split in DEMO_SPLITS:
        with _timed(result, f"evaluation {split}", console, f"evaluating on {split}"):
            _evaluate_split(result, files, split, size, seed)


def demo_runs(
    folder: Path,
    files: SceneFiles,
    size: DemoSize,
    seed: int,
    num_threads: int | None,
) -> dict[str, RunConfig]:
    """Return the runs of the demo by stage, in order; they read `folder / "tokenizer"`."""
    stages = (
        ("pretrain", "mplug.pretrain", "caption", size.pretrain_steps),
        ("vqa", "mplug.vqa", "vqa", size.vqa_steps),
        ("grounding", "mplug.grounding", "grounding", size.grounding_steps),
    )
    runs = {}
    for stage, recipe, task, steps in stages:
        config = build_recipe(recipe, size.recipes)
        model = config.model
        tokenizer = config.tokenizer
        if stage == "pretrain":
            tokenizer = replace(tokenizer, path=str(folder / "tokenizer"))
        else:
            model = replace(model, init_from=str(folder / "pretrain" / "model"))
        runs[stage] = replace(
            config,
            model=model,
            tokenizer=tokenizer,
            data=replace(config.data, train=(scene_source(files, task, "train"),), seed=seed),
            train=replace(config.train, max_steps=steps, seed=seed, num_threads=num_threads),
            weights=tuple(
                replace(w, start_step=w.start_step * steps // config.train.max_steps)
                for w in config.weights
            ),
        )
    return runs


def _write(folder: Path, size: DemoSize, seed: int) -> SceneFiles:
    from triptych.scenes.config import SceneConfig

    return write_scenes(
        folder,
        size.num_images,
        num_val=8,
        num_test=size.num_test,
        num_compositional=size.num_test,
        config=SceneConfig(seed=seed),
        formats=FORMATS,
        captions_per_image=1,
        num_workers=2 if size.num_images > 1000 else 1,
    )


def _train_tokenizer(folder: Path, files: SceneFiles, size: DemoSize) -> None:
    """Train on the texts of all tasks: captions alone lack the words of many answers."""
    records = [
        record
        for task in ("caption", "vqa", "grounding")
        for record in read_records(scene_source(files, task, "train")).records
    ]
    prepare_tokenizer(build_recipe("mplug.pretrain", size.recipes), records).save(folder)


def _evaluate_split(
    result: DemoResult, files: SceneFiles, split: str, size: DemoSize, seed: int
) -> None:
    """Score all tasks on one split and put guesses beside them."""
    prefix = "" if split == "test" else f"{split}_"
    for task, stage in (
        ("retrieval", "pretrain"),
        ("caption", "pretrain"),
        ("vqa", "vqa"),
        ("grounding", "grounding"),
    ):
        source = scene_source(files, task, split)
        found = read_records(source).records
        records = evaluation_records(found, evaluations()[task], source.path)
        kept: dict[int, object] = {}
        values = evaluate_model(
            result.model(stage),
            task,
            source,
            rerank_top_k=size.rerank_top_k,
            keep=_keeper(kept),
        )
        if task == "caption":
            values = [_caption_objects(records, kept, files, split), *values]
        result.predictions[task, split], result.records[task, split] = kept, records
        train = read_records(scene_source(files, task, "train")).records
        references = caption_references(records, found) if task == "caption" else None
        guesses = baselines_of(task, train, records, seed, references=references)
        if task == "caption":
            guesses["caption_objects"] = _guessed_objects(train, records, files, split, seed)
        for value in values:
            guess = guesses.get(value.name, Baseline())
            result.scores.append(
                Score(
                    key=prefix + value.name,
                    task=task,
                    split=split,
                    value=value,
                    chance=guess.chance,
                    blind=guess.blind,
                )
            )


def _keeper(kept: dict[int, object]) -> Callable[[Predictions], None]:
    """Return a listener that files texts and boxes by position."""

    def keep(predictions: Predictions) -> None:
        values: list[object] = []
        if predictions.texts is not None:
            values = list(predictions.texts)
        elif predictions.boxes_xyxy is not None:
            values = list(predictions.boxes_xyxy.tolist())
        kept.update(zip(predictions.index, values, strict=bool(values)))

    return keep


def scene_objects(
    records: Sequence[Record], files: SceneFiles, split: str
) -> list[list[tuple[str, str, str]]]:
    """Return (size, colour, shape) of each object of each record's image, from the truth file."""
    truth = {}
    for line in files.truth(split).read_text(encoding="utf-8").splitlines():
        scene = json.loads(line)
        truth[scene["file_name"]] = [(o["size"], o["color"], o["shape"]) for o in scene["objects"]]
    return [truth[Path(record.image.path).name] for record in records if record.image]


def _caption_objects(
    records: list[Record], kept: dict[int, object], files: SceneFiles, split: str
) -> MetricValue:
    """Score captions by objects; the interval resamples images."""
    objects = scene_objects(records, files, split)
    captions = [str(kept[i]) for i in range(len(records))]
    return ratio_value(
        "caption_objects",
        [count_objects_named(c, o) for c, o in zip(captions, objects, strict=True)],
        [len(o) for o in objects],
        "Share of the objects of an image that its caption names with the right size, colour and "
        "shape, over all objects.",
    )


def _guessed_objects(
    train: Sequence[Record], records: Sequence[Record], files: SceneFiles, split: str, seed: int
) -> Baseline:
    """Score a random training caption, and the most frequent one, as captions of each image."""
    from triptych.evaluation.baselines import most_frequent_caption

    captions = [r.caption for r in train if r.caption]
    objects = scene_objects(records, files, split)
    total = sum(map(len, objects))
    rng = np.random.default_rng(seed)
    drawn = [captions[i] for i in rng.integers(0, len(captions), len(records))]
    common = [most_frequent_caption(captions)] * len(records)

    def score(said: list[str]) -> float:
        shares = compute_caption_objects(said, objects)
        return sum(s * len(o) for s, o in zip(shares, objects, strict=True)) / total

    return Baseline(chance=score(drawn), blind=score(common))


@contextmanager
def _timed(result: DemoResult, stage: str, console: Console, text: str) -> Iterator[None]:
    """Add the seconds of a stage, finished or not, to those that earlier calls noted."""
    console.print(f"[bold]{text}[/bold]")
    start = time.perf_counter()
    try:
        yield
    finally:
        spent = time.perf_counter() - start
        result.times_s[stage] = result.times_s.get(stage, 0.0) + spent
        state = _read_state(result.folder) | {"times_s": result.times_s}
        write_json(result.folder / DEMO_FILE, state)
