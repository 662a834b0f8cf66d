"""Rows of the relative table, and resizing against SciPy's removed `interp2d`.

`tests/data/relative_tables.json` holds grids of random numbers and what SciPy 1.13's
`interp2d(kind="cubic")` makes of them on BEiT's geometric coordinates; keys are old and new W.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych.core.errors import ConfigError
from triptych.models.vlmo.positions import (
    RelativePositions,
    grid_of_table,
    image_index,
    joint_index,
    num_rows,
    resize_relative_table,
    shorten_text_rows,
    spline_weights,
    text_index,
)

TABLES = json.loads((Path(__file__).parents[2] / "data" / "relative_tables.json").read_text())
CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "rows"), [(64, 446), (224, 1126), (384, 2606), (480, 3878)])
def test_rows_are_as_many_as_in_the_released_tables(size, rows):
    assert num_rows(size // 16, 196) == rows
    assert grid_of_table(torch.zeros(rows, 1), 196) == size // 16


def test_rows_of_a_released_64_px_model():
    index = joint_index(40, 1, 4, 196, CPU)
    image, text = index[:17, :17], index[17:, 17:]
    assert (int(image[0, 1]), int(image[1, 0]), int(image[0, 0])) == (49, 50, 51)
    assert index[17:, :17].unique().tolist() == [52]
    assert index[:17, 17:].unique().tolist() == [53]
    assert (int(text[1:, 1:].min()), int(text[1:, 1:].max())) == (210, 286)
    assert (int(text[0, 1]), int(text[1, 0]), int(text[0, 0])) == (443, 444, 445)


def test_rows_equal_a_plain_loop():
    grid, length = 3, 7
    side, first = 2 * grid - 1, (2 * grid - 1) ** 2 + 3
    image = np.zeros((10, 10), dtype=int)
    for i in range(9):
        for j in range(9):
            dy, dx = i // grid - j // grid, i % grid - j % grid
            image[1 + i, 1 + j] = (dy + grid - 1) * side + dx + grid - 1
    image[0, 1:], image[1:, 0], image[0, 0] = first - 3, first - 2, first - 1
    assert image_index(grid).tolist() == image.tolist()
    text = text_index(5, grid, length)
    for i in range(1, 5):
        for j in range(1, 5):
            assert int(text[i, j]) == first + length + (j - i)


def test_each_head_of_each_block_reads_its_own_column():
    positions = RelativePositions(grid_size=2, max_text_tokens=5, depth=2, num_heads=3)
    rows = len(positions.table)
    with torch.no_grad():
        positions.table.copy_(torch.arange(rows * 6).view(rows, 6))
    found = positions(3, 1)
    index = joint_index(3, 1, 2, 5, CPU)
    for layer in range(2):
        for head in range(3):
            assert torch.equal(found[layer, head], (index * 6 + layer * 3 + head).float())


@pytest.mark.parametrize("sizes", TABLES)
def test_resizing_equals_scipy(sizes):
    old, new = map(int, sizes.split("-"))
    grid = torch.tensor(TABLES[sizes]["grid"], dtype=torch.float64).flatten()
    rest = torch.arange(num_rows(old, 4) - len(grid)).double()
    table = torch.stack([torch.cat([grid, rest]), torch.cat([-2 * grid, rest])], dim=1)
    found = resize_relative_table(table, old, new)
    expected = torch.tensor(TABLES[sizes]["resized"], dtype=torch.float64).flatten()
    assert len(found) == num_rows(new, 4)
    torch.testing.assert_close(found[: len(expected), 0], expected, atol=1e-10, rtol=0)
    torch.testing.assert_close(found[: len(expected), 1], -2 * expected, atol=1e-10, rtol=0)
    assert torch.equal(found[len(expected) :, 0], rest)  # text and [CLS] stay


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_splines_go_through_polynomials_of_their_degree(count):
    known = torch.linspace(-1, 2, count, dtype=torch.float64) ** 3  # uneven
    wanted = torch.linspace(float(known[0]), float(known[-1]), 11, dtype=torch.float64)
    degree = min(3, count - 1)
    for power in range(degree + 1):
        found = spline_weights(known, wanted) @ known**power
        torch.testing.assert_close(found, wanted**power, atol=1e-9, rtol=1e-9)


def test_outside_its_points_a_spline_is_constant():
    known = torch.arange(5, dtype=torch.float64)
    found = spline_weights(known, torch.tensor([-3.0, 9.0], dtype=torch.float64)) @ known**2
    assert found.tolist() == pytest.approx([0.0, 16.0])


def test_shorter_texts_keep_the_rows_of_their_distances():
    long, short = 9, 5
    table = torch.arange(num_rows(2, long)).float()[:, None]
    cut = shorten_text_rows(table, 2, long, short)
    assert len(cut) == num_rows(2, short)
    old, new = text_index(short, 2, long), text_index(short, 2, short)
    assert torch.equal(cut[new, 0], table[old, 0])
    assert torch.equal(cut[image_index(2), 0], table[image_index(2), 0])
    with pytest.raises(ConfigError, match="no rows for 10"):
        shorten_text_rows(table, 2, long, 10)


def test_a_table_of_no_square_grid_is_refused():
    with pytest.raises(ConfigError, match="447 rows"):
        grid_of_table(torch.zeros(447, 1), 196)
