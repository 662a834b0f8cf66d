"""VLMo's positions: one relative-bias table over both modalities, and how tables are resized.

Rows of the relative table, for a grid of W x W patches and texts of up to L₀ tokens:

| rows | pair of query and key |
|---|---|
| (2W-1)² | patch and patch, by (Δy + W-1)·(2W-1) + Δx + W-1, query minus key |
| 3 | image [CLS] to patch, patch to image [CLS], image [CLS] to itself |
| 2 | text to image, image to text |
| 2·L₀ - 3 | word and word, by key minus query |
| 3 | text [CLS] to word, word to text [CLS], text [CLS] to itself |

As in the released tables, where L₀ is 196 whatever the text length.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from triptych.core.errors import ConfigError

NUM_CLS_ROWS = 3


def num_image_rows(grid_size: int) -> int:
    """Return the rows for pairs within an image, the three of its [CLS] included."""
    return int((2 * grid_size - 1) ** 2) + NUM_CLS_ROWS


def num_rows(grid_size: int, max_text_tokens: int) -> int:
    """Return the rows of the whole table."""
    return num_image_rows(grid_size) + 2 * max_text_tokens + 2


def image_index(grid_size: int) -> Tensor:
    """Return the row of each pair of image tokens, (N, N) int64, query first."""
    side = 2 * grid_size - 1
    position = torch.arange(grid_size * grid_size)
    y, x = position // grid_size, position % grid_size
    rows_y = y[:, None] - y[None] + grid_size - 1
    rows_x = x[:, None] - x[None] + grid_size - 1
    last = num_image_rows(grid_size)
    index = torch.empty(len(position) + 1, len(position) + 1, dtype=torch.int64)
    index[1:, 1:] = rows_y * side + rows_x
    index[0, :], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return index


def text_index(num_text: int, grid_size: int, max_text_tokens: int) -> Tensor:
    """Return the row of each pair of text tokens, (L, L) int64, query first."""
    first, last = num_image_rows(grid_size), num_rows(grid_size, max_text_tokens)
    position = torch.arange(num_text)
    index = first + max_text_tokens + position[None] - position[:, None]
    index[0, :], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return index


@functools.lru_cache(maxsize=64)
def joint_index(
    num_text: int, num_images: int, grid_size: int, max_text_tokens: int, device: torch.device
) -> Tensor:
    """Return the row of each pair of tokens of [image; text], (S, S) int64, query first.

    Args:
        num_text: Text tokens L; 0 for images alone.
        num_images: Images in the sequence: 0, 1, or the frames of a clip, each of which sees the
            others as it sees itself, place by place, since the table knows no time.
        grid_size: Patches on each side.
        max_text_tokens: Longest text of the table.
        device: Where the result lies.
    """
    with torch.inference_mode(False):  # kept for training too, whoever asks first
        return _joint_index(num_text, num_images, grid_size, max_text_tokens).to(device)


def _joint_index(num_text: int, num_images: int, grid_size: int, max_text_tokens: int) -> Tensor:
    image = image_index(grid_size).repeat(num_images, num_images)
    num_image = len(image)
    size = num_image + num_text
    index = torch.empty(size, size, dtype=torch.int64)
    first = num_image_rows(grid_size)
    index[:num_image, :num_image] = image
    index[num_image:, :num_image], index[:num_image, num_image:] = first, first + 1
    if num_text:
        index[num_image:, num_image:] = text_index(num_text, grid_size, max_text_tokens)
    return index


class RelativePositions(nn.Module):
    """Scores that attention adds for each pair of positions: one table for the whole network.

    Column layer · H + head of `table` is what that head of that block reads.
    """

    def __init__(self, grid_size: int, max_text_tokens: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.grid_size, self.max_text_tokens = grid_size, max_text_tokens
        self.depth, self.num_heads = depth, num_heads
        rows = num_rows(grid_size, max_text_tokens)
        self.table = nn.Parameter(torch.zeros(rows, depth * num_heads))

    def forward(self, num_text: int, num_images: int) -> Tensor:
        """Return the scores of all blocks at once.

        Args:
            num_text: Text tokens L, which follow the images; 0 for images alone.
            num_images: See `joint_index`.

        Returns:
            (depth, H, S, S).
        """
        make, longest = joint_index, num_text
        if torch.compiler.is_exporting():  # tensors of a trace are not to be kept
            make = joint_index.__wrapped__  # type: ignore[assignment]
            # The pairs of a long text begin with those of a shorter one, of any length; longer than
            # any, so that all are cut alike.
            longest = num_text if isinstance(num_text, int) else self.max_text_tokens + 1
        index = make(longest, num_images, self.grid_size, self.max_text_tokens, self.table.device)
        size = index.shape[0] - longest + num_text
        scores = nn.functional.embedding(index[:size, :size], self.table)  # (S, S, depth·H)
        return scores.permute(2, 0, 1).reshape(self.depth, self.num_heads, size, size)


def resize_relative_table(table: Tensor, old_grid: int, new_grid: int) -> Tensor:
    """Bring a relative table to another grid, as BEiT does; rows of text and [CLS] stay.

    Patches near the query are resolved finely and far ones coarsely: the old offsets are placed at
    the partial sums of a geometric progression that ends where the new offsets end, and a bicubic
    spline through them is read at the new, whole offsets.

    Args:
        table: (R, C).
        old_grid: Patches on each side that the table is for.
        new_grid: Patches on each side that are wanted.

    Returns:
        (R', C), float32 where resized.
    """
    if old_grid == new_grid:
        return table
    old_side, new_side = 2 * old_grid - 1, 2 * new_grid - 1
    grid, rest = table[: old_side**2], table[old_side**2 :]
    known = _geometric_offsets(old_side, new_side)
    wanted = torch.arange(new_side, dtype=torch.float64) - new_side // 2
    weights = spline_weights(known, wanted)  # (new_side, old_side)
    columns = grid.double().reshape(old_side, old_side, -1)
    resized = torch.einsum("yi,xj,ijc->yxc", weights, weights, columns).flatten(0, 1)
    return torch.cat([resized.to(table.dtype), rest])


def shorten_text_rows(table: Tensor, grid_size: int, old_length: int, new_length: int) -> Tensor:
    """Cut a relative table (R, C) to shorter texts: the rows of near words stay.

    Raises:
        ConfigError: Longer texts are wanted: there are no rows for them.
    """
    if new_length > old_length:
        raise ConfigError(f"a table for texts of {old_length} tokens has no rows for {new_length}")
    if new_length == old_length:
        return table
    first, last = num_image_rows(grid_size) + 2, len(table) - NUM_CLS_ROWS
    cut = old_length - new_length
    return torch.cat([table[:first], table[first + cut : last - cut], table[last:]])


def grid_of_table(table: Tensor, max_text_tokens: int) -> int:
    """Return the patches on each side that a relative table (R, C) is for.

    Raises:
        ConfigError: No grid has so many rows.
    """
    side = math.isqrt(max(0, len(table) - num_rows(1, max_text_tokens) + 1))
    grid = (side + 1) // 2
    if num_rows(grid, max_text_tokens) != len(table):
        raise ConfigError(
            f"a relative position table of {len(table)} rows fits no square grid with texts of "
            f"{max_text_tokens} tokens"
        )
    return grid


def spline_weights(known: Tensor, wanted: Tensor) -> Tensor:
    """Return the matrix that reads an interpolating spline at other points.

    A cubic spline with "not-a-knot" ends, which is FITPACK's and hence SciPy's choice; of fewer
    than four points, the polynomial through them. Outside the points it is constant, as FITPACK's
    evaluation is.

    Args:
        known: (n,) float64, increasing: where values are known.
        wanted: (m,) float64: where values are wanted.

    Returns:
        (m, n) float64: values at `wanted` are this times the values at `known`.
    """
    wanted = wanted.clamp(known[0], known[-1])
    if len(known) < 4:
        powers = torch.arange(len(known))
        basis = known[:, None] ** powers
        solved: Tensor = torch.linalg.solve(basis, wanted[:, None] ** powers, left=False)
        return solved
    curvature = _curvature_weights(known)
    step = known.diff()
    after = torch.searchsorted(known, wanted).clamp(1, len(known) - 1)
    before, width = after - 1, step[after - 1]
    right = (wanted - known[before]) / width
    left = 1 - right
    unit = torch.eye(len(known), dtype=known.dtype)
    line = left[:, None] * unit[before] + right[:, None] * unit[after]
    bend_left, bend_right = ((w**3 - w) * width**2 / 6 for w in (left, right))
    bend = bend_left[:, None] * curvature[before] + bend_right[:, None] * curvature[after]
    weights: Tensor = line + bend
    return weights


def _curvature_weights(known: Tensor) -> Tensor:
    """Return the (n, n) matrix from values at n points to the spline's second derivatives there."""
    count, step = len(known), known.diff()
    system = torch.zeros(count, count, dtype=known.dtype)
    values = torch.zeros_like(system)
    for i in range(1, count - 1):
        before, after = step[i - 1], step[i]
        system[i, i - 1], system[i, i], system[i, i + 1] = before, 2 * (before + after), after
        values[i, i - 1], values[i, i + 1] = 6 / before, 6 / after
        values[i, i] = -6 / before - 6 / after
    for row, (i, j, k) in ((0, (0, 1, 2)), (-1, (-1, -2, -3))):  # one cubic over both end pieces
        near, far = (known[i] - known[j]).abs(), (known[j] - known[k]).abs()
        system[row, i], system[row, j], system[row, k] = far, -(near + far), near
    solved: Tensor = torch.linalg.solve(system, values)
    return solved


def _geometric_offsets(old_side: int, new_side: int) -> Tensor:
    """Return where BEiT puts the old offsets: 0 and ±(1, 1 + q, 1 + q + q², ...), (old_side,).

    The ratio q is bisected in [1.01, 1.5] so that the last sum is the last new offset; a smaller
    grid thus keeps the near offsets almost where they were.
    """
    count, low, high, ratio = old_side // 2, 1.01, 1.5, 1.01
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if (1 - ratio**count) / (1 - ratio) > new_side // 2:
            high = ratio
        else:
            low = ratio
    sums = torch.cumsum(ratio ** torch.arange(count, dtype=torch.float64), dim=0)
    return torch.cat([-sums.flip(0), torch.zeros(1, dtype=torch.float64), sums])
