"""`triptych compare`: whole studies of seconds, interrupted, changed, growing and failing."""

import json

import pytest

from tests.docs_files import NUM_IMAGES, write_user_data
from triptych.cli.main import main


def compare(study, out, *flags):
    return main(["compare", study, "--out", str(out), "--num-threads", "1", *flags])


def results(out):
    return json.loads((out / "results.json").read_text(encoding="utf-8"))


def trained(out):
    """Return when the model of each variant was written, with the first seed."""
    return {p.parts[-4]: p.stat().st_mtime_ns for p in out.glob("runs/*/seed_0/train/model")}


def test_a_study_is_trained_once_grows_and_refuses_other_settings(mine, tmp_path, capsys):
    out = tmp_path / "out"
    assert compare(mine(), out, "--seeds", "1") == 0
    printed = capsys.readouterr().out
    assert "one seed: no interval" in printed
    assert "cannot tell: better with ITM (nobody)" in printed
    first = results(out)
    assert first["comparisons"][0]["low"] is None
    assert first["comparisons"][0]["verdict"] == "cannot tell"
    flops = [first["variants"][name]["cost"] for name in ("with_itm", "without_itm")]
    assert flops[0]["flops_per_sample"]["mean"] > flops[1]["flops_per_sample"]["mean"] > 1e6
    assert flops[0]["steps"] == flops[1]["steps"] == 2
    assert not list(out.glob("runs/*/*/train/checkpoints"))
    times = trained(out)

    assert compare(mine(), out, "--seeds", "2", "--json") == 0
    assert trained(out) == times
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert second["comparisons"][0]["seeds"] == [0, 1]
    assert second["comparisons"][0]["low"] is not None
    assert "With and without ITM" in (out / "report.html").read_text(encoding="utf-8")

    changed = mine(("without: [itm]", "without: [itm], set: {optim.learning_rate: 0.002}"))
    assert compare(changed, out, "--seeds", "2") == 2
    said = capsys.readouterr().err
    assert "optim.learning_rate is 0.002 now and was 0.0015" in said
    assert "--rerun" in said
    assert compare(changed, out, "--seeds", "1", "--rerun", "without_itm") == 0
    again = trained(out)
    assert again["with_itm"] == times["with_itm"]
    assert again["without_itm"] != times["without_itm"]


def test_a_variant_that_fails_is_named_and_the_others_go_on(mine, tmp_path, capsys):
    broken = mine(("without: [itm]", "set: {model.image_size: 50}"))
    out = tmp_path / "out"
    assert compare(broken, out, "--seeds", "1") == 1
    found = results(out)
    assert list(found["failed"]) == ["without_itm seed 0"]
    assert found["variants"]["with_itm"]["scores"]["recall"]["mean"] >= 0
    assert found["variants"]["without_itm"]["scores"]["recall"] is None
    assert found["comparisons"][0]["mean"] is None
    assert "failed: without_itm seed 0: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("recipe: vlmo.pretrain", "recipe: vlmo.pretrian", "did you mean 'vlmo.pretrain'"),
        ("samples: 16", "samples: 16, minutes: 2", "name one of samples, minutes, flops"),
        ("without: [itm]", "set: {train.seed: 3}", "--seeds sets it"),
        ("without: [itm]", "set: {train.max_stepz: 3}", "unknown field 'train.max_stepz'"),
        ("without: [itm]", "sett: {}", "unknown field 'variants[1].sett'"),
        ("without: [itm]", "set: 3", "must be a mapping"),
        ("second: without_itm\n    score", "second: with_itm\n    score", "differ from first"),
        ("score: recall\n", "score: recal\n", "did you mean 'recall'"),
        ("task: retrieval", "task: retrievel", "unknown task 'retrievel'"),
        ("scale: smoke", "scale: [", "mine.yaml"),
    ],
)
def test_a_bad_study_says_what_is_wrong_before_anything_is_written(
    old, new, message, mine, tmp_path, capsys
):
    assert compare(mine((old, new)), tmp_path / "out") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budget", "epochs=3"], "samples=N, minutes=N, flops=N"),
        (["--budget", "samples=many"], "'many' is no number"),
        (["--budget", "samples=-3"], "must be above 0"),
        (["--seeds", "0"], "seeds = 0"),
        (["--jobs", "0"], "jobs = 0"),
        (["--rerun", "with_itn"], "did you mean 'with_itm'"),
        (["--data.val", "x.jsonl"], "name that too"),
    ],
)
def test_wrong_flags_are_told(flags, message, mine, tmp_path, capsys):
    assert compare(mine(), tmp_path / "out", *flags) == 2
    assert message in capsys.readouterr().err


def test_an_unknown_study_names_the_nearest(tmp_path, capsys):
    assert compare("mplug.fuson", tmp_path / "out") == 2
    assert "did you mean 'mplug.fusion'" in capsys.readouterr().err


def test_other_files_are_left_alone(mine, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("mine")
    assert compare(mine(), tmp_path / "out") == 2
    assert "holds other files" in capsys.readouterr().err


def test_without_a_study_the_built_in_ones_are_listed(capsys):
    assert main(["compare"]) == 0
    assert "mplug.fusion" in capsys.readouterr().out


def test_own_data_is_divided_once_and_must_not_change(mine, tmp_path, capsys):
    folder = tmp_path / "own"
    folder.mkdir()
    write_user_data(folder)
    data, out = folder / "my.jsonl", tmp_path / "out"
    study = mine(("samples: 16", "samples: 8"))
    assert compare(study, out, "--seeds", "1", "--data", str(data)) == 0
    own = out / "data" / "own"
    parts = [own / name for name in ("train_0.jsonl", "held_out.jsonl")]
    train, held = ({json.loads(x)["image"] for x in p.read_text().splitlines()} for p in parts)
    assert train and held and not train & held
    assert len(train | held) == NUM_IMAGES
    scores = json.loads((out / "runs" / "with_itm" / "seed_0" / "scores.json").read_text())
    assert scores["recall"]["num_items"] == len(held)
    assert not list((out / "data").glob("scenes"))

    lines = data.read_text().splitlines()
    data.write_text("\n".join(lines[:-3]) + "\n")
    assert compare(study, out, "--seeds", "1", "--data", str(data)) == 2
    assert "has changed since it began" in capsys.readouterr().err


def test_own_data_cannot_stand_in_for_other_formats(mine, tmp_path, capsys):
    write_user_data(tmp_path)
    study = mine(("task: retrieval, metrics: [i2t_r1, t2i_r1]", "task: vqa"))
    assert compare(study, tmp_path / "out", "--data", str(tmp_path / "my.jsonl")) == 2
    assert "recall of this study reads vqa" in capsys.readouterr().err
