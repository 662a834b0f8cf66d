"""SCST, NLVR2 and SNLI-VE from the command line: trained on scenes, scored, asked."""

import json
import signal
from dataclasses import replace

import pytest
import torch

import triptych
from triptych.cli.main import main
from triptych.core.errors import CapabilityError
from triptych.data.batches import BatchBuilder
from triptych.data.manifest import read_records
from triptych.data.records import Record
from triptych.data.transforms.pipeline import ImageTransform
from triptych.serving.loading import load_model
from triptych.tasks.finetuning.nlvr2 import NLVR2
from triptych.tasks.finetuning.scst import SCST
from triptych.tasks.registry import build_collator
from triptych.train.interrupts import TrainingInterrupted
from triptych.workflows.baselines import baselines_of
from triptych.workflows.evaluate import evaluate_model
from triptych.workflows.run import resume_run, train_run

from .kills import MAX_STEPS, same_run
from .small_runs import small_run, source_of

QUIET = ["--train.progress", "off", "--train.num-threads", "1", "--train.precision", "fp32"]

FP32 = ("--precision", "fp32")  # as the engine beside it; `auto` may be bf16


@pytest.fixture(scope="module", autouse=True)
def _exact():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("triptych.serving.loading.resolve_precision", lambda *_: "fp32")
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory, scenes, pretrained):
    """Model folders that `triptych train RECIPE --data FILE` leaves, at scale "smoke"."""
    root = tmp_path_factory.mktemp("runs")
    found = {}
    for name in ("nlvr2", "snli_ve", "scst"):
        source = source_of(scenes, f"mplug.{name}")
        split = [] if source.split is None else ["--split", source.split]
        arguments = ["--scale", "smoke", "--data", source.path, "--image-root", source.image_root]
        arguments += [*split, "--init-from", str(pretrained / "model"), "--out", str(root / name)]
        assert main(["train", f"mplug.{name}", *arguments, *QUIET]) == 0
        found[name] = root / name / "model"
    return found


def _batch(folder, task, records):
    loaded = load_model(folder)
    collator = build_collator(
        loaded.task_config(task), loaded.tokenizer, loaded.captions(), loaded.lengths(), train=False
    )
    transform = ImageTransform(loaded.image, train=False)
    builder = BatchBuilder(records, collator, transform, seed=0, train=False, cache_mib=0)
    return loaded.build_task(task), builder.build([(0, i) for i in range(len(records))]).batch


@torch.no_grad()
def _probabilities(folder, task, records):
    bound, batch = _batch(folder, task, records)
    bound.modules.eval()
    return torch.softmax(bound.pair_scores(batch), dim=1)


@pytest.mark.parametrize("task", ["nlvr2", "snli_ve"])
def test_scores_of_a_folder_are_those_of_its_task(folders, scenes, task, capsys, tmp_path):
    source = source_of(scenes, f"mplug.{task}")
    records = read_records(source).records
    names = {"nlvr2": [False, True], "snli_ve": ["contradiction", "neutral", "entailment"]}[task]
    said = [names[i] for i in _probabilities(folders[task], task, records).argmax(dim=1)]
    right = sum(a == record.label for a, record in zip(said, records, strict=True)) / len(records)
    common = max(sum(r.label == name for r in records) for name in names) / len(records)
    found = {v.name: v for v in evaluate_model(folders[task], task, source, local_batch_size=3)}
    assert found[task].value == pytest.approx(right)
    assert found[task].low <= right <= found[task].high
    assert found[f"{task}_majority"].value == pytest.approx(common)
    classes = {str(name).lower() for name in names}
    assert {name for name in found if "/" in name} == {f"{task}/{name}" for name in classes}
    arguments = ["--data", source.path, "--image-root", source.image_root, "--out"]
    assert main(["eval", str(folders[task]), "--task", task, *arguments, str(tmp_path / "s")]) == 0
    assert f"{task}_majority" in capsys.readouterr().out
    stored = json.loads((tmp_path / "s").read_text())["scores"][0]["metrics"]
    assert {metric["name"] for metric in stored} == set(found)


