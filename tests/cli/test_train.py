"""train: every field from the command line, configs from files, resuming, and what is refused."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from triptych.cli.main import main
from triptych.cli.parsing import stray_path
from triptych.cli.train import read_config
from triptych.core.config import load_yaml, save_yaml
from triptych.core.errors import ConfigError
from triptych.data.source import DataSourceConfig
from triptych.recipes.config import RunConfig
from triptych.recipes.registry import RECIPES, build_recipe
from triptych.train.config import ObjectiveWeight
from triptych.train.trainer import TrainResult


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Stand in for training; return the list of what was asked for."""
    monkeypatch.chdir(tmp_path)
    asked = []

    def result():
        return TrainResult(
            step=12, losses={}, elapsed_s=3.0, samples_per_s=4.0, checkpoint=Path("step_12")
        )

    def train_run(config, run_folder, *, resume=False, accept_changed_data=False):
        asked.append((config, run_folder))
        return result()

    def resume_run(run_folder, *, accept_changed_data=False):
        asked.append(("resumed", run_folder))
        return result()

    monkeypatch.setattr("triptych.workflows.run.train_run", train_run)
    monkeypatch.setattr("triptych.workflows.run.resume_run", resume_run)
    monkeypatch.setattr("triptych.workflows.scene_data.scene_run", lambda config, *_, **__: config)
    return asked


def test_without_flags_it_is_the_recipe():
    for recipe in RECIPES:
        assert read_config([recipe]) == build_recipe(recipe, "tiny"), recipe
        assert read_config([recipe, "--scale", "base"]) == build_recipe(recipe, "base"), recipe


def test_flags_reach_every_room_of_the_config():
    flags = (
        "mplug.pretrain --scale smoke --train.max-steps 7 --optim.learning-rate 3e-4 "
        "--optim.betas 0.8 0.9 --model.name mplug_small --image.crop-scale 0.3 0.9 "
        "--captions.max-words 9 --lengths.question 11 --tokenizer.vocab-size 500 "
        "--task.queue-size 64 --weights.1.weight 2.5 --train.no-tensorboard "
        "--train.max-grad-norm None --data.num-workers 2"
    )
    config = read_config(flags.split())
    base = build_recipe("mplug.pretrain", "smoke")
    weights = (base.weights[0], replace(base.weights[1], weight=2.5), *base.weights[2:])
    assert isinstance(weights[1], ObjectiveWeight)
    assert config == replace(
        base,
        train=replace(base.train, max_steps=7, tensorboard=False, max_grad_norm=None),
        optim=replace(base.optim, learning_rate=3e-4, betas=(0.8, 0.9)),
        model=replace(base.model, name="mplug_small"),
        image=replace(base.image, crop_scale=(0.3, 0.9)),
        captions=replace(base.captions, max_words=9),
        lengths=replace(base.lengths, question=11),
        tokenizer=replace(base.tokenizer, vocab_size=500),
        task=replace(base.task, queue_size=64),
        weights=weights,
        data=replace(base.data, num_workers=2),
    )


@pytest.mark.parametrize("recipe", list(RECIPES))
def test_every_scalar_field_is_a_flag(capsys, recipe):
    assert main(["train", recipe, "--help"]) == 0
    out = capsys.readouterr().out
    config = build_recipe(recipe, "tiny")
    for name in ("model", "tokenizer", "image", "captions", "lengths", "train", "optim"):
        for field in fields(getattr(config, name)):
            assert f"--{name}.{field.name}".replace("_", "-") in out
    assert "Peak learning rate of everything but the vision encoder." in " ".join(out.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "mplug.pretrain", "--data", "a.jsonl", "--out", "runs/x", "b.jsonl"],
        ["train", "mplug.pretrain", "b.jsonl", "--data", "a.jsonl"],
        ["eval", "m", "--task", "vqa", "--data", "a.jsonl", "--limit", "5", "b.jsonl"],
    ],
)
def test_a_misplaced_second_dataset_is_named_with_the_remedy(capsys, arguments):
    assert main(arguments) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "b.jsonl is a path that belongs to no flag" in told
    assert "--data a.jsonl b.jsonl" in told


@pytest.mark.parametrize(
    "arguments",
    [
        ["m", "--data", "a.jsonl", "b.jsonl", "--limt", "5"],
        ["m", "--data", "a.jsonl", "--optim.betas", "0.8", "0.9"],
    ],
)
def test_paths_in_their_place_are_not_stray(arguments):
    assert stray_path(arguments) is None


@pytest.mark.parametrize("name", [["--model.name", "mplug_small"], ["--model.name=mplug_small"]])
def test_sizes_beside_a_model_to_start_from_are_refused(name):
    with pytest.raises(ConfigError, match="mplug_small has no effect on a run that starts from m,"):
        read_config(["mplug.vqa", "--init-from", "m", *name])
    assert read_config(["mplug.vqa", *name]).model.name == "mplug_small"


