"""The ways of images, texts and pairs through the trunk."""

import dataclasses

import pytest
import torch

from benchmarks.speed.plain import without_shortcuts
from triptych.core.errors import CapabilityError, ConfigError, DataError
from triptych.core.outputs import ImageFeatures
from triptych.models.base import num_parameters
from triptych.models.families import create_model, model_config
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.model import VLMo
from triptych.models.vlmo.trunk import Layout, TokenSequence, drop_path_factors, gather_scores
from triptych.nn.packing import TokenGrid

pytestmark = pytest.mark.usefixtures("packed_at_any_width")


def small(**changes):
    sizes = {"vocab_size": 30, "embed_dim": 16, "depth": 3, "num_heads": 2, "fused_from": 2}
    sizes |= {"image_size": 32, "max_text_tokens": 12, "proj_dim": 8}
    return VLMoConfig(**(sizes | changes))


def build(config):
    torch.manual_seed(0)
    model = VLMo(config).eval()
    for parameter in model.parameters():  # no zeros that hide a wrong way
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


@pytest.fixture(params=["relative", "absolute", "shared", "no_fused", "stem"])
def model(request):
    changes = {
        "relative": {},
        "absolute": {"positions": "absolute", "layer_scale": None},
        "shared": {"experts": "shared"},
        "no_fused": {"fused_from": 3, "fused_contrast": False},
        "stem": {"stem_widths": (4, 8)},
    }[request.param]
    return build(small(**changes))


def batch():
    torch.manual_seed(1)
    image = torch.randn(3, 3, 32, 32)
    ids = torch.randint(3, 30, (3, 6))
    mask = torch.arange(6) < torch.tensor([6, 4, 2])[:, None]
    return image, ids, mask


def pairs(model):
    image, ids, mask = batch()
    return TokenSequence(model.image_inputs(image), model.text_inputs(ids), mask)


