"""Image encoder, text encoder, decoder, embeddings, positions, heads and initial values."""

import pytest
import torch
from torch.nn import functional as F

from triptych.core.errors import ConfigError, DataError
from triptych.nn.decoder import TextDecoder, cat_masks
from triptych.nn.embeddings import PatchEmbedding, TextEmbedding
from triptych.nn.encoder import TextConfig, TextEncoder
from triptych.nn.heads import VocabularyHead
from triptych.nn.init import init_weights
from triptych.nn.positions import resize_position_table
from triptych.nn.vision import VisionConfig, VisionTransformer

TEXT = TextConfig(vocab_size=20, embed_dim=8, num_heads=2, max_positions=10)
VISION = VisionConfig(image_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2)


def _ready(module):
    init_weights(module, 0.5)
    return module.eval()


def test_patch_embedding_equals_a_convolution():
    torch.manual_seed(0)
    module = PatchEmbedding(5, 4, bias=True)
    torch.nn.init.normal_(module.weight)
    torch.nn.init.normal_(module.bias)
    image = torch.randn(2, 3, 8, 12)
    expected = F.conv2d(image, module.weight, module.bias, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(module(image), expected, atol=1e-5, rtol=1e-5)


def test_image_encoder_tells_positions_apart():
    torch.manual_seed(0)
    encoder = _ready(VisionTransformer(VISION))
    image = torch.randn(1, 3, 8, 8)
    states = encoder(image)
    assert states.shape == (1, 5, 8)
    assert not torch.allclose(encoder(image.flip(-1))[:, 0], states[:, 0], atol=1e-3)
    torch.testing.assert_close(states.mean(-1), torch.zeros(1, 5), atol=1e-5, rtol=0)


def test_the_cls_state_alone_is_the_same():
    torch.manual_seed(0)
    encoder = _ready(VisionTransformer(VISION))
    image = torch.randn(3, 3, 8, 8)
    alone = encoder(image, cls_only=True)
    torch.testing.assert_close(alone, encoder(image)[:, :1], atol=1e-5, rtol=1e-5)


def test_image_of_another_size_is_refused_with_both_sizes():
    with pytest.raises(DataError, match=r"\(8, 12\).*8 x 8"):
        _ready(VisionTransformer(VISION))(torch.zeros(1, 3, 8, 12))


def test_vision_config_names_the_field():
    with pytest.raises(ConfigError, match="image_size"):
        VisionConfig(image_size=10, patch_size=4, embed_dim=8, depth=2, num_heads=2)


def test_text_padding_never_changes_a_real_token():
    torch.manual_seed(0)
    encoder = _ready(TextEncoder(TEXT, depth=2))
    ids = torch.tensor([[2, 5, 6]])
    padded = torch.tensor([[2, 5, 6, 9, 0]])
    mask = torch.tensor([[True, True, True, False, False]])
    short = encoder(ids, torch.ones(1, 3, dtype=torch.bool))
    torch.testing.assert_close(encoder(padded, mask)[:, :3], short)


def test_text_longer_than_the_table_is_refused():
    encoder = _ready(TextEncoder(TEXT, depth=1))
    ids = torch.zeros(1, 11, dtype=torch.int64)
    with pytest.raises(DataError, match="11 tokens but the model reads 10"):
        encoder(ids, ids == 0)


def test_embedding_step_equals_forward():
    torch.manual_seed(0)
    embedding = _ready(TextEmbedding(20, 8, 10, 1e-12, 0.0))
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(embedding.step(ids[:, 2:], 2), embedding(ids)[:, 2:])


@torch.no_grad()
def test_decoder_sees_no_later_token_and_steps_agree():
    torch.manual_seed(0)
    decoder = _ready(TextDecoder(TEXT, depth=2))
    mask = torch.tensor([[True, True, True], [True, False, False]])
    memory = decoder.project_memory(torch.randn(2, 3, 8), mask)
    ids = torch.tensor([[2, 5, 6, 7], [2, 8, 9, 4]])
    states = decoder(ids, memory)
    changed = ids.clone()
    changed[:, 2:] = 1
    torch.testing.assert_close(decoder(changed, memory)[:, :2], states[:, :2])
    cache = decoder.new_cache()
    for position in range(4):
        logits = decoder.step(ids[:, position, None], memory, cache)[:, 0]
        expected = decoder.word_logits(states[:, position])
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    assert cache.lengths == [4, 4]


@torch.no_grad()
@pytest.mark.parametrize("num_memory", [3, 200])
def test_reading_once_equals_the_forward_at_the_wanted_positions(num_memory):
    torch.manual_seed(0)
    decoder = _ready(TextDecoder(TEXT, depth=2))
    states, mask = torch.randn(2, num_memory, 8), torch.ones(2, num_memory, dtype=torch.bool)
    mask[0, -1] = False
    ids = torch.tensor([[2, 5, 6, 7], [2, 8, 0, 0]])
    wanted = torch.tensor([[True, True, True, True], [True, True, False, False]])
    every = decoder(ids, decoder.project_memory(states, mask))
    found = decoder.read_once(ids, wanted, states, mask)
    torch.testing.assert_close(found[wanted], every[wanted], atol=1e-5, rtol=1e-5)
    again = decoder(ids, decoder.project_memory(states, mask), wanted)
    torch.testing.assert_close(again[wanted], every[wanted], atol=1e-5, rtol=1e-5)
    states[0, -1] = 50.0
    changed = decoder.read_once(ids, wanted, states, mask)
    torch.testing.assert_close(changed[wanted], every[wanted], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_memory_rows_can_be_selected_again_and_again():
    torch.manual_seed(0)
    decoder = _ready(TextDecoder(TEXT, depth=1))
    memory = decoder.project_memory(torch.randn(2, 3, 8), torch.tensor([[1, 1, 0], [1, 1, 1]]) > 0)
    ids = torch.tensor([[2, 5], [2, 5], [2, 5]])
    states = decoder(ids, memory.select(torch.tensor([1, 0, 1])))
    torch.testing.assert_close(states[0], states[2])
    assert not torch.allclose(states[0], states[1], atol=1e-3)


def test_cat_masks_counts_a_missing_mask_as_true():
    second = torch.tensor([[True, False]])
    assert cat_masks(None, second, 2).tolist() == [[True, True, True, False]]
    assert cat_masks(~second, second, 2).tolist() == [[False, True, True, False]]


def test_position_table_resize_by_hand():
    # 2 x 2 grid with values 0..3 to 4 x 4, corners not aligned: 0, .25, .75, 1 along each side.
    table = torch.tensor([[9.0], [0.0], [1.0], [2.0], [3.0]])
    resized = resize_position_table(table, 16)
    assert resized[0].item() == 9.0
    side = torch.tensor([0.0, 0.25, 0.75, 1.0])
    torch.testing.assert_close(resized[1:, 0].reshape(4, 4), 2 * side[:, None] + side[None])
    assert resize_position_table(table, 4) is table


@pytest.mark.parametrize(("rows", "patches"), [(6, 16), (5, 15)])
def test_position_grids_must_be_square(rows, patches):
    with pytest.raises(ConfigError, match="square"):
        resize_position_table(torch.zeros(rows, 2), patches)


@pytest.mark.parametrize("tied", [True, False])
def test_vocabulary_head_uses_the_right_matrix(tied):
    torch.manual_seed(0)
    head = VocabularyHead(4, 6, 1e-12, tied=tied)
    if not tied:
        torch.nn.init.normal_(head.weight)
    table, x = torch.randn(6, 4), torch.randn(3, 4)
    hidden = F.layer_norm(F.gelu(head.dense(x)), (4,), eps=1e-12)
    expected = hidden @ (table if tied else head.weight).T + head.bias
    torch.testing.assert_close(head(x, table), expected)


def test_initial_values_follow_std_and_leave_no_table_at_zero():
    torch.manual_seed(0)
    encoder = VisionTransformer(
        VisionConfig(image_size=32, patch_size=4, embed_dim=64, depth=2, num_heads=2)
    )
    init_weights(encoder, 0.03)
    for tensor in (
        encoder.position_embedding,
        encoder.blocks[0].attention.qkv.weight,
        encoder.patch_embedding.weight,
    ):
        assert tensor.std().item() == pytest.approx(0.03, rel=0.1)
    assert not encoder.blocks[1].mlp.up.bias.any()
    assert bool((encoder.norm_pre.weight == 1).all())
