"""Low-rank adaptation and frozen parts in whole runs."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from triptych.checkpoint.model_folder import load_model_folder
from triptych.checkpoint.run import load_latest
from triptych.cli.main import main
from triptych.core.config import load_yaml, save_yaml
from triptych.core.errors import CheckpointError, ConfigError
from triptych.core.patterns import is_factor
from triptych.nn.lora import LoRAConfig
from triptych.recipes.config import RunConfig
from triptych.serving.loading import load_model
from triptych.tasks.finetuning.retrieval import RetrievalConfig
from triptych.workflows.exporting import export_best, export_model
from triptych.workflows.run import resume_run, train_run

from .small_runs import small_run, source_of

ALSO = ("decoder.embedding.word",)


def vqa(scenes, pretrained, **train):
    """Return a fine-tuning run from the pre-trained model, without the table at its end."""
    run = small_run("mplug.vqa", source_of(scenes, "mplug.vqa"), **train)
    run = replace(run, model=replace(run.model, init_from=str(pretrained / "model")))
    return replace(run, guard=replace(run.guard, images=0))


def lines(folder):
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("samples_per_s", "data_wait_share", "elapsed_s")
    return [{k: v for k, v in line.items() if k not in clock} for line in found]


@pytest.fixture(scope="module")
def adapted(scenes, pretrained, tmp_path_factory):
    """A run of four steps with a checkpoint every two, kept beside."""
    run = vqa(
        scenes,
        pretrained,
        max_steps=4,
        checkpoint_every_steps=2,
        log_every_steps=1,
        keep_checkpoints=9,
        recompute="selective",
    )
    lora = LoRAConfig(rank=2, dropout=0.1, also=ALSO, save="beside")
    run = replace(run, lora=lora)
    run = replace(run, optim=replace(run.optim, layer_decay=0.5))
    folder = tmp_path_factory.mktemp("adapted") / "run"
    train_run(run, folder)
    return folder


def test_frozen_weights_have_no_optimizer_state_and_stay(adapted, pretrained):
    _, state = load_latest(adapted / "checkpoints")
    named = {n: v for n, v in state["modules"].items() if n.startswith("model.")}
    before = load_model_folder(pretrained / "model").state_dict
    also = {name for name in named if ALSO[0] in name}
    assert len(also) == 1
    for name, value in named.items():
        if not is_factor(name) and name not in also:
            assert torch.equal(value, before[name.removeprefix("model.")]), name
    factors = {name for name in named if is_factor(name)}
    assert set(state["optimizer"]) == factors | also
    assert not torch.equal(named[min(also)], before[min(also).removeprefix("model.")])
    assert any(value.abs().max() > 0 for n, value in named.items() if n.endswith("lora_B"))


def test_a_run_goes_on_bitwise_and_not_with_another_rank(adapted, tmp_path):
    whole = lines(adapted)
    weights = load_file(adapted / "model" / "adapter_model.safetensors")
    for name in ("config.yaml", "metrics.jsonl", "tokenizer.json", "start.json"):
        (tmp_path / name).write_bytes((adapted / name).read_bytes())
    checkpoint = tmp_path / "checkpoints" / "step_2"
    checkpoint.mkdir(parents=True)
    for file in (adapted / "checkpoints" / "step_2").iterdir():
        (checkpoint / file.name).write_bytes(file.read_bytes())
    resume_run(tmp_path)
    assert lines(tmp_path) == whole
    again = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert all(torch.equal(again[name], value) for name, value in weights.items())
    config = load_yaml(RunConfig, tmp_path / "config.yaml")
    save_yaml(replace(config, lora=replace(config.lora, rank=3)), tmp_path / "config.yaml")
    with pytest.raises(CheckpointError, match="with the configuration that the run began with"):
        resume_run(tmp_path)
    save_yaml(replace(config, lora=LoRAConfig()), tmp_path / "config.yaml")
    with pytest.raises(CheckpointError, match="lora_A"):
        resume_run(tmp_path)


def test_beside_merged_and_exported_folders_hold_the_same_weights(adapted, scenes, tmp_path):
    folder = adapted / "model"
    beside = load_model(folder).model.state_dict()
    assert main(["merge", str(folder), "--out", str(tmp_path / "merged")]) == 0
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    export_model(adapted, tmp_path / "exported")
    for out in ("merged", "exported"):
        found = load_model(tmp_path / out).model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in beside.items())
    assert load_model(tmp_path / "merged").settings == load_model(folder).settings
    run = load_yaml(RunConfig, adapted / "config.yaml")
    again = replace(run, lora=replace(run.lora, save="merged"))
    train_run(again, tmp_path / "again")
    assert not (tmp_path / "again" / "model" / "adapter_config.json").exists()
    found = load_model(tmp_path / "again" / "model").model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in beside.items())


def test_an_adapter_apart_is_merged_into_its_own_model_alone(adapted, pretrained, tmp_path, capsys):
    apart = tmp_path / "apart"
    apart.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (apart / name).write_bytes((adapted / "model" / name).read_bytes())
    start, out = str(pretrained / "model"), str(tmp_path / "out")
    assert main(["merge", start, "--adapter", str(apart), "--out", out]) == 0
    one, other = (load_model(f).model.state_dict() for f in (out, adapted / "model"))
    assert all(torch.equal(one[name], value) for name, value in other.items())
    assert "apart" in (tmp_path / "out" / "README.md").read_text()
    capsys.readouterr()
    again = ["merge", out, "--adapter", str(apart), "--out", str(tmp_path / "twice")]
    assert main(again) == 2
    assert "other weights" in capsys.readouterr().err
    assert main(["merge", start, "--out", str(tmp_path / "none")]) == 2
    assert "no adapter" in capsys.readouterr().err


def test_teachers_follow_the_change_and_the_best_model_keeps_it_beside(
    scenes, pretrained, tmp_path
):
    run = small_run("mplug.retrieval", source_of(scenes, "mplug.retrieval"), max_steps=2)
    val = source_of(scenes, "mplug.retrieval", "val")
    run = replace(
        run,
        model=replace(run.model, init_from=str(pretrained / "model")),
        data=replace(run.data, val=(val,)),
        task=RetrievalConfig(queue_size=16, momentum=0.5, alpha=0.4),
        lora=LoRAConfig(rank=2, targets=("attention.qkv",), save="beside"),
        guard=replace(run.guard, images=0),
    )
    train_run(run, tmp_path / "run")
    _, state = load_latest(tmp_path / "run" / "checkpoints")
    teacher = [n for n in state["modules"] if n.endswith("lora_B") and not n.startswith("model.")]
    assert any(state["modules"][name].abs().max() > 0 for name in teacher)
    export_best(tmp_path / "run", tmp_path / "best")
    assert (tmp_path / "best" / "adapter_config.json").is_file()
    load_model(tmp_path / "best")


def test_frozen_parts_stay_and_the_others_learn(scenes, pretrained, tmp_path):
    run = replace(
        vqa(scenes, pretrained, max_steps=2), freeze=("visual_encoder", "text_encoder.blocks.0")
    )
    train_run(run, tmp_path / "run")
    before = load_model_folder(pretrained / "model").state_dict
    after = load_model_folder(tmp_path / "run" / "model").state_dict
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    kept = ("visual_encoder.", "text_encoder.blocks.0.")
    assert changed and not any(name.startswith(kept) for name in changed)
    _, state = load_latest(tmp_path / "run" / "checkpoints")
    assert not any(n.removeprefix("model.").startswith(kept) for n in state["optimizer"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"freeze": ("visual_encodr",)}, "near it are .*visual_encoder"),
        ({"freeze": ("*",)}, "nothing is left to train"),
        ({"freeze": ("visual_encoder", "visual_encoder.blocks")}, "omit it"),
        ({"lora": LoRAConfig(rank=2, also=("mlp_norms",))}, "near it are mlp_norm"),
        ({"lora": LoRAConfig(rank=2, also=("mlp",))}, "has layers that are adapted"),
        ({"lora": LoRAConfig(rank=2, targets=("mlp.upp",))}, r"near it are mlp\.up"),
        ({"lora": LoRAConfig(rank=2), "freeze": ("*norm*",)}, "matches nothing that is trained"),
        ({"lora": LoRAConfig(rank=2), "model": None}, "name a trained model with --init-from"),
    ],
)
def test_what_would_train_nothing_or_not_what_is_meant_is_refused(
    scenes, pretrained, tmp_path, change, message
):
    run = vqa(scenes, pretrained, max_steps=1)
    if "model" in change:
        change = change | {"model": replace(run.model, init_from=None)}
    with pytest.raises(ConfigError, match=message):
        train_run(replace(run, **change), tmp_path / "run")
