"""Every possible cell of model and task: trained for two steps, scored, saved, loaded, asked.

Recipes and scores come from `task_matrix`, so that a new task is here as soon as it is registered.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.checkpoint.model_folder import save_model_folder
from triptych.core.config import to_dict
from triptych.data.source import DataSourceConfig
from triptych.models.families import create_model
from triptych.recipes.registry import build_recipe
from triptych.scenes.clips import write_mp4
from triptych.tasks.matrix import possible_cells
from triptych.tasks.registry import needs_of
from triptych.text import Tokenizer
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.predict import PredictSettings, predict_model
from triptych.workflows.run import train_run
from triptych.workflows.score import score_file

from .small_runs import small_run

NUM_RECORDS, SIZE = 8, 32
WORDS = ["a red star", "a blue circle", "is it true ?", "what is red", "yes no green"]

CELLS = possible_cells()
TRAINED = sorted({(cell.family, recipe, cell.clips) for cell in CELLS for recipe in cell.recipes})
ZERO_SHOT = sorted({(c.family, c.evaluation, c.scored_on) for c in CELLS if c.zero_shot})

VALUES: dict[str, Callable[[int], Any]] = {
    "image": lambda i: f"{i}.png",
    "mask": lambda i: f"mask{i}.png",
    "video": lambda i: f"{i}.mp4",
    "images": lambda i: [f"{i}.png", f"{(i + 1) % NUM_RECORDS}.png"],
    "caption": lambda i: f"{WORDS[i % 2]} {i}",
    "text": lambda i: f"{WORDS[i % 2]} {i}",
    "question": lambda i: WORDS[3],
    "answers": lambda i: [("star", "circle")[i % 2]] * 10,
    "phrase": lambda i: WORDS[i % 2],
    "box": lambda i: [i, i, 20, 12],
    "statement": lambda i: WORDS[i % 2],
    "hypothesis": lambda i: WORDS[i % 2],
}
"""What the i-th record has in a field that a task needs."""


def label(needs, i):
    """Return the label of the i-th record: a truth, a relation, or the name of a class."""
    if "statement" in needs:
        return i % 2 == 0
    return ("entailment", "neutral", "contradiction")[i % 3 if "hypothesis" in needs else i % 2]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a function that writes a manifest of records with the fields that are needed."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(NUM_RECORDS):
        frames = rng.integers(0, 256, (4, SIZE, SIZE + 8, 3), dtype=np.uint8)
        Image.fromarray(frames[0]).save(root / f"{i}.png")
        Image.fromarray(frames[1, :, :, 0] // 64).save(root / f"mask{i}.png")  # classes 0 to 3
        write_mp4(root / f"{i}.mp4", frames)

    def write(needs):
        fields = [need.split("|")[0] for need in needs]
        unknown = set(fields) - {"label", *VALUES}
        assert not unknown, f"VALUES must tell what a record has in {unknown}"
        path = root / f"{'_'.join(fields)}.jsonl"
        lines = [
            {name: label(fields, i) if name == "label" else VALUES[name](i) for name in fields}
            for i in range(NUM_RECORDS)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return DataSourceConfig(path=str(path))

    return write


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Model folders of each family as pre-training leaves them, with random weights."""
    tokenizer = Tokenizer.train(WORDS, vocab_size=200, num_unused=64)
    found = {}
    for family in sorted({cell.family for cell in CELLS}):
        torch.manual_seed(1)
        model = create_model(f"{family}_tiny", image_size=SIZE, vocab_size=tokenizer.vocab_size)
        found[family] = save_model_folder(
            tmp_path_factory.mktemp("starts") / family,
            config={
                "model": to_dict(model.config, tagged=True),
                "trained_for": ["pretraining", "language"],
                "text": {"max_text_tokens": 20},
            },
            state_dict=model.state_dict(),
            tokenizer_json=tokenizer.to_json(),
            preprocess=to_dict(replace(image_of(family), image_size=SIZE)),
            card="# Tiny\n",
        )
    return found


