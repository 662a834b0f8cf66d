"""What holds for every registered model; frozen names of its tensors in keys/."""

import dataclasses
import json
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from triptych.core.config import from_dict, kind_of, to_dict
from triptych.core.errors import CapabilityError, CheckpointError, ConfigError
from triptych.models.base import (
    PairReader,
    VisionLanguageModel,
    encode_frames,
    match_pairs,
    num_parameters,
)
from triptych.models.families import (
    build_model,
    create_model,
    list_models,
    model_config,
    restore_model,
)

KEYS = Path(__file__).parent / "keys"


SIDE_PATCHES = 2


def _small_mplug(config):
    same_width = config.vision.embed_dim == config.text.embed_dim
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(
            config.vision,
            image_size=SIDE_PATCHES * config.vision.patch_size,
            embed_dim=16 if same_width else 24,
            depth=2,
            num_heads=2,
        ),
        text=dataclasses.replace(config.text, embed_dim=16, num_heads=2, max_positions=12),
        text_depth=1,
        decoder_depth=1,
        proj_dim=8,
    )


def _small_vlmo(config):
    return dataclasses.replace(
        config,
        image_size=SIDE_PATCHES * config.patch_size,
        embed_dim=16,
        depth=3,
        num_heads=2,
        fused_from=2,
        max_text_tokens=12,
        proj_dim=8,
    )


def _small_flava(config):
    side = SIDE_PATCHES * config.vision.patch_size
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(
            config.vision, image_size=side, embed_dim=16, depth=2, num_heads=2
        ),
        text=dataclasses.replace(config.text, embed_dim=16, num_heads=2, max_positions=12),
        text_depth=1,
        fusion=dataclasses.replace(config.fusion, embed_dim=16, depth=2, num_heads=2),
        proj_dim=8,
        num_codes=20,
        codebook=dataclasses.replace(
            config.codebook, image_size=8 * SIDE_PATCHES, num_codes=20, hidden_dim=4
        ),
        padded_text_len=12,
        pad_attention="masked",
    )


SMALL = {"mplug": _small_mplug, "vlmo": _small_vlmo, "flava": _small_flava}
PRESETS = {
    "flava_full_attended",
    "flava_900m",
    "flava_1_8b",
    "flava_2_7b",
    "flava_4_8b",
    "flava_10b",
}
"""Differ from flava_full in numbers or in padding alone; their parameters are counted below."""


def shrunken(name):
    """Return a variant's config with its own composition and small widths."""
    config = model_config(name, vocab_size=30)
    return SMALL[kind_of(type(config))](config)


def _batch(model, num_images=2, num_tokens=5):
    torch.manual_seed(1)
    image = torch.randn(num_images, 3, model.image_size, model.image_size)
    ids = torch.randint(3, 30, (num_images, num_tokens))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[-1, 3:] = False
    return image, ids, mask


@pytest.fixture(params=list_models())
def model(request):
    torch.manual_seed(0)
    return build_model(shrunken(request.param)).eval()


@pytest.mark.parametrize("name", [name for name in list_models() if name not in PRESETS])
def test_full_size_builds_on_meta_with_its_frozen_names(name):
    with torch.device("meta"):
        model = create_model(name)
    assert all(parameter.is_meta for parameter in model.parameters())
    lines = [f"{key} {tuple(tensor.shape)}" for key, tensor in model.state_dict().items()]
    assert lines == (KEYS / f"{name}.txt").read_text().splitlines()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("mplug_base_patch16_256", 347.0),
        ("mplug_large_patch14_224", 566.0),
        ("vlmo_base_patch16", 202.4),  # 175 without heads; counted in the released constructor
        ("vlmo_base_plus_patch16", 185.0),
        ("vlmo_large_patch16", 599.1),
        ("flava_full", 357.645),  # with the codebook; counted in transformers
        ("flava_900m", 900),
        ("flava_1_8b", 1800),
        ("flava_2_7b", 2700),
        ("flava_4_8b", 4800),
        ("flava_10b", 10000),
    ],
)
def test_paper_sizes_have_the_published_number_of_live_parameters(name, millions):
    with torch.device("meta"):
        model = create_model(name)
    assert num_parameters(model) / 1e6 == pytest.approx(
        millions, rel=0.04 if name in PRESETS else 0.005
    )