def test_data_and_init_from_in_short():
    arguments = ["mplug.vqa", "--data", "a.jsonl", "b.json", "--image-root", "pics"]
    arguments += ["--init-from", "runs/x/model", "--data.train.1.split", "train"]
    config = read_config(arguments)
    assert config.data.train == (
        DataSourceConfig(path="a.jsonl", image_root="pics"),
        DataSourceConfig(path="b.json", image_root="pics", split="train"),
    )
    assert config.model.init_from == "runs/x/model"


def test_a_config_file_is_the_start(tmp_path):
    saved = build_recipe("mplug.grounding", "smoke")
    saved = replace(saved, train=replace(saved.train, max_steps=99))
    path = tmp_path / "run.yaml"
    save_yaml(saved, path)
    assert read_config([str(path)]) == saved
    assert read_config(["--config", str(path)]) == saved
    assert read_config(["mplug.grounding", "--config", str(path)]) == saved
    changed = read_config([str(path), "--task.num-bins", "17"])
    assert changed == replace(saved, task=replace(saved.task, num_bins=17))


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["mplug.vqa", "--scale", "smoke"], "runs/mplug.vqa-smoke"),
        (["mplug.vqa"], "runs/mplug.vqa-tiny"),
        (["mplug.vqa", "--out", "here"], "here"),
        (["mine.yaml"], "runs/mine"),
        (["mine.yaml", "--out", "there"], "there"),
    ],
)
def test_where_the_run_goes(capsys, trained, arguments, folder):
    save_yaml(build_recipe("mplug.vqa", "smoke"), Path("mine.yaml"))
    assert main(["train", *arguments]) == 0
    assert trained[0][1] == Path(folder)
    assert f"model: {folder}/model" in capsys.readouterr().out


def test_resume(capsys, trained):
    assert main(["train", "runs/mine", "--resume"]) == 0
    assert trained == [("resumed", Path("runs/mine"))]
    assert "trained to step 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "suggestion"),
    [
        ("--train.learing-rate", "--optim.learning-rate"),
        ("--optim.learing-rate", "--optim.learning-rate"),
        ("--tran.max-steps", "--train.max-steps"),
        ("--train.max-step", "--train.max-steps"),
        ("--task.num-bin", "--task.num-bins"),
        ("--initfrom", "--init-from"),
    ],
)
def test_a_wrong_field_names_the_nearest(capsys, trained, flag, suggestion):
    assert main(["train", "mplug.grounding", flag, "4"]) == 2
    err = capsys.readouterr().err
    assert flag in err and suggestion in err.split("Perhaps you meant")[1]
    assert trained == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("mplug.vga", "no recipe 'mplug.vga'; did you mean 'mplug.vqa'?"),
        ("flava.stagwise", "did you mean 'flava.stagewise'?"),
        ("", "name what to train right after `triptych train`"),
        ("--data a.jsonl", "name what to train right after `triptych train`"),
        ("mplug.vqa second", "second"),
        ("mplug.vqa --scale tinny", "tiny"),
        ("mplug.vqa --train.max-steps ten", "--train.max-steps"),
        ("mplug.vqa --train.max-steps 0", "max_steps = 0: must be at least 1"),
        ("mplug.vqa --split val", "--split says how to read --data: give --data"),
        ("absent.yaml", "absent.yaml: there is no such file"),
        ("wrong.yaml", "unknown field 'trian'; did you mean 'train'?"),
        ("saved.yaml --scale tiny", "--scale belongs to a recipe"),
        ("saved.yaml --config saved.yaml", "two configs"),
        ("mplug.pretrain --config saved.yaml", "a config of mplug.vqa, not of mplug.pretrain"),
        ("folder", "continue a run in it with `triptych train folder --resume`"),
        ("--resume", "name the run folder"),
        ("folder --resume --train.max-steps 9", "--train.max-steps cannot be changed"),
        ("folder --resume --data a.jsonl", "--data cannot be changed"),
        ("folder --resume --init-from m", "--init-from cannot be changed"),
    ],
)
def test_what_cannot_be_trained_is_refused(capsys, trained, arguments, message):
    save_yaml(build_recipe("mplug.vqa", "smoke"), Path("saved.yaml"))
    Path("wrong.yaml").write_text("recipe: mplug.vqa\nscale: smoke\ntrian: {}\n")
    Path("folder").mkdir()
    assert main(["train", *arguments.split()]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert trained == []


def test_a_folder_without_a_run_cannot_resume(capsys, tmp_path):
    assert main(["train", str(tmp_path), "--resume"]) == 2
    assert "holds no run to resume: config.yaml is missing" in capsys.readouterr().err


def test_training_without_data_says_which_flag(capsys, tmp_path):
    save_yaml(build_recipe("mplug.vqa", "smoke"), tmp_path / "mine.yaml")
    for target in (["classify.texts"], ["mplug.vqa", "--scale", "base"], [f"{tmp_path}/mine.yaml"]):
        assert main(["train", *target, "--out", str(tmp_path / "run")]) == 2
        assert "name a manifest with --data PATH" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["mplug.pretrain", "vlmo.language", "mplug.grounding"])
