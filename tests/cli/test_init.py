"""init: a config that loads back equal, with every field explained."""

import json
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import pytest
import yaml
from PIL import Image

from triptych.cli.field_help import documented_yaml, field_help
from triptych.cli.main import main
from triptych.core.config import load_yaml
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.tasks.registry import recipe_needs
from triptych.train.config import OptimConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class _Both:
    """A config that documents fields in both ways.

    Attributes:
        first: In the section,
            over two lines; see `x: y`.
        second: Short.
    """

    first: int = 1
    second: str = "a: b"
    third: float = 1e-4
    """Below the field,
    over two lines."""


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    return tmp_path


def _manifest(*entries):
    Path("my.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return "my.jsonl"


def test_help_of_both_kinds_is_found():
    assert field_help(_Both) == {
        "first": "In the section, over two lines; see `x: y`.",
        "second": "Short.",
        "third": "Below the field, over two lines.",
    }
    text = field_help(OptimConfig)["warmup_steps"]
    assert text == "Steps of linear warm-up from `warmup_learning_rate` to the peak."


def test_documented_yaml_line_by_line():
    text = documented_yaml(_Both(), "Head\n\ntail")
    assert text.splitlines() == [
        "# Head",
        "#",
        "# tail",
        "",
        "# In the section, over two lines; see `x: y`.",
        "first: 1",
        "",
        "# Short.",
        "second: 'a: b'",
        "",
        "# Below the field, over two lines.",
        "third: 0.0001",
    ]


def test_every_recipe_loads_back_equal(tmp_path):
    sources = (DataSourceConfig(path="naïve: #1.jsonl"), DataSourceConfig(path="b", split="no"))
    for recipe, scale in product(RECIPES, ("smoke", "base")):
        config = build_recipe(recipe, scale)
        config = replace(config, data=replace(config.data, train=sources))
        path = tmp_path / "run.yaml"
        path.write_text(documented_yaml(config, "Head"), encoding="utf-8")
        assert load_yaml(RunConfig, path) == config, (recipe, scale)


def test_every_field_of_a_recipe_is_explained():
    """Each key stands below a comment, but for `kind` and the later items of a list."""
    config = build_recipe("mplug.vqa", "tiny")
    lines = documented_yaml(config, "Head").splitlines()
    keys = [i for i, line in enumerate(lines) if line and not line.lstrip().startswith("#")]
    bare = [lines[i].strip() for i in keys if not lines[i - 1].lstrip().startswith("#")]
    assert bare == ["kind: vqa"]
    assert max(map(len, lines)) <= 100


def test_init_fills_in_the_users_data(capsys, here):
    manifest = _manifest({"image": "a.png", "caption": "x"}, {"image": "a.png", "caption": ""})
    assert main(["init", manifest, "--scale", "smoke"]) == 0
    out = capsys.readouterr().out
    assert "1 records (1 with image, 1 with caption)" in out
    assert "1 entries cannot be used; the first: my.jsonl:2: caption is empty" in out
    assert "next: triptych data check my.jsonl" in out
    assert "triptych train run.yaml --out runs/run" in out
    expected = build_recipe("mplug.pretrain", "smoke")
    sources = (DataSourceConfig(path="my.jsonl"),)
    config = load_yaml(RunConfig, Path("run.yaml"))
    assert config == replace(expected, data=replace(expected.data, train=sources))


@pytest.mark.parametrize(
    ("entry", "recipe"),
    [
        ({"image": "a.png", "caption": "x"}, "mplug.pretrain"),
        ({"image": "a.png", "question": "x?", "answers": ["y"]}, "mplug.vqa"),
        ({"image": "a.png", "phrase": "x", "box": [0, 0, 4, 4]}, "mplug.grounding"),
        ({"images": ["a.png", "a.png"], "statement": "x", "label": False}, "mplug.nlvr2"),
        ({"image": "a.png", "hypothesis": "x", "label": "neutral"}, "mplug.snli_ve"),
        ({"premise": "x", "hypothesis": "y", "label": "neutral"}, "classify.texts"),
        ({"text": "only words"}, "flava.text"),
        ({"text": "x", "label": 0}, "classify.texts"),
        ({"image": "a.png", "text": "x", "label": 0}, "flava.hateful_memes"),
        ({"image": "a.png"}, "dvae"),
        ({"image": "a.png", "label": "cat"}, "dvae"),
        ({"image": "a.png", "mask": "a.png"}, "segment.images"),
    ],
)
def test_the_fields_choose_the_recipe(here, entry, recipe):
    assert main(["init", _manifest(entry), "--out", "mine.yaml"]) == 0
    assert yaml.safe_load(Path("mine.yaml").read_text())["recipe"] == recipe


def test_an_image_folder_and_a_text_file_have_recipes(capsys, here):
    Path("images/cat").mkdir(parents=True)
    Path("a.png").rename("images/cat/a.png")
    Path("corpus.txt").write_text("a sentence\n")
    assert main(["init", "images", "--out", "images.yaml"]) == 0
    others = "classify.images, vlmo.vision, flava.image, flava.joint, dino"
    assert f"also good for --recipe {others}" in capsys.readouterr().out
    assert main(["init", "corpus.txt", "--out", "text.yaml"]) == 0
    assert "also good for --recipe vlmo.language, flava.joint" in capsys.readouterr().out
    recipes = [load_yaml(RunConfig, Path(f"{name}.yaml")).recipe for name in ("images", "text")]
    assert recipes == ["dvae", "flava.text"]


def test_init_knows_what_every_recipe_needs():
    assert set(recipe_needs()) == set(RECIPES)


@pytest.mark.parametrize(
    ("recipe", "hint"),
    [
        *((name, None) for name in ("mplug.pretrain", "vlmo.pretrain", "flava.joint", "dvae")),
        *((name, "image_tokenizer") for name in ("flava.image", "vlmo.vision")),
        *((name, "Fine-tuning needs") for name in ("mplug.caption", "vlmo.retrieval")),
    ],
)
def test_the_head_says_what_the_recipe_starts_from(here, recipe, hint):
    assert main(["init", _manifest({"image": "a.png", "caption": "x"}), "--recipe", recipe]) == 0
    head = Path("run.yaml").read_text().split("\n\n", 1)[0]
    for word in ("image_tokenizer", "Fine-tuning needs"):
        assert (word in head) == (word == hint)


def test_source_flags_and_start_are_kept(capsys, here):
    Path("images").mkdir()
    Path("a.png").rename("images/a.png")
    manifest = _manifest({"image": "a.png", "caption": "x"})
    flags = ["--image-root", "images", "--recipe", "mplug.caption", "--init-from", "runs/x/model"]
    assert main(["init", manifest, *flags]) == 0
    config = load_yaml(RunConfig, Path("run.yaml"))
    assert config.recipe == "mplug.caption" and config.model.init_from == "runs/x/model"
    assert config.data.train[0].image_root == "images"
    assert "triptych data check my.jsonl --image-root images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.jsonl"], "absent.jsonl: there is no such file"),
        (["my.jsonl", "--recipe", "mplug.vqa"], "no record has question and answers"),
        (["my.jsonl", "--recipe", "mplug.captoin"], "did you mean 'mplug.caption'?"),
        (["my.jsonl", "--out", "a.png"], "a.png exists: choose another file"),
        (["clip.jsonl"], "no recipe fits the fields"),
        (["my.jsonl", "--recipe", "flava.glue"], "no record has text or hypothesis and label"),
        (["my.jsonl", "--recipy", "x"], "--recipe"),
    ],
)
def test_init_refuses(capsys, here, arguments, message):
    _manifest({"image": "a.png", "caption": "x"})
    Path("clip.mp4").touch()
    Path("clip.jsonl").write_text('{"video": "clip.mp4", "label": "cat"}\n')
    assert main(["init", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not Path("run.yaml").exists()


def test_a_recipe_of_stages_has_no_config(capsys, here):
    manifest = _manifest({"image": "a.png", "caption": "x"})
    assert main(["init", manifest, "--recipe", "vlmo.stagewise"]) == 2
    assert f"run `triptych train vlmo.stagewise --data {manifest}`" in capsys.readouterr().err
    assert not Path("run.yaml").exists()