def test_judge(folders, scenes, capsys):
    records = read_records(source_of(scenes, "mplug.nlvr2")).records
    expected = _probabilities(folders["nlvr2"], "nlvr2", records)[:, 1].tolist()
    engine = triptych.load(folders["nlvr2"], precision="fp32")
    firsts, seconds = ([record.images[side].path for record in records] for side in (0, 1))
    statements = [record.statement for record in records]
    assert engine.judge(firsts, seconds, statements) == pytest.approx(expected, abs=1e-5)
    one = engine.judge(firsts[0], seconds[0], statements[0])
    assert one == pytest.approx(expected[0], abs=1e-5)
    both = engine.judge(firsts[0], seconds[0], statements[:2])
    assert both[0] == pytest.approx(one, abs=1e-5) and len(both) == 2
    folder = str(folders["nlvr2"])
    assert main(["judge", folder, firsts[0], seconds[0], *statements[:2], *FP32]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [text for _, text in rows] == statements[:2]
    assert [float(score) for score, _ in rows] == pytest.approx(both, abs=1e-4)
    assert main(["judge", folder, firsts[0], seconds[0], statements[0], "--json", *FP32]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["probability"] == pytest.approx(one, abs=1e-6)
    assert found["images"] == [firsts[0], seconds[0]]


def test_entail(folders, scenes, capsys):
    records = read_records(source_of(scenes, "mplug.snli_ve")).records[:5]
    expected = _probabilities(folders["snli_ve"], "snli_ve", records)
    engine = triptych.load(folders["snli_ve"], precision="fp32")
    images = [record.image.path for record in records]
    hypotheses = [record.hypothesis for record in records]
    found = engine.entail(images, hypotheses)
    for shares, row in zip(found, expected.tolist(), strict=True):
        values = dict(zip(("contradiction", "neutral", "entailment"), row, strict=True))
        assert shares == pytest.approx(values, abs=1e-5)
        assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert engine.entail(images[0], hypotheses[0]) == pytest.approx(found[0], abs=1e-5)
    with pytest.raises(CapabilityError, match="leave premises out"):
        engine.entail(images[0], hypotheses[0], premises="a star")
    assert main(["entail", str(folders["snli_ve"]), images[0], hypotheses[0], *FP32]) == 0
    label, share, text = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (label, text) == (next(iter(found[0])), hypotheses[0])
    assert float(share) == pytest.approx(found[0][label], abs=1e-4)
    assert main(["entail", str(folders["snli_ve"]), images[0], hypotheses[0], "--json", *FP32]) == 0
    stored = json.loads(capsys.readouterr().out)
    assert stored["probabilities"] == pytest.approx(found[0], abs=1e-6)


def test_entailment_reads_a_premise_where_it_was_taught_to(tmp_path, scenes):
    config = small_run("mplug.snli_ve", source_of(scenes, "mplug.snli_ve"))
    config = replace(config, task=replace(config.task, with_premise=True))
    train_run(config, tmp_path)
    records = read_records(source_of(scenes, "mplug.snli_ve")).records[:3]
    expected = _probabilities(tmp_path / "model", "snli_ve", records)
    words = load_model(tmp_path / "model").tokenizer
    _, batch = _batch(tmp_path / "model", "snli_ve", records)
    texts = [f"{record.premise} [SEP] {record.hypothesis}" for record in records]
    joined = [words.encode(text.split(" [SEP] "), max_tokens=40) for text in texts]
    rows = [[*first, *second[1:]] for first, second in joined]
    assert batch["token_ids"].tolist() == words.pad(rows)[0].tolist()
    found = triptych.load(tmp_path / "model", precision="fp32").entail(
        [record.image.path for record in records],
        [record.hypothesis for record in records],
        premises=[record.premise for record in records],
    )
    for shares, row in zip(found, expected.tolist(), strict=True):
        assert sorted(shares.values()) == pytest.approx(sorted(row), abs=1e-5)


def test_a_model_that_was_not_taught_says_what_teaches_it(folders, scenes):
    image = read_records(source_of(scenes, "mplug.snli_ve")).records[0].image.path
    with pytest.raises(CapabilityError, match=r"triptych train mplug.nlvr2 --data"):
        triptych.load(folders["snli_ve"]).judge(image, image, "a star")
    with pytest.raises(CapabilityError, match=r"triptych train mplug.snli_ve --data"):
        triptych.load(folders["nlvr2"]).entail(image, "a star")
    with pytest.raises(CapabilityError, match=r"mplug.nlvr2 --data YOUR_DATA.jsonl --init-from"):
        evaluate_model(folders["snli_ve"], "nlvr2", source_of(scenes, "mplug.nlvr2"))


def test_scst_leaves_a_folder_that_captions(folders, scenes):
    config = json.loads((folders["scst"] / "config.json").read_text())
    assert config["trained_for"] == ["captioning"]
    assert config["task"]["kind"] == "captioning"
    source = source_of(scenes, "mplug.caption", "test")
    names = {value.name for value in evaluate_model(folders["scst"], "caption", source)}
    assert {"cider", "bleu_4"} <= names
    image = read_records(source).records[0].image.path
    assert isinstance(triptych.load(folders["scst"]).caption(image), str)
    lines = (folders["scst"].parent / "metrics.jsonl").read_text().splitlines()
    assert {"loss/scst", "loss/reward", "loss/baseline"} <= json.loads(lines[-1]).keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["judge", "{nlvr2}", "a.jpg", "b.jpg"], "name at least one statement"),
        (["judge", "{nlvr2}", "absent.jpg", "b.jpg", "a star"], "absent.jpg: there is no such"),
        (["entail", "{snli_ve}", "a.jpg"], "name at least one hypothesis"),
        (["entail", "{scst}", "a.jpg", "a star"], "triptych train mplug.snli_ve"),
    ],
)
def test_mistakes_give_code_2_and_say_what_is_wrong(capsys, folders, arguments, message):
    assert main([word.format(**folders) for word in arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "task"), [("mplug.scst", SCST), ("mplug.nlvr2", NLVR2)])
