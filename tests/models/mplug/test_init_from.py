"""CLIP and BERT fill the model: the parts then compute what transformers computes."""

import dataclasses
import json
from typing import get_args

import pytest
import torch

from triptych.core.errors import CapabilityError, CheckpointError
from triptych.models.mplug.config import FusionName, MPLUGConfig
from triptych.models.mplug.init_from import init_text, init_vision
from triptych.models.mplug.model import MPLUG
from triptych.nn.attention import key_bias
from triptych.nn.encoder import TextConfig
from triptych.nn.positions import resize_position_table
from triptych.nn.vision import VisionConfig

transformers = pytest.importorskip("transformers")
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def small_config(**changes):
    """Return sizes that CLIP and BERT of these tests have, too."""
    config = MPLUGConfig(
        vision=VisionConfig(image_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2),
        text=TextConfig(vocab_size=40, embed_dim=32, num_heads=4, max_positions=12),
        text_depth=2,
        fusion_depth=2,
        connected_layers=(1,),
        decoder_depth=4,
        proj_dim=8,
    )
    return dataclasses.replace(config, **changes)


def build(**changes):
    torch.manual_seed(0)
    return MPLUG(small_config(**changes)).eval()


def randomise(module):
    """Give norms and biases values of their own, so that a wrong place shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    return module.eval()


def clip_config(**changes):
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8} | changes
    return transformers.CLIPVisionConfig(**sizes)


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(1)
    return randomise(transformers.CLIPVisionModel(clip_config()))


def bert_config(**changes):
    sizes = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "vocab_size": 40, "max_position_embeddings": 16} | changes
    return transformers.BertConfig(**sizes)


@pytest.fixture(scope="module")
def bert():
    torch.manual_seed(2)
    return randomise(transformers.BertForMaskedLM(bert_config()))


def facts(config):
    return json.loads(config.to_json_string())


def vision_states(clip, image):
    """Return CLIP's states with the last norm on every token, which mPLUG reads."""
    tower = getattr(clip, "vision_model", clip)
    return tower.post_layernorm(clip(image).last_hidden_state)


def openai_names(clip):
    """Rename the tower of transformers to OpenAI's layout, queries, keys and values packed."""
    found = {}
    for name, tensor in clip.state_dict().items():
        name = name.removeprefix("vision_model.")
        for theirs, openai in (
            ("embeddings.class_embedding", "class_embedding"),
            ("embeddings.patch_embedding", "conv1"),
            ("embeddings.position_embedding.weight", "positional_embedding"),
            ("pre_layrnorm", "ln_pre"),
            ("post_layernorm", "ln_post"),
            ("encoder.layers", "transformer.resblocks"),
            ("self_attn", "attn"),
            ("layer_norm", "ln_"),
            ("mlp.fc1", "mlp.c_fc"),
            ("mlp.fc2", "mlp.c_proj"),
        ):
            name = name.replace(theirs, openai)
        if name != "embeddings.position_ids":
            found[f"visual.{name}"] = tensor
    for layer in range(2):
        own = f"visual.transformer.resblocks.{layer}.attn"
        for kind in ("weight", "bias"):
            parts = [found.pop(f"{own}.{part}_proj.{kind}") for part in "qkv"]
            found[f"{own}.in_proj_{kind}"] = torch.cat(parts)
    return found


@torch.no_grad()
@pytest.mark.parametrize("layout", ["transformers 4", "transformers 5", "openai", "openai tower"])
def test_image_states_equal_those_of_transformers(clip, layout):
    state = {k.removeprefix("vision_model."): v for k, v in clip.state_dict().items()}
    config = facts(clip.config)
    if layout == "transformers 4":
        state = {f"vision_model.{name}": tensor for name, tensor in state.items()}
    if "openai" in layout:
        state, config = openai_names(clip), {}
    if layout == "openai tower":
        state = {name.removeprefix("visual."): tensor for name, tensor in state.items()}
    model = build()
    image = torch.randn(2, 3, 32, 32)
    before = model.visual_encoder(image)
    report = init_vision(model, state, config)
    assert report.is_complete
    states = model.visual_encoder(image)
    assert not torch.allclose(states, before, atol=0.1)
    torch.testing.assert_close(states, vision_states(clip, image), **CLOSE)


@torch.no_grad()
def test_a_whole_clip_model_gives_its_image_tower(clip):
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 1, "vocab_size": 50, "bos_token_id": 0, "eos_token_id": 1}
    both = transformers.CLIPConfig(vision_config=facts(clip_config()), text_config=text)
    whole = randomise(transformers.CLIPModel(both))
    model = build()
    report = init_vision(model, whole.state_dict(), facts(whole.config))
    assert set(report.dropped.values()) <= {
        "CLIP's text tower",
        "CLIP's joint projection",
        "constant",
    }
    image = torch.randn(1, 3, 32, 32)
    expected = whole.vision_model.post_layernorm(whole.vision_model(image).last_hidden_state)
    torch.testing.assert_close(model.visual_encoder(image), expected, **CLOSE)


