"""What only FLAVA's model has: passes that share blocks, its padding switch, bounded gradients."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from tests.tasks.pretraining.flava_batches import make_pairs, small_config
from triptych.core.config import from_dict, to_dict
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.core.outputs import ImageFeatures, TextFeatures
from triptych.models.base import PairMatcher, match_pairs
from triptych.models.dvae.config import DVAEConfig
from triptych.models.flava.config import FLAVAConfig
from triptych.models.flava.family import VARIANTS, flava_full, flava_tiny
from triptych.models.flava.model import FLAVA, resize_model_state
from triptych.tasks.pretraining.flava import FLAVAPretraining, FLAVAPretrainingConfig

CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FLAVA(small_config())


@pytest.fixture
def batch():
    return make_pairs()


def _gradients(model, *states):
    found = torch.autograd.grad(
        sum(s.square().sum() for s in states), list(model.parameters()), allow_unused=True
    )
    return [g for g in found if g is not None]


@pytest.mark.parametrize("name", ["model", "stemmed"])
def test_whole_and_masked_images_as_one_batch(name, batch, request):
    model = request.getfixturevalue(name)
    hidden = batch["hidden_patches"]
    found = model.image_passes(batch["image"], hidden)
    clean = model.encode_image(batch["image"]).pooled
    masked = model.encode_image(batch["image"], hidden_patches=hidden).tokens
    torch.testing.assert_close(found.clean_cls, clean, **CLOSE)
    torch.testing.assert_close(found.masked, masked, **CLOSE)
    both = _gradients(model, found.clean_cls, found.masked)
    torch.testing.assert_close(both, _gradients(model, clean, masked), atol=1e-3, rtol=1e-4)


def test_whole_and_masked_texts_as_one_batch(model, batch):
    ids, masked_ids, mask = batch["token_ids"], batch["mlm_token_ids"], batch["text_mask"]
    found = model.text_passes(ids, masked_ids, mask)
    torch.testing.assert_close(found.clean_cls, model.encode_text(ids, mask).pooled, **CLOSE)
    masked = model.encode_text(masked_ids, mask).tokens
    torch.testing.assert_close(found.masked[mask], masked[mask], **CLOSE)


@torch.no_grad()
def test_states_of_a_few_tokens(model, batch):
    image, mask = batch["image"], batch["text_mask"]
    positions = torch.tensor([[0, 3, 3]]).expand(6, -1)
    states = model.encode_image(image, hidden_patches=batch["hidden_patches"]).tokens
    few = model.visual_encoder.read(image, batch["hidden_patches"], positions)
    torch.testing.assert_close(few, states[:, [0, 3, 3]], **CLOSE)
    text = model.encode_text(batch["token_ids"], mask)
    few = model.text_encoder.read(batch["token_ids"], mask, positions[:, :2])
    torch.testing.assert_close(few[:, 0], text.tokens[:, 0], **CLOSE)
    torch.testing.assert_close(
        model.visual_encoder.class_state(image), model.encode_image(image).pooled, **CLOSE
    )
    torch.testing.assert_close(
        model.text_encoder.class_state(batch["token_ids"], mask), text.pooled, **CLOSE
    )


@torch.no_grad()
def test_embeddings_need_only_the_states(model, batch):
    image = model.encode_image(batch["image"])
    text = model.encode_text(batch["token_ids"], batch["text_mask"])
    first = model.embed_image(image), model.embed_text(text)
    bare = ImageFeatures(image.tokens), TextFeatures(text.tokens, text.mask)
    torch.testing.assert_close(model.embed_image(bare[0]), first[0])
    torch.testing.assert_close(model.embed_text(bare[1]), first[1])
    torch.testing.assert_close(first[0].norm(dim=-1), torch.ones(6))


@torch.no_grad()
def test_matching_reads_the_class_token_alone(model, batch):
    image = model.encode_image(batch["image"])
    text = model.encode_text(batch["token_ids"], batch["text_mask"])
    index = torch.tensor([0, 0, 3, 3, 5, 2])
    for chosen in (None, index):
        expected = model.match_logits(model.fuse(image, text, image_index=chosen))
        found = match_pairs(model, image, text, chosen)
        torch.testing.assert_close(found, expected, **CLOSE)
    assert isinstance(model, PairMatcher)


@pytest.mark.parametrize("padding", ["masked", "attended"])
@torch.no_grad()
def test_two_images_are_two_pairs_side_by_side(batch, padding):
    torch.manual_seed(0)
    model = FLAVA(small_config(pad_attention=padding, padded_text_len=12)).eval()
    ids, mask, pairs = batch["token_ids"], batch["text_mask"], batch["image"].unflatten(0, (3, 2))
    found = model.two_image_state(pairs, ids[:3], mask[:3], model.prepare_two_images(None))
    assert found.shape == (3, model.two_image_dim)
    for row, (images, words, known) in zip(found, zip(pairs, ids, mask), strict=False):
        text = model.encode_text(words[None], known[None])
        sides = [model.fuse(model.encode_image(image[None]), text).pooled for image in images]
        torch.testing.assert_close(row[None], torch.cat(sides, dim=1), **CLOSE)
    with pytest.raises(ConfigError, match="FLAVA has one way to read two images"):
        model.prepare_two_images("mean")


@torch.no_grad()
def test_hidden_patches_may_be_a_grid(model, batch):
    hidden = batch["hidden_patches"]
    row = model.encode_image(batch["image"], hidden_patches=hidden).tokens
    grid = model.encode_image(batch["image"], hidden_patches=hidden.view(6, 3, 3)).tokens
    assert torch.equal(row, grid)


@torch.no_grad()
def test_attended_padding_is_padding_to_a_fixed_length(batch):
    torch.manual_seed(0)
    attended = FLAVA(small_config(pad_attention="attended", padded_text_len=12)).eval()
    masked = FLAVA(small_config()).eval()
    masked.load_state_dict(attended.state_dict())
    ids, mask = batch["token_ids"], batch["text_mask"]
    image = attended.encode_image(batch["image"])
    text = attended.encode_text(ids, mask)
    assert text.tokens.shape[1] == text.mask.shape[1] == 12
    longer = attended.encode_text(F.pad(ids, (0, 2)), F.pad(mask, (0, 2)))
    torch.testing.assert_close(longer.tokens, text.tokens)
    assert bool(text.mask.all())  # so that nobody cuts what is attended
    fused = attended.fuse(image, text)
    # padding that is attended is nothing else than text: a mask of True reads it
    plain = masked.encode_text(F.pad(ids, (0, 4)), F.pad(mask, (0, 4)))
    everything = TextFeatures(plain.tokens, torch.ones_like(plain.mask))
    torch.testing.assert_close(fused.pooled, masked.fuse(image, everything).pooled, **CLOSE)
    other = masked.fuse(image, masked.encode_text(ids, mask)).pooled
    assert float((other - fused.pooled).abs().max()) > 1e-3
    torch.testing.assert_close(attended.embed_text(text), masked.embed_text(text))


def test_the_row_of_padding_is_frozen_only_where_it_is_attended(batch):
    for convention, is_frozen in (("attended", True), ("masked", False)):
        torch.manual_seed(0)
        model = FLAVA(small_config(pad_attention=convention, padded_text_len=12))
        row = model.text_encoder.embedding.word.weight[0]
        assert bool((row == 0).all()) is is_frozen
        task = FLAVAPretraining(model, FLAVAPretrainingConfig())
        sum(task.losses(batch).values()).backward()
        assert not model.text_encoder.embedding.word.weight.grad[0].any()


def _norm_at_step_0(model, batch):
    task = FLAVAPretraining(model, FLAVAPretrainingConfig())
    model.zero_grad()
    sum(task.losses(batch).values()).backward()
    return (
        sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None) ** 0.5
    )


def test_fresh_gradients_are_bounded_where_zero_tokens_blow_up(batch):
    torch.manual_seed(0)
    model = FLAVA(small_config(init_std=0.05))
    assert _norm_at_step_0(model, batch) < 50
    with torch.no_grad():  # as released code begins
        image, fusion = model.visual_encoder, model.fusion
        for zero in (image.class_embedding, image.mask_token, image.position_embedding):
            zero.zero_()
        fusion.class_embedding.zero_()
    assert _norm_at_step_0(model, batch) > 1e4


def test_few_targets_do_not_make_the_first_gradient_longer(batch):
    torch.manual_seed(0)
    model = FLAVA(small_config(init_std=0.05))
    usual = _norm_at_step_0(model, batch)
    one_code = batch | {"image_codes": torch.full_like(batch["image_codes"], 3)}
    assert _norm_at_step_0(model, one_code) < 1.5 * usual


def test_fresh_heads_predict_uniformly(model, batch):
    losses = FLAVAPretraining(model, FLAVAPretrainingConfig()).losses(batch)
    assert losses["mmm_text"].item() == pytest.approx(math.log(30), abs=0.1)
    assert losses["mmm_image"].item() == pytest.approx(math.log(11), abs=0.1)


def test_tokens_are_cut_at_two_deviations():
    torch.manual_seed(0)
    encoder = FLAVA(small_config(init_std=0.02)).visual_encoder
    for parameter in (encoder.class_embedding, encoder.mask_token, encoder.position_embedding):
        assert 0 < parameter.abs().max().item() <= 0.04
        assert parameter.std().item() > 0.01


@torch.no_grad()
def test_another_image_size_keeps_the_class_row_and_one_code_a_patch():
    torch.manual_seed(0)
    codebook = DVAEConfig(image_size=24, num_codes=11, hidden_dim=4, blocks_per_group=1)
    model = FLAVA(small_config(codebook=codebook))
    state, config = resize_model_state(model.state_dict(), model.config, 20)
    assert config.vision.num_patches == 25
    assert config.codebook.image_size == 40
    larger = FLAVA(config)
    larger.load_state_dict(state)
    name = "visual_encoder.position_embedding"
    assert torch.equal(state[name][0], model.state_dict()[name][0])
    assert larger.image_codes(torch.rand(1, 3, 40, 40)).shape == (1, 25)


def test_wrong_sizes_are_told(model, batch):
    with pytest.raises(DataError, match="20, 20"):
        model.encode_image(torch.zeros(1, 3, 20, 20))
    with pytest.raises(DataError, match="17 tokens"):
        model.encode_text(torch.ones(1, 17).long(), torch.ones(1, 17).bool())
    with pytest.raises(CapabilityError, match="codebook"):
        model.image_codes(torch.zeros(1, 3, 24, 24))


def test_full_size_has_the_published_numbers_of_parameters():
    with torch.device("meta"):
        model = FLAVA(flava_full())
    total = sum(p.numel() for p in model.parameters())
    poolers = sum(p.numel() for p in model.poolers.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert total == 357_645_303
    assert sum(p.numel() for p in model.codebook.parameters()) == 53_786_240
    assert trained + poolers == 303_859_063
    assert len(model.state_dict()) == 618 - 4 - 2 * 2 * 30  # biases with two names, packed q, k, v


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_takes_another_image_and_vocabulary(name):
    config = VARIANTS[name](image_size=96, vocab_size=99)
    assert config.vision.image_size == 96
    assert config.text.vocab_size == 99
    assert config.codebook.grid_size == config.vision.grid_size
    assert from_dict(FLAVAConfig, to_dict(config)) == config


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_codes": 12}, "codebook.num_codes"),
        ({"codebook": DVAEConfig(image_size=40, num_codes=256)}, "codebook.image_size"),
        ({"text_depth": 0}, "text_depth"),
        ({"pad_attention": "attended", "padded_text_len": 65}, "padded_text_len"),
    ],
)
def test_parts_that_do_not_fit_name_the_field(changes, field):
    with pytest.raises(ConfigError, match=field):
        dataclasses.replace(flava_tiny(), **changes)


def test_a_post_norm_text_encoder_is_refused():
    config = flava_tiny()
    with pytest.raises(ConfigError, match="pre_norm"):
        dataclasses.replace(config, text=dataclasses.replace(config.text, pre_norm=False))


@pytest.fixture
def stemmed():
    torch.manual_seed(0)
    config = small_config()
    return FLAVA(
        dataclasses.replace(config, vision=dataclasses.replace(config.vision, stem_widths=(4, 6)))
    )


def test_a_stem_sees_no_pixel_of_a_hidden_patch(stemmed, batch):
    image, hidden = batch["image"], batch["hidden_patches"]
    grid, size = stemmed.config.vision.grid_size, stemmed.config.vision.patch_size
    pixels = hidden.view(-1, 1, grid, grid)
    pixels = pixels.repeat_interleave(size, 2).repeat_interleave(size, 3)
    other = torch.where(pixels, torch.randn_like(image), image)
    assert hidden.any() and not torch.equal(image, other)
    masked = stemmed.encode_image(image, hidden_patches=hidden).tokens
    assert torch.equal(masked, stemmed.encode_image(other, hidden_patches=hidden).tokens)
    assert not torch.equal(stemmed.encode_image(image).tokens, masked)


def test_a_stem_that_halves_a_patch_too_often_is_refused():
    with pytest.raises(ConfigError, match="stem_widths"):
        dataclasses.replace(flava_tiny().vision, stem_widths=(8,) * 5)