@torch.no_grad()
def test_reading_some_positions_equals_computing_all(model):
    sequence = pairs(model)
    _, everything = model.trunk(sequence)
    positions = torch.tensor([[0, 3], [2, 1], [1, 1]])
    found = model.trunk.read(sequence, [(slice(None), positions)])[0]
    expected = torch.stack([everything[row, positions[row]] for row in range(3)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_groups_of_rows_read_their_own_positions(model):
    sequence = pairs(model)
    _, everything = model.trunk(sequence)
    first, positions = torch.tensor([[5, 2]]), torch.tensor([[3], [0]])
    one, two = model.trunk.read(sequence, [(slice(0, 1), first), (slice(1, 3), positions)])
    torch.testing.assert_close(one, everything[:1, [5, 2]], atol=1e-5, rtol=1e-5)
    expected = everything[[1, 2], [3, 0]][:, None]
    torch.testing.assert_close(two, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_padding_that_is_computed_changes_nothing(model):
    sequence = pairs(model)
    image, text = model.trunk(sequence)
    with without_shortcuts():
        plain_image, plain_text = model.trunk(sequence)
    torch.testing.assert_close(image, plain_image, atol=1e-5, rtol=1e-5)
    mask = sequence.text_mask
    torch.testing.assert_close(text[mask], plain_text[mask], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_scores_of_one_step_serve_all_its_passes(model):
    image, ids, mask = batch()
    scores = model.trunk.position_scores(9)
    sequences = [
        pairs(model),
        TokenSequence(model.image_inputs(image)),
        TokenSequence(text=model.text_inputs(ids), text_mask=mask),
    ]
    for sequence in sequences:
        reads = [(slice(None), sequence.first_positions())]
        found = model.trunk.read(sequence, reads, scores)[0]
        torch.testing.assert_close(found, model.trunk.read(sequence, reads)[0])


@torch.no_grad()
def test_embedding_alone_equals_embedding_the_encoded_states(model):
    image, ids, mask = batch()
    texts = TokenSequence(text=model.text_inputs(ids), text_mask=mask)
    images = TokenSequence(model.image_inputs(image))
    own_text, own_image = (model.embed_both_ways(s, fused=False)[0] for s in (texts, images))
    torch.testing.assert_close(own_text, model.embed_text(model.encode_text(ids, mask)))
    torch.testing.assert_close(own_image, model.embed_image(model.encode_image(image)))


def _experts_with_gradient(model, loss):
    model.zero_grad()
    loss.backward()
    return {
        (layer, name)
        for layer, block in enumerate(model.trunk.blocks)
        for name, expert in block.experts.items()
        if expert.mlp.up.weight.grad is not None
    }


def test_each_modality_goes_through_its_own_experts():
    model = build(small())
    image, ids, mask = batch()
    images, texts = model.encode_image(image), model.encode_text(ids, mask)
    assert _experts_with_gradient(model, images.tokens.sum()) == {(i, "image") for i in range(3)}
    assert _experts_with_gradient(model, texts.tokens.sum()) == {(i, "text") for i in range(3)}
    images, texts = model.encode_image(image), model.encode_text(ids, mask)
    below = {(i, name) for i in range(2) for name in ("text", "image")}
    fused = model.fuse(images, texts)
    assert _experts_with_gradient(model, fused.pooled.sum()) == below | {(2, "fused")}
    _, other = model.embed_both_ways(TokenSequence(model.image_inputs(image)))
    found = _experts_with_gradient(model, other.sum())
    assert found == {(0, "image"), (1, "image"), (2, "fused")}


def test_one_shared_expert_reads_everything():
    model = build(small(experts="shared"))
    image, ids, mask = batch()
    loss = model.fuse(model.encode_image(image), model.encode_text(ids, mask)).pooled.sum()
    assert _experts_with_gradient(model, loss) == {(i, "shared") for i in range(3)}


@torch.no_grad()
def test_the_second_image_has_a_type_of_its_own():
    model = build(small(num_image_types=2))
    image, _, _ = batch()
    types = model.modality_embedding.weight
    first, second = (model.image_inputs(image, image_type=t) for t in (0, 1))
    torch.testing.assert_close(second - first, (types[2] - types[1]).expand_as(first))


@pytest.mark.parametrize(
    ("name", "released", "position_rows"),
    [
        ("vlmo_base_patch16", 202_445_470, -40),
        ("vlmo_base_plus_patch16", 184_980_734, 196 - 40),
        ("vlmo_large_patch16", 599_127_102, -40),
    ],
)
def test_parameters_are_those_of_the_released_constructors(name, released, position_rows):
    # theirs have 40 rows of text positions, read or not, and two temperatures; ours a mask token
    with torch.device("meta"):
        model = create_model(name)
    width = model.config.embed_dim
    assert num_parameters(model) == released + position_rows * width - 2 + width


def test_what_does_not_fit_is_refused():
    model = build(small())
    image, ids, mask = batch()
    with pytest.raises(DataError, match="48, 48"):
        model.encode_image(torch.zeros(1, 3, 48, 48))
    with pytest.raises(DataError, match="13 tokens"):
        model.encode_text(torch.zeros(1, 13, dtype=torch.int64), torch.ones(1, 13).bool())
    features = ImageFeatures(model.encode_image(image).tokens)
    with pytest.raises(CapabilityError, match="inputs"):
        model.fuse(features, model.encode_text(ids, mask))
    without = build(small(mask_token=False))
    assert "mim" not in without.capabilities
    with pytest.raises(CapabilityError, match="mask_token"):
        without.encode_image(image, hidden_patches=torch.zeros(3, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("field", "value"),
    [("fused_from", 4), ("image_size", 40), ("drop_path", 1.0), ("stem_widths", (2,) * 5)],
)
def test_configs_that_cannot_be_built_are_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        small(**{field: value})


def test_fused_projections_need_fused_experts():
    with pytest.raises(ConfigError, match="fused_contrast"):
        small(fused_from=3)


def test_skipped_branches_keep_the_mean():
    torch.manual_seed(0)
    dropped = drop_path_factors(20_000, 0.25, torch.device("cpu"))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 1 / 0.75])
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.02)


def test_later_blocks_are_skipped_more_often():
    model = VLMo(small(drop_path=0.2))
    rates = [block.drop_path for block in model.trunk.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_scores_of_chosen_queries():
    positions = torch.tensor([[2, 0], [1, 1]])
    one, many = torch.randn(1, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for bias in (one, many):
        found = gather_scores(bias, positions)
        for row in range(2):
            source = bias[min(row, len(bias) - 1)]
            assert torch.equal(found[row], source[:, positions[row]])
    keys_only = torch.randn(2, 1, 1, 4)
    assert gather_scores(keys_only, positions) is keys_only


def test_skipping_drops_whole_rows_of_a_modality():
    torch.manual_seed(0)
    model = build(small(drop_path=0.5))
    block = model.trunk.blocks[2].train()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    layout = Layout(2, 4, TokenGrid.of(mask, 16))
    assert layout.num_text_tokens == 5
    ones = torch.ones(2 * 4 + 5, 16)
    seen = set()
    for _ in range(40):
        together = block._branch(ones, None, layout, apart=False)[:, 0].tolist()
        assert len(set(together[:4] + together[8:10])) == 1  # image and text of row 0
        assert len(set(together[4:8] + together[10:])) == 1
        apart = block._branch(ones, None, layout, apart=True)[:, 0].tolist()
        assert len(set(apart[:4])) == len(set(apart[8:10])) == len(set(apart[10:])) == 1
        seen.add((apart[0], apart[8]))
    assert seen == {(0.0, 0.0), (0.0, 2.0), (2.0, 0.0), (2.0, 2.0)}


@torch.no_grad()
def test_a_stem_sees_no_hidden_pixels():
    model = build(small(stem_widths=(4, 8)))
    image, _, _ = batch()
    hidden = torch.zeros(3, 4, dtype=torch.bool)
    hidden[:, 2] = True
    other = image.clone()
    other[:, :, 16:, :16] = 5.0  # patch 2: the second row's first
    first, second = (model.image_inputs(i, hidden) for i in (image, other))
    assert torch.equal(first, second)
    other[:, :, 16:, 16:] = 5.0
    assert not torch.equal(first, model.image_inputs(other, hidden))


def test_skipping_can_be_changed_before_fine_tuning():
    model = build(small())
    model.set_drop_path(0.5)
    assert [block.drop_path for block in model.trunk.blocks] == [0.0, 0.25, 0.5]
    assert model.config.drop_path == 0.5


def test_text_dropout_follows_skipping():
    model = build(small(text_dropout=0.0)).train()
    ids = torch.full((64, 8), 7)
    same = model.text_inputs(ids), model.text_inputs(ids)
    assert torch.equal(*same)
    model.set_drop_path(0.5)
    assert model.config.text_dropout == 0.5
    dropped = (model.text_inputs(ids) != same[0]).float().mean()
    assert dropped > 0.3


def test_image_size_of_a_variant_can_be_chosen():
    config = model_config("vlmo_tiny", image_size=96)
    assert (config.image_size, config.grid_size) == (96, 6)
    assert dataclasses.replace(config, image_size=64).num_patches == 16
