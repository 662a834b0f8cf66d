"""The table of tasks: what it says of each cell, and that the pages say the same."""

import json
from dataclasses import replace

import pytest

from benchmarks.pages.matrix import pages
from triptych.cli.main import main
from triptych.models.families import list_models
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.tasks import registry
from triptych.tasks.matrix import possible_cells, pretraining_stages, task_matrix
from triptych.tasks.registry import TASKS, find_evaluation, task_spec

CELLS = task_matrix()


def cell(task, evaluation, family, clips=False):
    (found,) = [
        c
        for c in CELLS
        if (c.task, c.evaluation, c.family, c.clips) == (task, evaluation, family, clips)
    ]
    return found


def test_every_task_has_a_cell_of_every_family():
    rows = {(c.task, c.evaluation, c.clips) for c in CELLS}
    assert len(CELLS) == 3 * len(rows)
    assert {evaluation for _, evaluation, _ in rows} == set(registry.evaluations())
    assert {c.family for c in CELLS} == {"mplug", "vlmo", "flava"}
    assert {name.split("_")[0] for name in list_models()} == {c.family for c in CELLS}


def test_a_cell_is_either_reached_or_explained():
    for c in CELLS:
        assert c.is_possible == bool(c.recipes or c.zero_shot)
        assert (c.reason is None) == c.is_possible
        for name in (*c.recipes, *c.zero_shot):
            spec = task_spec(build_recipe(name, "smoke").task)
            assert c.evaluation in spec.evaluation_names()
        assert find_evaluation(c.evaluation).field in "|".join(c.scored_on).split("|")
    assert possible_cells() == [c for c in CELLS if c.is_possible]


def test_reasons_are_what_models_lack(monkeypatch):
    reason = "VLMo has no decoder, so it cannot generate text"
    assert cell("captioning", "caption", "vlmo").reason == reason
    assert cell("grounding", "grounding", "vlmo").reason == reason
    assert cell("vqa", "vqa", "flava").reason == reason.replace("VLMo", "FLAVA")
    monkeypatch.setattr("triptych.models.vlmo.model.VLMo.capabilities", {"itc", "itm", "decode"})
    monkeypatch.delattr("triptych.models.flava.model.FLAVA.two_image_state")
    found = {(c.task, c.family): c.reason for c in task_matrix()}
    assert found["captioning", "vlmo"] is None
    assert found["nlvr2", "flava"] == (
        "FLAVA has no way to join two images, so it cannot read two images"
    )


def test_a_new_task_is_a_row(monkeypatch):
    spec = TASKS["captioning"]
    evaluation = replace(spec.evaluations[0], name="titles")
    titles = replace(spec, trained_for="titling", evaluations=(evaluation,), also_scored=())
    monkeypatch.setattr("triptych.tasks.matrix.TASKS", TASKS | {"titling": titles})
    monkeypatch.setattr(registry, "TASKS", TASKS | {"titling": titles})
    row = [c for c in task_matrix() if c.task == "titling"]
    assert [(c.is_possible, c.clips) for c in row] == [
        (True, False), (False, False), (False, False), (True, True), (False, True), (False, True),
    ]  # fmt: skip
    assert row[0].recipes == ("mplug.caption",)


def test_own_recipes_come_before_general_ones():
    assert cell("answer_classification", "vqa", "vlmo").recipes == ("vlmo.vqa",)
    assert cell("answer_classification", "vqa", "mplug").recipes == ("classify.answers",)
    assert cell("text_classification", "classification", "flava").recipes == ("flava.glue",)
    assert cell("image_text_classification", "classification", "flava").recipes == (
        "classify.pairs",
    )
    assert cell("captioning", "caption", "mplug").recipes == ("mplug.caption", "mplug.scst")
    assert cell("retrieval", "zero_shot", "flava").zero_shot == ("flava.joint",)


def test_clips_are_scored_where_images_are_trained():
    assert cell("retrieval", "retrieval", "mplug", clips=True).recipes == ("mplug.retrieval",)
    told = cell("retrieval", "retrieval", "vlmo", clips=True)
    assert (told.recipes, told.zero_shot) == ((), ("vlmo.pretrain", "vlmo.retrieval"))
    assert told.scored_on == ("video", "caption")
    assert "VLMo has no decoder" in str(cell("captioning", "caption", "vlmo", clips=True).reason)


def test_every_recipe_is_in_a_cell_or_a_stage_of_pre_training():
    named = {name for c in CELLS for name in (*c.recipes, *c.zero_shot)}
    named |= {name for s in pretraining_stages() for names in s.recipes.values() for name in names}
    images_alone = {
        name for name in RECIPES if task_spec(build_recipe(name, "smoke").task).tokenizer == "none"
    }
    assert set(RECIPES) - named == images_alone == {"dvae"}


@pytest.mark.parametrize(("path", "text"), pages().items(), ids=lambda value: str(value)[-12:])
def test_the_pages_are_of_the_code(path, text):
    assert path.read_text(encoding="utf-8") == text, "run python -m benchmarks.pages.matrix"


def test_the_command_line_prints_it(capsys):
    assert main(["tasks", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["matrix_cells"] == len(possible_cells())
    assert found["matrix_cells"] + found["impossible"] == len(found["cells"]) == len(CELLS)
    assert main(["tasks"]) == 0
    said = capsys.readouterr().out
    assert "– VLMo has no decoder, so it cannot generate text" in said
    assert f"{len(possible_cells())} of {len(CELLS)} cells" in said
    assert main(["tasks", "--markdown"]) == 0
    assert "impossible: FLAVA has no decoder" in capsys.readouterr().out
    assert main(["tasks", "--markdown", "--json"]) == 2
    assert "choose one" in capsys.readouterr().err
