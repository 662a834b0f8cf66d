"""The fusion network as a choice of the user: each one trains, and what cannot be is refused."""

import io
from dataclasses import replace
from typing import get_args

import pytest
from rich.console import Console

import triptych.workflows.run as run_module
from tests.train.toy import exact_lines
from triptych.cli.train import read_config
from triptych.core.config import load_yaml
from triptych.core.errors import ConfigError
from triptych.models.families import model_config
from triptych.models.mplug.config import FusionName, strided_layers
from triptych.recipes.config import ModelSource, RunConfig
from triptych.train.config import ObjectiveWeight
from triptych.workflows.new_model import ITM_LEFT_OUT, choose_fusion
from triptych.workflows.run import CONFIG_FILE, train_run

from .small_runs import small_run, source_of, trained_model

SELF, CROSS = {"attention"}, {"attention", "cross_attention"}
LAYERS = {
    "skip_connected": [CROSS, SELF, CROSS],
    "connected_attention": [SELF, SELF, SELF],
    "co_attention": [CROSS, CROSS, CROSS],
    "asymmetric_co_attention": [CROSS, CROSS, CROSS],
    "none": [],
}
"""What each layer of the text's stream attends with, at mplug_tiny's depth of 3."""


def _kinds(model):
    """Return the attentions of each layer of the fusion network."""
    found = []
    for block in getattr(model.fusion, "blocks", ()):
        names = {name for name, part in block.named_children() if part is not None}
        found.append(names & CROSS)
    return found


@pytest.fixture
def unmoved(monkeypatch):
    """Return the names of the fusion network's parameters that have had no gradient yet."""
    names: set[str] = set()
    build = run_module.build_task

    def build_task(config, model, *others):
        for name, parameter in model.fusion.named_parameters():
            names.add(name)
            parameter.register_post_accumulate_grad_hook(
                lambda p, name=name: names.discard(name) if bool(p.grad.any()) else None
            )
        return build(config, model, *others)

    monkeypatch.setattr(run_module, "build_task", build_task)
    return names


@pytest.mark.parametrize("fusion", get_args(FusionName))
def test_every_network_trains_from_the_recipe(tmp_path, scenes, unmoved, fusion):
    config = small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain"), log_every_steps=1)
    assert "itm" in {weight.name for weight in config.weights}
    said = io.StringIO()
    source = replace(config.model, fusion=fusion)
    train_run(replace(config, model=source), tmp_path, console=Console(file=said, width=200))
    model = trained_model(tmp_path / "model")
    assert model.config.fusion == fusion
    assert _kinds(model) == LAYERS[fusion]
    assert unmoved == set()
    losses = {key.removeprefix("loss/") for line in exact_lines(tmp_path) for key in line}
    objectives = {"itc", "itm", "mlm", "prefix_lm"}
    assert losses & objectives == (objectives - {"itm"} if fusion == "none" else objectives)
    assert (ITM_LEFT_OUT in said.getvalue()) == (fusion == "none")
    kept = load_yaml(RunConfig, tmp_path / CONFIG_FILE).weights  # what a resumed run reads
    assert {weight.name for weight in kept} == losses & objectives


def test_retrieval_of_a_model_without_a_network_is_by_itc_alone(tmp_path, scenes):
    config = small_run("mplug.retrieval", source_of(scenes, "mplug.retrieval"), max_steps=1)
    train_run(replace(config, model=replace(config.model, fusion="none")), tmp_path)
    names = {key for line in exact_lines(tmp_path) for key in line if key.startswith("loss/")}
    assert names == {"loss/itc", "loss/total"}


def test_the_command_line_reaches_all_three_fields():
    words = "mplug.pretrain --model.fusion skip_connected --model.connected-layers 0 2"
    config = read_config([*words.split(), "--model.connected-image-residual", "True"])
    chosen = choose_fusion(model_config("mplug_tiny"), config.model)
    assert (chosen.fusion, chosen.connected_layers) == ("skip_connected", (0, 2))
    assert chosen.connected_image_residual is True
    none = read_config(["mplug.pretrain", "--model.connected-layers"])
    assert choose_fusion(model_config("mplug_tiny"), none.model).connected_layers == ()


def test_the_papers_layout_is_a_choice_of_layers():
    """Paper, section 3.2: with six layers and S = 2, layers 2 and 5 are connected, from 0."""
    source = ModelSource(
        connected_layers=strided_layers(6, 2, "paper"), connected_image_residual=False
    )
    base = model_config("mplug_base_patch16_256")
    chosen = choose_fusion(base, source)
    assert chosen == replace(base, connected_layers=(2, 5), connected_image_residual=False)


@pytest.mark.parametrize(
    "name", ["mplug_tiny", "vlmo_tiny", "flava_tiny", "mplug_base_patch16_256"]
)
def test_a_source_without_a_choice_keeps_the_variant(name):
    variant = model_config(name)
    assert choose_fusion(variant, ModelSource(name=name)) == variant


@pytest.mark.parametrize("name", ["vlmo_tiny", "flava_tiny"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("fusion", "none"), ("connected_layers", (1,)), ("connected_image_residual", True)],
)
def test_other_families_have_no_such_choice(name, field, value):
    source = ModelSource(name=name, **{field: value})
    with pytest.raises(ConfigError, match=rf"model.{field} = .*{name} is of (VLMo|FLAVA)"):
        choose_fusion(model_config(name), source)


@pytest.mark.parametrize(
    ("field", "value"),
    [("fusion", "none"), ("connected_layers", ()), ("connected_image_residual", False)],
)
def test_a_whole_model_brings_its_own_network(field, value):
    with pytest.raises(ConfigError, match=rf"model.{field} = .*init_from gives a whole model"):
        ModelSource(init_from="folder", **{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("connected_layers", (1,)), ("connected_image_residual", True)]
)
def test_only_a_skip_connected_network_has_layers_to_connect(field, value):
    source = ModelSource(fusion="co_attention", **{field: value})
    with pytest.raises(ConfigError, match=rf"model.{field} = .*only 'skip_connected' reads it"):
        choose_fusion(model_config("mplug_tiny"), source)


def test_layers_that_do_not_exist_are_named():
    source = ModelSource(connected_layers=(3,))
    with pytest.raises(ConfigError, match=r"model.connected_layers = \(3,\): .* from 0 to 2"):
        choose_fusion(model_config("mplug_tiny"), source)


def test_itm_alone_cannot_train_a_model_without_a_network(tmp_path, scenes):
    config = small_run("mplug.pretrain", source_of(scenes, "mplug.pretrain"))
    config = replace(config, weights=(ObjectiveWeight(name="itm"),))
    with pytest.raises(ConfigError, match="'none' cannot learn from itm alone"):
        train_run(replace(config, model=replace(config.model, fusion="none")), tmp_path)