def image_of(family):
    """Return how the family's pre-training prepares images."""
    names = (name for c in CELLS if c.family == family and not c.clips for name in c.zero_shot)
    return build_recipe(next(names), "smoke").image


def check_scores(folder, evaluation, data, out):
    """Score a folder, then its predictions in a file: the numbers are the same."""
    values = evaluate_model(folder, evaluation, data, rerank_top_k=2, local_batch_size=4)
    assert values
    for value in values:
        assert math.isfinite(value.value), value
        assert value.num_items > 0
    file = out / f"{evaluation}.jsonl"
    settings = PredictSettings(rerank_top_k=2, local_batch_size=4)
    assert predict_model(folder, evaluation, data, file, settings=settings).num_samples > 0
    again = {value.name: value.value for value in score_file(file, data).values}
    assert again == pytest.approx({value.name: value.value for value in values}, abs=1e-6)


@pytest.mark.parametrize(("family", "recipe", "clips"), TRAINED, ids=str)
def test_a_recipe_trains_and_each_of_its_cells_is_scored(
    family, recipe, clips, starts, source, tmp_path
):
    mine = [
        cell
        for cell in CELLS
        if (cell.family, cell.clips) == (family, clips) and recipe in cell.recipes
    ]
    needs = needs_of(build_recipe(recipe, "smoke").task, recipe)
    needs = [need.replace("image|video", "video" if clips else "image") for need in needs]
    run = small_run(recipe, source(needs), max_steps=2, global_batch_size=4, log_every_steps=1)
    if "text" in needs[1]:
        run = replace(run, task=replace(run.task, **text_field(run.task)))
    start = replace(run.model, init_from=str(starts[family]))
    run = replace(run, model=start, image=replace(run.image, num_frames=2))
    train_run(run, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert math.isfinite(json.loads(lines[-1])["loss/total"])
    scored = {(cell.evaluation, cell.scored_on) for cell in mine if recipe == cell.recipes[0]}
    scored |= {(cell.evaluation, tuple(needs)) for cell in mine if recipe != cell.recipes[0]}
    scored |= {
        (cell.evaluation, cell.scored_on)
        for cell in CELLS
        if cell.clips and cell.family == family and recipe in cell.zero_shot
    }
    assert scored
    for evaluation, fields in sorted(scored):
        (tmp_path / fields[0]).mkdir(exist_ok=True)
        model, data = tmp_path / "run" / "model", source(fields)
        check_scores(model, evaluation, data, tmp_path / fields[0])


def test_a_recipe_for_any_family_normalises_images_as_its_start(starts, source, tmp_path, capsys):
    run = small_run("classify.pairs", source(("image", "hypothesis", "label")), max_steps=1)
    run = replace(run, model=replace(run.model, init_from=str(starts["vlmo"])))
    train_run(run, tmp_path / "run")
    assert "normalised as for" in capsys.readouterr().out
    stored = json.loads((tmp_path / "run" / "model" / "preprocess.json").read_text())
    assert stored["mean"] == stored["std"] == [0.5, 0.5, 0.5]
    own = replace(run, image=replace(run.image, mean=(0.4, 0.4, 0.4)))
    train_run(own, tmp_path / "own")
    stored = json.loads((tmp_path / "own" / "model" / "preprocess.json").read_text())
    assert stored["mean"] == [0.4, 0.4, 0.4]


def text_field(task):
    """Return the setting that a classifier of pairs needs to read the field `text`."""
    return {"text_field": "text"} if hasattr(task, "text_field") else {}


@pytest.mark.parametrize(("family", "evaluation", "needs"), ZERO_SHOT, ids=str)
def test_a_pre_trained_model_is_scored_without_fine_tuning(
    family, evaluation, needs, starts, source, tmp_path
):
    check_scores(starts[family], evaluation, source(needs), tmp_path)
