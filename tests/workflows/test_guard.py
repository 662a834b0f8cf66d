"""The table before and after fine-tuning, against `triptych eval` of both folders."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest

from triptych.cli.train import read_config
from triptych.core.errors import ConfigError, DataError
from triptych.recipes.config import GuardConfig
from triptych.serving.loading import load_model
from triptych.workflows import guard
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.guard import BEFORE_AFTER, SHOWN, read_before_after
from triptych.workflows.run import train_run

from .small_runs import small_run, source_of


def fine_tuning(recipe, scenes, pretrained, **guarded):
    run = small_run(recipe, source_of(scenes, recipe), max_steps=2)
    run = replace(run, model=replace(run.model, init_from=str(pretrained / "model")))
    return replace(run, guard=GuardConfig(**guarded))


@pytest.fixture
def said():
    """What a run prints."""

    class Said(list):
        def print(self, line, **_):
            self.append(str(line))

        def __bool__(self):
            return True

    return Said()


@pytest.fixture(scope="module")
def pairs(scenes):
    return source_of(scenes, "mplug.pretrain", "test")


def score(folder, source, limit=None):
    values = evaluate_model(folder, "retrieval", source, limit=limit, rerank_top_k=0)
    return {value.name: value.value for value in values}


def test_held_out_pairs_and_the_guard_are_scored_as_by_eval(
    scenes, pretrained, pairs, tmp_path, said
):
    run = fine_tuning("mplug.retrieval", scenes, pretrained, data=(pairs,))
    held_out = source_of(scenes, "mplug.retrieval", "val")
    run = replace(run, data=replace(run.data, val=(held_out,)))
    train_run(run, tmp_path / "run", console=said)
    table = json.loads((tmp_path / "run" / BEFORE_AFTER).read_text())
    assert table["notes"] == []
    folders = {"before": pretrained / "model", "after": tmp_path / "run" / "model"}
    for source, name in ((held_out, "own, held out"), (pairs, "guard ")):
        rows = [row for row in table["rows"] if row["data"].startswith(name)]
        assert {row["metric"] for row in rows} >= {"i2t_r1", "t2i_r1"}
        assert {row["images"] for row in rows} == {8}
        for side, folder in folders.items():
            wanted = score(folder, source)
            assert {row["metric"]: row[side]["value"] for row in rows} == wanted
    rows, notes = read_before_after(tmp_path / "run")
    kept = [row for row in table["rows"] if row["metric"] in SHOWN]
    assert ([asdict(row) for row in rows], notes) == (kept, [])
    assert read_before_after(pretrained) == ([], [])
    assert any("i2t_r1" in line and "own, held out" in line for line in said)
    assert "## Retrieval before and after" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_training_pairs_stand_in_and_images_are_few(scenes, pretrained, tmp_path, said):
    train_run(
        fine_tuning("mplug.retrieval", scenes, pretrained, images=3), tmp_path / "run", console=said
    )
    rows = json.loads((tmp_path / "run" / BEFORE_AFTER).read_text())["rows"]
    assert {(row["data"], row["images"]) for row in rows} == {("own, trained on", 3)}


def test_questions_alone_say_how_to_measure(scenes, pretrained, tmp_path, said):
    train_run(fine_tuning("mplug.vqa", scenes, pretrained), tmp_path / "run", console=said)
    table = json.loads((tmp_path / "run" / BEFORE_AFTER).read_text())
    assert table["rows"] == []
    assert any("--guard" in line for line in said)
    train_run(fine_tuning("mplug.vqa", scenes, pretrained, images=0), tmp_path / "off")
    assert not (tmp_path / "off" / BEFORE_AFTER).exists()


def test_what_cannot_be_guarded_is_told_before_training(scenes, pretrained, tmp_path):
    run = fine_tuning("mplug.vqa", scenes, pretrained, data=(source_of(scenes, "mplug.vqa"),))
    with pytest.raises(DataError, match="no two images with captions"):
        train_run(run, tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()
    with pytest.raises(ConfigError, match=r"guard\.images = 0"):
        GuardConfig(data=run.guard.data, images=0)


def test_a_start_that_did_not_retrieve_or_is_gone_is_told(
    scenes, pretrained, pairs, tmp_path, said
):
    run = fine_tuning("mplug.vqa", scenes, pretrained, images=0)
    train_run(run, tmp_path / "vqa")
    second = replace(run, model=replace(run.model, init_from=str(tmp_path / "vqa" / "model")))
    train_run(replace(second, guard=GuardConfig()), tmp_path / "second", console=said)
    assert not (tmp_path / "second" / BEFORE_AFTER).exists()
    train_run(replace(second, guard=GuardConfig(data=(pairs,))), tmp_path / "third", console=said)
    assert any("was trained for vqa, which does not teach it" in line for line in said)
    gone = guard.Guard(str(tmp_path / "gone"), (), ())
    guard.measure_guard(gone, run, tmp_path / "vqa", tmp_path / "vqa" / "model", said)
    assert "is not measured: no model folder" in said[-1]


def test_a_model_that_lost_its_embeddings_is_told(
    scenes, pretrained, pairs, tmp_path, said, monkeypatch
):
    start = pretrained / "model"
    (tmp_path / "README.md").write_text("# Card\n")
    run = fine_tuning("mplug.vqa", scenes, pretrained)
    rows = guard._first_pairs("guard", pairs, guard.read_records(pairs).records, 4)
    prepared = guard.Guard(str(start), (rows,), ())
    monkeypatch.setattr(
        guard,
        "load_model",
        lambda folder, **options: (
            replace(load_model(start), model=SimpleNamespace(capabilities=frozenset()))
            if folder == tmp_path
            else load_model(folder, **options)
        ),
    )
    found = guard.measure_guard(prepared, run, tmp_path, tmp_path, said)
    assert found and all(row.after is None for row in found)
    assert any("lost" in line for line in said)
    assert "it cannot retrieve" in said[-1]


def test_flags_of_the_command_line():
    words = "mplug.vqa --data q.jsonl --init-from m --freeze a.b c --lora.rank 16"
    words += " --lora.targets qkv --lora.save beside --guard p.json x.jsonl"
    config = read_config([*words.split(), "--guard.image-root", "i", "--guard.images", "7"])
    assert [source.path for source in config.guard.data] == ["p.json", "x.jsonl"]
    assert config.guard.data[0].image_root == "i" and config.guard.images == 7
    assert config.freeze == ("a.b", "c")
    assert (config.lora.rank, config.lora.targets, config.lora.save) == (16, ("qkv",), "beside")
    with pytest.raises(ConfigError, match="name them with --guard PATH"):
        read_config(["mplug.vqa", "--guard.split", "val"])
