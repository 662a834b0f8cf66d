"""BEiT's block masks; the independent source is a loop over single images."""

import math
import random

import numpy as np
import pytest

from benchmarks.speed.masking import loop_mask
from triptych.core.errors import ConfigError
from triptych.data.masking import BlockMaskingConfig, block_masks, draw_mask_key

DEFAULT = BlockMaskingConfig()


def keys(number, seed=0):
    return np.random.default_rng(seed).integers(2**64, size=number, dtype=np.uint64)


@pytest.fixture(scope="module")
def counts():
    """Masked patches of many masks: of the loop, and of the batch."""
    draw = random.Random(0)
    loop = np.stack([loop_mask(draw) for _ in range(4000)]).reshape(4000, -1)
    return loop, block_masks(keys(20_000), 14, DEFAULT)


def test_number_of_hidden_patches_has_the_distribution_of_the_loop(counts):
    loop, batch = (masks.sum(axis=1) for masks in counts)
    edges = [0, 70, 71, 72, 73, 74, 75, 76]
    found, _ = np.histogram(batch, edges)
    expected, _ = np.histogram(loop, edges)
    # two-sample chi-square of the histograms; 22.5 is the 0.999 quantile at 6 degrees of freedom
    a, b = math.sqrt(len(batch) / len(loop)), math.sqrt(len(loop) / len(batch))
    chi_square = ((a * expected - b * found) ** 2 / (expected + found)).sum()
    assert chi_square < 22.5


def test_number_of_hidden_patches_is_that_of_the_released_code(counts):
    # 2,000 masks of the released code: mean 74.50, least 66, exactly 75 in 68.6 % (± 1 %)
    hidden = counts[1].sum(axis=1)
    assert hidden.max() == 75
    assert hidden.mean() == pytest.approx(74.50, abs=0.06)
    assert (hidden == 75).mean() == pytest.approx(0.686, abs=0.035)
    assert 58 <= hidden.min() <= 68


def test_every_patch_is_hidden_as_often_as_in_the_loop(counts):
    loop, batch = (masks.mean(axis=0) for masks in counts)
    deviation = math.sqrt(0.38 * 0.62 * (1 / 4000 + 1 / 20_000))
    assert np.abs(loop - batch).max() < 4.5 * deviation  # of 196 patches
    middle, corner = batch.reshape(14, 14)[6:8, 6:8].mean(), batch.reshape(14, 14)[0, 0]
    assert middle > 1.5 * corner  # blocks lie inside the grid


def test_neighbours_are_hidden_together_as_often_as_in_the_loop(counts):
    together = []
    for masks in counts:
        grid = masks.reshape(-1, 14, 14)
        together.append((grid[:, 1:] & grid[:, :-1]).mean())
    assert together[0] == pytest.approx(together[1], abs=0.004)
    assert together[1] > 1.5 * 0.38**2  # single patches would give 0.38²


def test_a_mask_depends_on_its_own_key_alone():
    many = keys(40)
    batch = block_masks(many, 14, DEFAULT)
    for place in (0, 7, 39):
        assert np.array_equal(block_masks(many[place : place + 1], 14, DEFAULT)[0], batch[place])
    assert np.array_equal(block_masks(many[::-1], 14, DEFAULT), batch[::-1])
    assert len({mask.tobytes() for mask in batch}) == 40


def test_the_key_comes_from_the_images_generator():
    draws = [draw_mask_key(np.random.default_rng(seed)) for seed in (5, 5, 6)]
    assert draws[0] == draws[1] != draws[2]
    assert draws[0] == int(np.random.default_rng(5).integers(2**64, dtype=np.uint64))


@pytest.mark.parametrize(
    ("grid", "most"), [(2, 2), (4, 6), (8, 24), (16, 98), (32, 392)]
)  # round(75 / 196 · P)
def test_other_grids_hide_the_same_share(grid, most):
    masks = block_masks(keys(500), grid, DEFAULT)
    assert masks.shape == (500, grid**2)
    hidden = masks.sum(axis=1)
    assert hidden.max() == most
    assert hidden.mean() > 0.97 * most


def test_first_block_is_a_rectangle_of_the_drawn_form():
    # one try: a mask is one block, at least 16 patches, less than 14 high and wide
    config = BlockMaskingConfig(num_tries=1, hidden_share=20 / 196)
    masks = block_masks(keys(300), 14, config).reshape(-1, 14, 14)
    whole = [m for m in masks if 16 <= m.sum() <= 20 and _is_rectangle(m)]
    assert len(whole) > 100
    aspects = [np.log(m.any(1).sum() / m.any(0).sum()) for m in whole]
    assert max(map(abs, aspects)) < math.log(1 / 0.3) + 0.3  # sides are rounded
    assert abs(np.mean(aspects)) < 0.15


def _is_rectangle(mask):
    return mask.sum() == mask.any(0).sum() * mask.any(1).sum()


def test_nothing_is_hidden_where_nothing_may_be():
    none = BlockMaskingConfig(hidden_share=0.0)
    assert not block_masks(keys(5), 14, none).any()
    assert block_masks(keys(0), 14, DEFAULT).shape == (0, 196)


@pytest.mark.parametrize("settings", [{"hidden_share": 1.5}, {"min_aspect": 0.0}, {"num_tries": 0}])
def test_settings_out_of_range_are_errors(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        BlockMaskingConfig(**settings)


def test_a_grid_that_is_too_large_is_an_error():
    with pytest.raises(ConfigError, match="grid_size = 65"):
        block_masks(keys(1), 65, DEFAULT)