def test_openais_text_tower_and_constants_are_known(clip):
    rest = {
        "visual.proj": torch.zeros(64, 8),
        "positional_embedding": torch.zeros(77, 8),
        "text_projection": torch.zeros(8, 8),
        "logit_scale": torch.tensor(1.0),
        "token_embedding.weight": torch.zeros(3, 8),
        "ln_final.bias": torch.zeros(8),
        "transformer.resblocks.0.ln_1.bias": torch.zeros(8),
        "input_resolution": torch.tensor(224),
        "context_length": torch.tensor(77),
        "vocab_size": torch.tensor(49408),
    }
    report = init_vision(build(), openai_names(clip) | rest, {})
    assert set(report.dropped) == set(rest)


def test_half_precision_towers_are_read(clip):
    model = build()
    init_vision(model, {k: v.half() for k, v in openai_names(clip).items()}, {})
    found = model.visual_encoder.patch_embedding.weight
    assert found.dtype == torch.float32
    expected = openai_names(clip)["visual.conv1.weight"].half().float()
    assert torch.equal(found, expected)


def test_another_image_size_resizes_the_tower_s_positions(clip):
    vision = dataclasses.replace(small_config().vision, image_size=48)
    model = build(vision=vision)
    report = init_vision(model, clip.state_dict(), facts(clip.config))
    assert report.resized == ["visual_encoder.position_embedding"]
    table = openai_names(clip)["visual.positional_embedding"]
    expected = resize_position_table(table, 36)
    assert torch.equal(model.visual_encoder.position_embedding, expected)


def test_only_the_image_encoder_changes(clip):
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    init_vision(model, clip.state_dict(), {})
    same = {k for k, v in model.state_dict().items() if torch.equal(v, before[k])}
    assert {k for k in before if not k.startswith("visual_encoder.")} <= same


@torch.no_grad()
def test_text_states_equal_the_first_layers_of_bert(bert):
    model = build()
    report = init_text(model, bert.state_dict(), facts(bert.config))
    assert report.unexpected == []
    assert {name.split(".")[3] for name in report.missing} == {"cross_attention", "cross_norm"}
    ids, mask = text_batch()
    states = bert.bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    found = model.text_encoder(ids, mask.bool())
    torch.testing.assert_close(found[mask.bool()], states[2][mask.bool()], **CLOSE)