@pytest.mark.parametrize(
    ("name", "layers", "width", "hidden"),
    [
        ("flava_full", (12, 12, 6), 768, 3072),
        ("flava_900m", (24, 24, 12), 1024, 4096),
        ("flava_1_8b", (32, 32, 16), 1280, 5120),
        ("flava_2_7b", (40, 40, 20), 1408, 6144),
        ("flava_4_8b", (48, 48, 24), 1664, 8192),
        ("flava_10b", (64, 64, 40), 2048, 10240),
    ],
)
def test_sizes_of_flava_are_torchmultimodals(name, layers, width, hidden):
    config = model_config(name)
    parts = config.vision, config.text, config.fusion
    assert (config.vision.depth, config.text_depth, config.fusion.depth) == layers
    assert {part.embed_dim for part in parts} == {config.proj_dim} == {width}
    assert {round(part.embed_dim * part.mlp_ratio) for part in parts} == {hidden}
    assert {part.num_heads for part in parts} == {12 if name == "flava_full" else 16}


def test_pooled_states_have_the_promised_widths(model):
    image, ids, mask = _batch(model)
    image_features, text = model.encode_image(image), model.encode_text(ids, mask)
    fused = model.fuse(image_features, text)
    dims = model.feature_dims
    widths = [tuple(features.pooled.shape) for features in (image_features, text, fused)]
    assert widths == [(2, dims.image), (2, dims.text), (2, dims.fused)]
    assert torch.equal(fused.rows(slice(1, 2)).pooled, fused.pooled[1:2])


def test_states_have_the_promised_shapes(model):
    image, ids, mask = _batch(model)
    image_features = model.encode_image(image)
    text_features = model.encode_text(ids, mask)
    fused = model.fuse(image_features, text_features)
    num_image = 1 + SIDE_PATCHES**2
    assert image_features.tokens.shape == (2, num_image, 16)
    assert text_features.tokens.shape == (2, 5, 16)
    assert fused.text_tokens.shape == (2, 5, 16)
    assert fused.expanded_image_tokens().shape == (2, num_image, 16)
    assert fused.pooled.shape == (2, 16)
    assert model.match_logits(fused).shape == (2, 2)
    assert model.word_logits(fused.text_tokens).shape == (2, 5, 30)
    if "decode" in model.capabilities:
        memory = model.decoder_memory(image_features, fused)
        assert model.decode(ids, memory).shape == (2, 5, 16)
    for embedding in (model.embed_image(image_features), model.embed_text(text_features)):
        torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))


def test_model_offers_the_contract(model):
    assert isinstance(model, VisionLanguageModel)


@torch.no_grad()
def test_fusing_by_image_index_equals_repeating_images(model):
    image, ids, mask = _batch(model)
    image_features = model.encode_image(image)
    text = model.encode_text(ids, mask)
    index = torch.tensor([1, 1])
    found = model.fuse(image_features, text, image_index=index)
    expected = model.fuse(image_features.select(index), text)
    torch.testing.assert_close(found.text_tokens, expected.text_tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        found.expanded_image_tokens(), expected.expanded_image_tokens(), atol=1e-5, rtol=1e-5
    )
    torch.testing.assert_close(found.pooled, expected.pooled, atol=1e-5, rtol=1e-5)
    if "decode" not in model.capabilities:
        return
    torch.testing.assert_close(
        model.decoder_memory(image_features, found).layers[0].key,
        model.decoder_memory(image_features, expected).layers[0].key,
        atol=1e-5,
        rtol=1e-5,
    )


@torch.no_grad()
def test_padding_changes_no_output(model):
    image, ids, mask = _batch(model)
    other = ids.masked_fill(~mask, 7)
    wide = torch.nn.functional.pad(other, (0, 2), value=9)
    wide_mask = torch.nn.functional.pad(mask, (0, 2))
    results = []
    for token_ids, text_mask in ((ids, mask), (other, mask), (wide, wide_mask)):
        image_features = model.encode_image(image)
        text = model.encode_text(token_ids, text_mask)
        fused = model.fuse(image_features, text)
        words = model.word_logits(fused.text_tokens)[:, :5][mask]
        result = [model.embed_text(text), model.match_logits(fused), words]
        if "decode" in model.capabilities:
            result.append(model.decode(ids, model.decoder_memory(image_features, fused)))
        results.append(result)
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], atol=1e-5, rtol=1e-5)