def test_a_recipe_without_data_trains_on_the_scenes(capsys, tmp_path, recipe):
    arguments = ["train", recipe, "--scale", "smoke", "--out", str(tmp_path / "run")]
    assert main([*arguments, "--train.max-steps", "1"]) == 0
    out = capsys.readouterr().out
    assert f"no --data: training on the built-in scenes in {tmp_path / 'run' / 'data'}" in out
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    assert main(arguments) == 2
    assert "holds an earlier run: resume it" in capsys.readouterr().err


def test_a_run_may_go_on_with_more_bad_samples(trained, tmp_path):
    save_yaml(build_recipe("mplug.pretrain", "smoke"), tmp_path / "run" / "config.yaml")
    assert main(["train", "run", "--resume", "--data.max-bad-share", "0.03"]) == 0
    assert trained == [("resumed", Path("run"))]
    stored = load_yaml(RunConfig, tmp_path / "run" / "config.yaml")
    base = build_recipe("mplug.pretrain", "smoke")
    assert stored == replace(base, data=replace(base.data, max_bad_share=0.03))


def test_a_run_may_go_on_with_other_processes(trained, tmp_path):
    base = build_recipe("mplug.pretrain", "smoke")
    save_yaml(base, tmp_path / "run" / "config.yaml")
    flags = ["--train.num-processes=2", "--train.parallel", "fsdp", "--train.micro-batch-size", "2"]
    assert main(["train", "run", "--resume", *flags]) == 0
    stored = load_yaml(RunConfig, tmp_path / "run" / "config.yaml").train
    assert stored == replace(base.train, num_processes=2, parallel="fsdp", micro_batch_size=2)


def test_resume_auto_starts_a_run_and_then_goes_on_with_it(tmp_path, capsys):
    command = ["train", "mplug.pretrain", "--scale", "smoke", "--out", str(tmp_path / "run")]
    command += ["--train.max-steps", "1", "--resume", "auto"]
    assert main(command) == 0
    assert "from step 0 to 1" in capsys.readouterr().out
    assert main(command) == 0
    assert "from step 1 to 1" in capsys.readouterr().out


@pytest.mark.parametrize("planned", [True, False])
def test_a_stop_between_stages_says_how_to_go_on(tmp_path, monkeypatch, capsys, planned):
    def stopped(plan, folder):
        if planned:
            save_yaml(build_recipe("vlmo.pretrain", "smoke"), folder / "stages" / "pretrain.yaml")
        raise KeyboardInterrupt

    monkeypatch.setattr("triptych.workflows.stagewise.train_stagewise", stopped)
    arguments = ["vlmo.stagewise", "--data", "a.jsonl", "--out", str(tmp_path / "all")]
    assert main(["train", *arguments]) == 130
    hint = f"continue with `triptych train {tmp_path / 'all'} --resume`"
    assert (hint in capsys.readouterr().err) == planned


def test_all_stages_may_go_on_with_more_bad_samples(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("triptych.cli.train_stagewise.resume", lambda folder, **_: 0)
    files = [tmp_path / "all" / name for name in ("stages/vision.yaml", "stages/pretrain.yaml")]
    files.append(tmp_path / "all" / "vision" / "config.yaml")
    for file in files:
        save_yaml(build_recipe("vlmo.pretrain", "smoke"), file)
    assert main(["train", "all", "--resume", "--data.max-bad-share=0.5"]) == 0
    assert [load_yaml(RunConfig, file).data.max_bad_share for file in files] == [0.5] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "--resume", "--data.max-bad-share", "much"],
            "max_bad_share",
        ),
        (["run", "--resume", "--data.max-bad-share"], "--data.max-bad-share needs a value"),
        (["run", "--resume", "--train.parallel", "magic"], "train.parallel"),
        (["run", "--resume", "--data.max-bad-share", "2"], "must be from 0 to 1"),
        (["my.jsonl"], "train on data in it with `triptych train RECIPE --data my.jsonl`"),
        (["photos"], "or train on data in it with `triptych train RECIPE --data photos`"),
        (["vlmo.stagewise", "--resume"], "triptych train RUN_FOLDER --resume"),
        (["vlmo.stagewise", "--texts", "a.txt"], "--texts needs --data"),
        (["flava.stagewise", "--images", "a"], "--images needs --data"),
        (["flava.stagewise", "--split", "val"], "an option for reading --data needs --data"),
        (["flava.stagewise", "--data", "a", "--data", "b"], "--data is given more than once"),
        (["flava.joint", "--data", "a", "--data=b"], "--data is given more than once"),
    ],
)
def test_what_was_meant_is_said(trained, tmp_path, capsys, arguments, message):
    save_yaml(build_recipe("mplug.pretrain", "smoke"), tmp_path / "run" / "config.yaml")
    (tmp_path / "my.jsonl").write_text("{}")
    (tmp_path / "photos").mkdir()
    assert main(["train", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert trained == []
