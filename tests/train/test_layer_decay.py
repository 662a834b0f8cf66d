"""Learning rates of lower blocks, against BEiT's rule worked by hand."""

import re

import pytest
import torch
from torch import nn

from triptych.core.errors import ConfigError
from triptych.models.families import model_config
from triptych.models.vlmo.family import VLMO_FAMILY
from triptych.models.vlmo.model import VLMo
from triptych.tasks.pretraining.vlmo import VLMoPretraining, VLMoPretrainingConfig
from triptych.train.config import OptimConfig
from triptych.train.optim import group_parameters, has_weight_decay, layer_factors


def test_factors_of_a_stack_of_two():
    names = [
        "model.patch_embedding.weight",
        "model.mask_token",
        "model.trunk.blocks.0.attention.qkv.weight",
        "model.trunk.blocks.1.experts.text.mlp.up.bias",
        "model.trunk.norm.weight",
        "model.trunk.relative_positions.table",
        "head.0.weight",
    ]
    # BEiT: 0.5 ** (2 + 1 - layer), embeddings being layer 0, block i layer i + 1, the rest 3
    expected = [0.125, 0.125, 0.25, 0.5, 1.0, 1.0, 1.0]
    assert list(layer_factors(names, 0.5).values()) == expected


def test_groups_keep_every_parameter_and_take_their_factors():
    with torch.device("meta"):
        model = nn.ModuleDict({"model": VLMo(model_config("vlmo_tiny"))})
    named = dict(model.named_parameters())
    plain = group_parameters(named.items(), OptimConfig(), VLMO_FAMILY.is_vision_parameter)
    config = OptimConfig(learning_rate=1e-3, layer_decay=0.9)
    groups = group_parameters(named.items(), config, VLMO_FAMILY.is_vision_parameter)
    rates = {name: group.peak_lr for group in groups for name, _ in group.parameters}
    assert rates.keys() == named.keys()
    assert sum(len(group.parameters) for group in groups) == len(named)
    assert len({group.name for group in groups}) == len(groups) > len(plain)
    assert rates["model.trunk.blocks.5.attention.qkv.weight"] == pytest.approx(0.9e-3)
    assert rates["model.trunk.blocks.0.attention.qkv.weight"] == pytest.approx(1e-3 * 0.9**6)
    assert rates["model.text_embedding.word.weight"] == pytest.approx(1e-3 * 0.9**7)
    assert rates["model.mlm_head.weight"] == pytest.approx(1e-3)
    decays = {name for group in groups if group.weight_decay for name, _ in group.parameters}
    assert decays == {n for group in plain if group.weight_decay for n, _ in group.parameters}


def test_a_factor_above_one_is_refused():
    with pytest.raises(ConfigError, match="layer_decay"):
        OptimConfig(layer_decay=1.1)


@pytest.mark.parametrize("variant", ["vlmo_base_patch16", "vlmo_base_plus_patch16"])
def test_what_the_released_code_decays_by_mistake_does_not_decay(variant):
    """Weights of layers, convolution and words decay; nothing else, the type tables neither."""
    config = VLMoPretrainingConfig(fused_itc=True)
    with torch.device("meta"):
        task = VLMoPretraining(VLMo(model_config(variant)), config)
    matrices = r"(attention\.(qkv|out)|mlp\.(up|down)|patch_embedding|word|pooler|dense"
    matrices += r"|itm_head|mlm_head|(fused_)?(image|text)_projection)\.weight"
    decaying = {
        name
        for name, parameter in task.modules.named_parameters()
        if has_weight_decay(name, parameter)
    }
    named = {name for name, _ in task.modules.named_parameters()}
    assert decaying == {name for name in named if re.search(rf"\.{matrices}$", name)}
    spared = {
        "model.text_embedding.token_type.weight",
        "model.modality_embedding.weight",
        "model.class_embedding",
        "model.mask_token",
        "state.logit_scale",
        "state.fused_logit_scale",
        "model.trunk.blocks.0.experts.image.norm.weight",
    }
    spared |= (
        {"model.trunk.relative_positions.table", "model.trunk.blocks.0.attention_scale"}
        if variant == "vlmo_base_patch16"
        else {"model.position_embedding", "model.text_embedding.position.weight"}
    )
    assert spared <= named - decaying