def test_save_and_load_are_bitwise(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    other = build_model(model.config)
    other.load_state_dict(load_file(path))
    image, ids, mask = _batch(model)
    other.eval()
    theirs = other.fuse(other.encode_image(image), other.encode_text(ids, mask))
    mine = model.fuse(model.encode_image(image), model.encode_text(ids, mask))
    assert torch.equal(theirs.text_tokens, mine.text_tokens)
    assert all(torch.equal(t, other.state_dict()[k]) for k, t in model.state_dict().items())


def test_config_survives_json(model):
    plain = json.loads(json.dumps(to_dict(model.config)))
    assert from_dict(type(model.config), plain) == model.config


def test_hidden_patches_are_refused_without_a_mask_token(model):
    image, _, _ = _batch(model)
    if "mim" in model.capabilities:
        return
    with pytest.raises(CapabilityError, match="masked image"):
        model.encode_image(image, hidden_patches=torch.zeros(2, 4, dtype=torch.bool))


@torch.no_grad()
def test_pixels_of_hidden_patches_change_nothing(model):
    if "mim" not in model.capabilities:
        return
    image, _, _ = _batch(model)
    hidden = torch.zeros(2, SIDE_PATCHES**2, dtype=torch.bool)
    hidden[:, 0] = True
    patch = model.image_size // SIDE_PATCHES
    other = image.clone()
    other[:, :, :patch, :patch] = 3.0
    first, second = (model.encode_image(i, hidden_patches=hidden).tokens for i in (image, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, model.encode_image(image).tokens)


def test_decoder_memory_asks_for_what_the_config_says():
    torch.manual_seed(0)
    fused_config = shrunken("mplug_tiny")
    model = build_model(fused_config).eval()
    image, _, _ = _batch(model)
    with pytest.raises(CapabilityError, match=r"call fuse\(\) first"):
        model.decoder_memory(model.encode_image(image))
    alone = build_model(dataclasses.replace(fused_config, decoder_memory="image")).eval()
    memory = alone.decoder_memory(alone.encode_image(image))
    assert memory.layers[0].key.shape[2] == 1 + alone.config.vision.num_patches


def test_unknown_names_name_the_nearest():
    with pytest.raises(ConfigError, match="mplug_tiny"):
        create_model("mplug_tinny")


@pytest.mark.parametrize("layers", [(3,), (-1,), (1, 1)])
def test_connected_layers_must_exist_once(layers):
    with pytest.raises(ConfigError, match="connected_layers"):
        dataclasses.replace(model_config("mplug_tiny"), connected_layers=layers)


def test_a_clip_is_its_frames_one_after_the_other(model):
    frames, ids, mask = _batch(model, num_images=4)
    clips = frames.unflatten(0, (2, 2))
    with torch.inference_mode():
        alone, clip = model.encode_image(frames), encode_frames(model, clips)
        assert torch.equal(encode_frames(model, frames).tokens, alone.tokens)
        assert torch.equal(clip.tokens[1], torch.cat([alone.tokens[2], alone.tokens[3]]))
        # released: the mean of the frames' projections, then normalised
        project = model.image_projection
        mean = torch.stack([project(alone.pooled[i : i + 2]).mean(dim=0) for i in (0, 2)])
        expected = torch.nn.functional.normalize(mean.float(), dim=-1)
        torch.testing.assert_close(model.embed_image(clip), expected)
        # two texts about one clip, and the clip twice
        text = model.encode_text(ids[:2], mask[:2])
        if "itm" in model.capabilities:
            shared = match_pairs(model, clip, text, torch.tensor([1, 1]))
            repeated = match_pairs(model, clip.select(torch.tensor([1, 1])), text)
            torch.testing.assert_close(shared, repeated)
            changed = clips.clone()
            changed[1, 1] += 1  # the last frame is read
            other = match_pairs(model, encode_frames(model, changed), text, torch.tensor([1, 1]))
            assert not torch.allclose(shared, other)
        if isinstance(model, PairReader):
            pooled = model.pair_state(clips, ids[:2], mask[:2])
            torch.testing.assert_close(pooled, model.fuse(clip, text).pooled)
        if hasattr(model, "embed_pixels"):
            torch.testing.assert_close(model.embed_pixels(clips), model.embed_image(clip))


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("field", "size"),
    [
        ("vision.embed_dim", 10**12),
        ("vision.embed_dim", 2**24),
        ("vision.image_size", 10**9),
        ("vision.depth", 10**9),
        ("vision.depth", 900),
        ("text.vocab_size", -1),
        ("text.embed_dim", -2),
        ("text.vocab_size", 2**24),
        ("text.mlp_ratio", float("nan")),
        ("text.mlp_ratio", 10**400),
        ("text_depth", 0),
        ("proj_dim", 2**23),
        ("init_std", float("inf")),
    ],
)
def test_hostile_sizes_are_told_before_anything_is_allocated(field, size, train):
    config = _small_mplug(model_config("mplug_tiny", image_size=32, vocab_size=50))
    weights = build_model(config).state_dict()
    stored = to_dict(config, tagged=True)
    restore_model(stored, weights, "FOLDER", train=train)  # what torch imports at first use
    *parts, name = field.split(".")
    inner = stored
    for part in parts:
        inner = inner[part]
    inner[name] = size
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="FOLDER"):
            restore_model(stored, weights, "FOLDER", train=train)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