def text_batch():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 40, (2, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return ids, mask


@torch.no_grad()
def test_encoder_then_text_side_of_the_fusion_then_head_is_bert(bert):
    # Without the fresh cross-attention, the text encoder's layers and the fusion network's are
    # BERT's first and last half: all of BERT, and its MLM head on top.
    model = build(connected_layers=())
    init_text(model, bert.state_dict(), facts(bert.config))
    ids, mask = text_batch()
    states = model.text_encoder(ids, mask.bool())
    for block in model.fusion.blocks:
        states = block(states, key_bias(mask.bool()))
    real = mask.bool()
    expected = bert.bert(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(states[real], expected[real], **CLOSE)
    logits = bert(ids, attention_mask=mask).logits
    torch.testing.assert_close(model.word_logits(states)[real], logits[real], **CLOSE)


@torch.no_grad()
def test_decoder_is_a_bert_decoder_with_berts_word_head(bert):
    config = bert_config(is_decoder=True)
    causal = transformers.BertLMHeadModel(config).eval()
    causal.load_state_dict(bert.state_dict())
    model = build()
    init_text(model, bert.state_dict(), facts(bert.config))
    ids, _ = text_batch()
    memory = model.decoder.project_memory(torch.randn(2, 3, 32), None)
    for block in model.decoder.blocks:
        block.cross_attention = None  # BERT has none
    found = model.decoder.word_logits(model.decode(ids, memory))
    torch.testing.assert_close(found, causal(ids).logits, **CLOSE)


@torch.no_grad()
def test_a_connected_layer_takes_berts_layer_too(bert):
    model = build(connected_layers=(1,))
    init_text(model, bert.state_dict(), {})
    dense = bert.bert.encoder.layer[3].intermediate.dense.weight
    assert torch.equal(model.fusion.blocks[1].mlp.up.weight, dense)


@torch.no_grad()
@pytest.mark.parametrize("fusion", get_args(FusionName))
def test_every_fusion_network_takes_berts_last_layers(bert, fusion):
    model = build(fusion=fusion)
    report = init_text(model, bert.state_dict(), {})
    assert report.unexpected == []
    last = bert.bert.encoder.layer[3].output.dense.weight
    stacks = {"co_attention": ("blocks", "image_blocks"), "none": ()}.get(fusion, ("blocks",))
    for stack in stacks:
        assert torch.equal(getattr(model.fusion, stack)[1].mlp.down.weight, last)
    fresh = {name for name in report.missing if name.startswith("fusion.")}
    assert all("cross_" in name for name in fresh)
    assert bool(fresh) == (fusion not in ("none", "connected_attention"))


@pytest.mark.parametrize("kind", ["BertModel", "BertForPreTraining", "old names"])
def test_other_forms_of_bert(bert, kind):
    if kind == "BertForPreTraining":
        state = randomise(transformers.BertForPreTraining(bert_config())).state_dict()
        words = state["bert.embeddings.word_embeddings.weight"]
    elif kind == "BertModel":
        state = bert.bert.state_dict()
        words = state["embeddings.word_embeddings.weight"]
    else:
        state = {
            k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
                "LayerNorm.bias", "LayerNorm.beta"
            ): v
            for k, v in bert.state_dict().items()
        }
        words = state["bert.embeddings.word_embeddings.weight"]
    model = build()
    report = init_text(model, state, {})
    assert report.unexpected == []
    assert torch.equal(model.text_encoder.embedding.word.weight, words)
    heads = [name for name in report.missing if "head" in name]
    assert bool(heads) == (kind == "BertModel")
    if kind == "old names":
        norm = bert.bert.embeddings.LayerNorm
        assert torch.equal(model.decoder.embedding.norm.weight, norm.weight)


def test_a_head_with_its_own_matrix_starts_at_berts_words(bert):
    model = build(tie_mlm_head=False)
    init_text(model, bert.state_dict(), {})
    assert torch.equal(model.mlm_head.weight, bert.bert.embeddings.word_embeddings.weight)


def test_fewer_positions_take_the_first_rows(bert):
    model = build()
    report = init_text(model, bert.state_dict(), {})
    assert sorted(report.resized) == [
        "decoder.embedding.position.weight",
        "text_encoder.embedding.position.weight",
    ]
    table = bert.bert.embeddings.position_embeddings.weight
    assert torch.equal(model.text_encoder.embedding.position.weight, table[:12])


def test_encoder_and_decoder_do_not_share_memory(bert):
    with torch.device("meta"):
        model = MPLUG(small_config())
    init_text(model, bert.state_dict(), {})
    words = model.text_encoder.embedding.word.weight
    assert words.data_ptr() != model.decoder.embedding.word.weight.data_ptr()


def test_layers_of_no_part_are_named(bert):
    model = build(decoder_depth=2, text_depth=1, fusion_depth=1, connected_layers=())
    report = init_text(model, bert.state_dict(), {})
    unused = {name.split(".")[3] for name, why in report.dropped.items() if "no part" in why}
    assert unused == {"2"}


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"hidden_act": "gelu"}, CapabilityError, "hidden_act = 'gelu'"),
        ({"num_attention_heads": 4}, CapabilityError, "num_attention_heads = 4"),
        ({"num_hidden_layers": 1}, CheckpointError, r"not in the file \(such as visual_encoder"),
        ({"num_hidden_layers": 3}, CheckpointError, "not understood"),
        ({"patch_size": 16}, CheckpointError, r"\(64, 3, 16, 16\) for \(64, 3, 8, 8\)"),
    ],
)
def test_towers_that_do_not_fit_say_why(changes, error, says):
    clip = transformers.CLIPVisionModel(clip_config(**changes))
    with pytest.raises(error, match=says):
        init_vision(build(), clip.state_dict(), facts(clip.config))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"hidden_act": "relu"}, CapabilityError, "hidden_act = 'relu'"),
        ({"vocab_size": 41}, CheckpointError, r"\(41, 32\) for \(40, 32\)"),
        ({"num_hidden_layers": 3}, CheckpointError, "BERT has 3 layers"),
        ({"max_position_embeddings": 8}, CheckpointError, r"\(8, 32\) for \(12, 32\)"),
    ],
)
def test_berts_that_do_not_fit_say_why(changes, error, says):
    bert = transformers.BertModel(bert_config(**changes))
    with pytest.raises(error, match=says):
        init_text(build(), bert.state_dict(), facts(bert.config))


def test_the_wrong_kind_of_network_is_named(clip, bert):
    with pytest.raises(CheckpointError, match="not a CLIP image tower"):
        init_vision(build(), bert.state_dict(), facts(bert.config))
    with pytest.raises(CheckpointError, match="there is no CLIP image tower"):
        init_vision(build(), bert.state_dict(), {})
    with pytest.raises(CheckpointError, match="not BERT"):
        init_text(build(), clip.state_dict(), facts(clip.config))
    with pytest.raises(CheckpointError, match="there is no BERT"):
        init_text(build(), clip.state_dict(), {})


def test_a_model_with_a_stem_cannot_start_from_clip(clip):
    vision = dataclasses.replace(small_config().vision, stem_widths=(4,))
    with pytest.raises(CapabilityError, match="without a stem"):
        init_vision(build(vision=vision), clip.state_dict(), {})


def test_a_pre_norm_model_cannot_start_from_bert(bert):
    text = dataclasses.replace(small_config().text, pre_norm=True)
    with pytest.raises(CapabilityError, match="post-norm variant"):
        init_text(build(text=text), bert.state_dict(), {})


def test_the_image_side_is_not_bert_s(bert):
    model = build()
    before = model.visual_encoder.class_embedding.clone()
    init_text(model, bert.state_dict(), {})
    assert torch.equal(model.visual_encoder.class_embedding, before)
