"""Grids of packed tokens, by hand and against plain padding."""

import pytest
import torch

from benchmarks.speed.plain import without_shortcuts
from triptych.nn import packing
from triptych.nn.attention import causal_bias, key_bias
from triptych.nn.block import Block, BlockConfig
from triptych.nn.init import init_weights
from triptych.nn.packing import TokenGrid

pytestmark = pytest.mark.usefixtures("packed_at_any_width")


def _grid_of(mask):
    return TokenGrid.of(mask, embed_dim=8)


MASK = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])


def test_a_grid_by_hand():
    grid = _grid_of(MASK)
    assert grid.slots.tolist() == [0, 1, 3, 6, 7, 8]
    x = torch.arange(1.0, 10.0).reshape(3, 3, 1)
    packed = grid.pack(x)
    assert packed[:, 0].tolist() == [1, 2, 4, 7, 8, 9]
    assert grid.pad(packed)[..., 0].tolist() == [[1, 2, 0], [4, 0, 0], [7, 8, 9]]
    assert grid.spread(packed)[..., 0].tolist() == [[1, 2, 1], [4, 1, 1], [7, 8, 9]]


def test_a_full_grid_copies_nothing():
    grid = _grid_of(torch.ones(2, 3, dtype=torch.bool))
    x = torch.randn(2, 3, 4)
    assert grid.slots is None
    assert grid.pack(x).data_ptr() == x.data_ptr()
    assert torch.equal(grid.pad(grid.pack(x)), x)
    assert torch.equal(grid.spread(grid.pack(x)), x)


def test_without_shortcuts_padding_counts_as_tokens():
    with without_shortcuts():
        assert _grid_of(MASK).slots is None
    assert _grid_of(MASK).slots is not None


@pytest.mark.parametrize("full", [False, True])
def test_rows_of_a_group_share_a_row(full):
    mask = torch.ones_like(MASK) if full else MASK
    words = torch.arange(9).reshape(3, 3)[..., None]
    grouped = _grid_of(mask).group_rows(torch.tensor([1, 0, 1]), 3)
    padded = grouped.pad(_grid_of(mask).pack(words))[..., 0].tolist()
    if full:
        assert padded == [[3, 4, 5, 0, 0, 0], [0, 1, 2, 6, 7, 8], [0] * 6]
    else:
        assert padded == [[3, 0, 0, 0, 0], [0, 1, 6, 7, 8], [0] * 5]


def _block(memory_dim=None):
    torch.manual_seed(0)
    block = Block(BlockConfig(embed_dim=8, num_heads=2, dropout=0.0), memory_dim).eval()
    init_weights(block, 0.5)
    for name, parameter in block.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return block


def _same_gradients(found, expected, inputs):
    mine = torch.autograd.grad(found.square().sum(), inputs, allow_unused=True)
    theirs = torch.autograd.grad(expected.square().sum(), inputs, allow_unused=True)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_a_block_gives_packed_tokens_what_it_gives_padded_ones(causal):
    block, grid = _block(), _grid_of(MASK)
    x = torch.randn(3, 3, 8, requires_grad=True)
    bias = causal_bias(3, x.device) if causal else key_bias(MASK)
    found, expected = block(grid.pack(x), bias, grid=grid), grid.pack(block(x, bias))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    _same_gradients(found, expected, [x, *block.parameters()])


@pytest.mark.parametrize("num_queries", [1, 10_000])
def test_texts_of_an_image_read_one_memory(num_queries):
    block, grid, image_index = _block(memory_dim=6), _grid_of(MASK), torch.tensor([1, 0, 1])
    x = torch.randn(3, 3, 8, requires_grad=True)
    image = torch.randn(2, 4, 6, requires_grad=True)
    image_mask = torch.tensor([[True, True, True, False], [True] * 4])
    memory_bias, bias = key_bias(image_mask), key_bias(MASK)
    memory = block.cross_attention.prepare(image, num_queries)
    images = grid.group_rows(image_index, 2)
    found = block(grid.pack(x), bias, memory, memory_bias, grid, images)
    projected = block.cross_attention.project(image[image_index])
    expected = grid.pack(block(x, bias, projected, memory_bias[image_index]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    _same_gradients(found, expected, [x, image, *block.parameters()])


@pytest.mark.parametrize("full", [False, True])
def test_packed_index_of_some_tokens(full):
    mask = torch.ones_like(MASK) if full else MASK
    some = _grid_of(mask & torch.tensor([False, True, True]))
    words = torch.arange(9).reshape(3, 3)
    packed = _grid_of(mask).pack(words)
    found = packed[_grid_of(mask).packed_index(some)]
    assert found.tolist() == ([1, 2, 4, 5, 7, 8] if full else [1, 7, 8])
    every = _grid_of(torch.ones_like(MASK))
    assert every.packed_index(every).tolist() == list(range(9))


@pytest.mark.parametrize("indexed", [False, True])
def test_only_the_tokens_that_are_read_are_transformed(indexed):
    block, grid = _block(memory_dim=6), _grid_of(MASK)
    x = torch.randn(3, 3, 8, requires_grad=True)
    image_index = torch.tensor([1, 0, 1])
    with torch.no_grad():
        memory = block.cross_attention.project(torch.randn(2 if indexed else 3, 4, 6))
    read = torch.tensor([[True, False, False], [True, False, False], [False, True, True]])
    readers = _grid_of(MASK & read)
    images = (grid.group_rows(image_index, 2), readers.group_rows(image_index, 2))
    images = images if indexed else (None, None)
    bias = key_bias(MASK)
    every = block(grid.pack(x), bias, memory, None, grid, images[0])
    expected = readers.pack(grid.pad(every))
    found = block(grid.pack(x), bias, memory, None, grid, images[1], readers)
    assert found.shape == (4, 8)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    _same_gradients(found, expected, [x, *block.parameters()])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_joint_equals_the_block_over_the_joined_sequence(pre_norm):
    torch.manual_seed(0)
    block = Block(BlockConfig(embed_dim=8, num_heads=2, dropout=0.0, pre_norm=pre_norm)).eval()
    init_weights(block, 0.5)
    grid, image_index = _grid_of(MASK), torch.tensor([1, 0, 1])
    image = torch.randn(2, 4, 8, requires_grad=True)
    text = torch.randn(3, 3, 8, requires_grad=True)
    bias = torch.cat([torch.zeros(3, 1, 1, 4), key_bias(MASK)], dim=-1)
    joined = block.joint(image, grid.pack(text), bias, grid, image_index)
    image_out, text_out = joined[:12].view(3, 4, 8), joined[12:]
    whole = block(torch.cat([image[image_index], text], dim=1), bias)
    torch.testing.assert_close(image_out, whole[:, :4], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(text_out, grid.pack(whole[:, 4:]), atol=1e-5, rtol=1e-5)
    found = joined.flatten()
    expected = torch.cat([whole[:, :4].flatten(), grid.pack(whole[:, 4:]).flatten()])
    _same_gradients(found, expected, [image, text, *block.parameters()])


def test_narrow_states_keep_their_padding(monkeypatch):
    monkeypatch.setattr(packing, "PACKED_FROM", 384)
    mask = torch.tensor([[True, False], [True, True]])
    assert TokenGrid.of(mask, 383).slots is None
    assert TokenGrid.of(mask, 384).slots.tolist() == [0, 2, 3]
