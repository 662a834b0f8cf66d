"""A task of another package: one registration, and training, evaluation and configs know it."""

from dataclasses import dataclass, replace

import pytest

from triptych.core.config import load_yaml, save_yaml
from triptych.core.errors import ConfigError
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import build_recipe
from triptych.tasks import registry, spec
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.tasks.registry import TASKS, register_task, register_task_recipe
from triptych.tasks.spec import Evaluation, TaskConfig, TaskRecipe


@dataclass(frozen=True, kw_only=True, slots=True)
class TitlingConfig(TaskConfig):
    """Settings of a task that this package does not know."""

    words: int = 3


@pytest.fixture
def titling(monkeypatch):
    monkeypatch.setattr(registry, "TASKS", dict(TASKS))
    monkeypatch.setattr(registry, "CONFIGS", spec.CONFIGS)
    known = dict(spec.CONFIGS)
    titling = replace(
        TASKS["captioning"],
        config=TitlingConfig,
        trained_for="titling",
        build=lambda config, model, tokenizer, _: Captioning(model, CaptioningConfig(), tokenizer),
        recipes=(TaskRecipe("titles.train"),),
        serves=(),
        evaluations=(Evaluation("titles", "caption", lambda *_: []),),
    )
    register_task(titling)
    yield titling
    spec.CONFIGS.clear()
    spec.CONFIGS.update(known)


def test_a_run_of_it_loads_back_equal(titling, tmp_path):
    run = replace(build_recipe("mplug.caption", "smoke"), task=TitlingConfig(words=5))
    save_yaml(run, tmp_path / "run.yaml")
    assert "kind: titling" in (tmp_path / "run.yaml").read_text()
    assert load_yaml(RunConfig, tmp_path / "run.yaml") == run


def test_every_table_knows_it(titling):
    assert registry.find_evaluation("titles").field == "caption"
    assert registry.evaluated_configs("titles") == [TitlingConfig]
    assert registry.teaching_words("titles") == ["titling"]
    assert "titling" in registry.trained_for_words()
    assert registry.recipe_needs()["titles.train"] == ("image|video", "caption")
    assert registry.needed_capabilities("titles") == {"decode"}
    assert registry.stored_task_config({"kind": "titling", "words": 2}) == TitlingConfig(words=2)
    register_task_recipe(TitlingConfig, TaskRecipe("coca.titles", "coca"))
    assert "coca.titles" in registry.recipe_needs()


def test_a_name_is_taken_once(titling):
    with pytest.raises(ConfigError, match="task 'titling' is registered twice"):
        register_task(titling)


def test_older_kinds_load():
    stored = {"kind": "vlmo_nlvr2", "swap_probability": 0.0}
    assert type(registry.stored_task_config(stored)) is TASKS["nlvr2"].config
    assert registry.stored_task_config({"kind": "vlmo_retrieval"}) is not None
    assert registry.stored_task_config({"kind": "unheard_of"}) is None