def test_an_interrupted_run_goes_on_bitwise(tmp_path, scenes, monkeypatch, name, task):
    """Draws of captions, and heads beside the model, come back with a checkpoint."""
    config = small_run(name, source_of(scenes, name), log_every_steps=1, max_steps=MAX_STEPS)
    train_run(config, tmp_path / "whole")
    after_step = task.after_step

    def terminate(self, step):
        after_step(self, step)
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(task, "after_step", terminate)
        with pytest.raises(TrainingInterrupted):
            train_run(config, tmp_path / "run")
    assert resume_run(tmp_path / "run").step == MAX_STEPS
    assert same_run(tmp_path / "run", tmp_path / "whole")


def test_guesses_of_labels():
    train = [Record(record_id=str(i), label=i % 3 == 0) for i in range(300)]
    held_out = [Record(record_id=str(i), label=i < 30) for i in range(100)]
    guess = baselines_of("nlvr2", train, held_out, seed=0)["nlvr2"]
    assert guess.blind == 0.7  # false, of which training has two thirds
    assert guess.chance == pytest.approx(0.3 / 3 + 0.7 * 2 / 3, abs=0.15)


@pytest.mark.parametrize("task", ["nlvr2", "snli_ve"])
def test_init_chooses_the_recipe_by_the_data(tmp_path, scenes, task, capsys):
    source = source_of(scenes, f"mplug.{task}")
    out = tmp_path / "run.yaml"
    arguments = [source.path, "--image-root", source.image_root, "--out", str(out)]
    assert main(["init", *arguments]) == 0
    assert f"(mplug.{task}, tiny)" in capsys.readouterr().out
