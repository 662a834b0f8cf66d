"""Grounding against hand-worked boxes and plain loops, one image and one token at a time."""

import math

import pytest
import torch

from tests.tasks.finetuning.tiny import WORDS, images, plain_memory, tiny_model
from triptych.core.errors import ConfigError
from triptych.tasks.finetuning.grounding import Grounding, GroundingConfig, paired_giou
from triptych.text import Tokenizer

BINS, START, FIRST = 11, 0, 1  # coordinate x is bin floor(10 x), whose middle is (bin + 0.5) / 10
PHRASES = ["a red star", "blue circle", "what ?"]
BOXES = [[0.45, 0.41, 0.33, 0.28], [0.87, 0.12, 0.22, 0.08], [0.5, 0.5, 1.0, 1.0]]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(WORDS, vocab_size=110, num_unused=BINS + 1)


def make_task(tokenizer, *, seed=1, **settings):
    config = GroundingConfig(num_bins=BINS, start_unused=START, first_bin_unused=FIRST, **settings)
    ids = {"start_id": tokenizer.unused_id(START), "first_bin_id": tokenizer.unused_id(FIRST)}
    return Grounding(tiny_model(tokenizer, seed=seed), config, **ids)


def make_batch(tokenizer):
    ids, mask = tokenizer.pad([tokenizer.encode([text], max_tokens=9)[0] for text in PHRASES])
    return {
        "image": images(3),
        "token_ids": ids,
        "text_mask": mask,
        "box_cxcywh": torch.tensor(BOXES),
        "image_size_px": torch.tensor([[100, 50], [64, 64], [30, 90]]),
        "index": torch.arange(3),
    }


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((0, 0, 1, 1), (2, 0, 3, 1), -1 / 3),  # disjoint: union 2 in a hull of 3
        ((0, 0, 4, 4), (1, 1, 2, 2), 1 / 16),  # nested: the hull is the union
        ((0, 0, 2, 2), (1, 1, 3, 3), 1 / 7 - 2 / 9),  # 1 of 7 shared, in a hull of 9
        ((0, 0, 2, 3), (0, 0, 2, 3), 1.0),
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),  # no area at all
        ((0.5, 0.5, 0.5, 0.5), (0, 0, 1, 1), 0.0),  # a point inside
        ((0, 0, 0, 0), (1, 1, 1, 1), -1.0),  # two points: a hull of which nothing is covered
        ((0, 0, 0, 0), (1, 0, 1, 0), 0.0),  # two points in a row: no hull either
    ],
)
def test_giou_of_hand_worked_boxes(first, second, expected):
    one, other = (torch.tensor([box], dtype=torch.float32) for box in (first, second))
    assert paired_giou(one, other).item() == pytest.approx(expected, abs=1e-6)
    assert paired_giou(other, one).item() == pytest.approx(expected, abs=1e-6)
    assert paired_giou(10 * one, 10 * other).item() == pytest.approx(expected, abs=1e-6)


def test_giou_compares_row_by_row():
    first = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 4.0, 4.0]])
    second = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 2.0, 2.0]])
    torch.testing.assert_close(paired_giou(first, second), torch.tensor([1.0, 1 / 16]))


# Truth (4, 4, 3, 3): centre 0.45, side 0.35, so [0.275, 0.625] both ways, area 0.1225.
@pytest.mark.parametrize(
    ("predicted", "expected"),
    [
        ((4, 4, 3, 3), (0, 0, 0, 0)),  # equal: nothing to learn
        # Centre x 0.95: disjoint, union 0.245 in a hull 0.85 wide, GIoU -0.0525 / 0.2975 = -3 / 17.
        ((9, 4, 3, 3), (5 * 20 / 17, 0, 0, 0)),
        # Centre x 1 (clamped), distance 6 counts as 5, GIoU -0.07 / 0.315 = -2 / 9.
        ((10, 4, 3, 3), (5 * 11 / 9, 0, 0, 0)),
        # Sides 0.15: nested, GIoU 0.0225 / 0.1225 = 9 / 49.
        ((4, 4, 1, 1), (0, 0, 2 * 40 / 49, 2 * 40 / 49)),
    ],
)
def test_released_weights_of_hand_worked_boxes(tokenizer, predicted, expected):
    task = make_task(tokenizer)
    found = task._weights(torch.tensor([predicted]), torch.tensor([[4, 4, 3, 3]]))
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))


def test_coordinates_become_bins_and_their_middles(tokenizer):
    task = make_task(tokenizer)
    boxes = torch.tensor([[0.0, 0.05, 0.1, 0.99], [1.0, 1.2, -0.1, 0.55]])
    bins = task.to_bins(boxes)
    assert bins.dtype == torch.int64
    assert bins.tolist() == [[0, 0, 1, 9], [10, 10, 0, 5]]
    middles = [[0.05, 0.05, 0.15, 0.95], [1.0, 1.0, 0.05, 0.55]]  # the last one's is outside
    torch.testing.assert_close(task.from_bins(bins), torch.tensor(middles))


def test_released_bins_are_floors_of_336_times_the_coordinate(tokenizer):
    config = GroundingConfig()  # 337 bins, as for 336 px
    task = Grounding.__new__(Grounding)
    task.config = config
    boxes = torch.rand(50, 4, generator=torch.Generator().manual_seed(2))
    expected = [[math.floor(336 * x) for x in box] for box in boxes.tolist()]
    assert task.to_bins(boxes).tolist() == expected


@pytest.mark.parametrize("deviation", [0.7, 2.0])
def test_smoothed_targets_are_a_bell_around_the_true_bin(tokenizer, deviation):
    found = make_task(tokenizer, smoothing_bins=deviation)._targets(torch.tensor([[0, 3, 9, 10]]))
    for row, true_bin in zip(found[0].tolist(), (0, 3, 9, 10), strict=True):
        bell = [math.exp(-(((b - true_bin) / deviation) ** 2) / 2) for b in range(BINS)]
        assert row == pytest.approx([height / sum(bell) for height in bell], abs=1e-6)


def test_without_smoothing_the_true_bin_has_all(tokenizer):
    found = make_task(tokenizer)._targets(torch.tensor([[0, 3, 10, 3]]))
    assert found[0].tolist() == [[float(b == true) for b in range(BINS)] for true in (0, 3, 10, 3)]


@torch.no_grad()
def plain_log_bins(task, batch, row, tokens):
    """Return the log-probabilities (len(tokens), bins) of what follows each token."""
    length = int(batch["text_mask"][row].sum())
    memory = plain_memory(
        task.model, batch["image"][row][None], batch["token_ids"][row, :length].tolist()
    )
    scores = task.model.decoder.word_logits(task.model.decode(torch.tensor([tokens]), memory))[0]
    log_probs = torch.log_softmax(scores, dim=-1).tolist()
    return [each[task.first_bin_id : task.first_bin_id + BINS] for each in log_probs]


def plain_corners(bins):
    """Return x0, y0, x1, y1 of the box in the middles of these bins."""
    x, y, width, height = (min((b + 0.5) / (BINS - 1), 1.0) for b in bins)
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def plain_giou(first, second):
    def area(x0, y0, x1, y1):
        return max(0.0, x1 - x0) * max(0.0, y1 - y0)

    pairs = list(zip(first, second, strict=True))
    shared = area(*map(max, pairs[:2]), *map(min, pairs[2:]))
    hull = area(*map(min, pairs[:2]), *map(max, pairs[2:]))
    union = area(*first) + area(*second) - shared
    return shared / union - (hull - union) / hull


def plain_loss(task, batch):
    """Return the mean over all coordinate tokens, written out."""
    config, total = task.config, 0.0
    for row, box in enumerate(batch["box_cxcywh"].tolist()):
        bins = [min(BINS - 1, math.floor(x * (BINS - 1))) for x in box]
        said = plain_log_bins(
            task, batch, row, [task.start_id, *(task.first_bin_id + b for b in bins[:3])]
        )
        likeliest = [max(range(BINS), key=each.__getitem__) for each in said]
        overlap = plain_giou(plain_corners(likeliest), plain_corners(bins))
        for true, guess, log_probs in zip(bins, likeliest, said, strict=True):
            bell = [float(b == true) for b in range(BINS)]
            if config.smoothing_bins:
                bell = [
                    math.exp(-(((b - true) / config.smoothing_bins) ** 2) / 2) for b in range(BINS)
                ]
            loss = -sum(h * p for h, p in zip(bell, log_probs, strict=True)) / sum(bell)
            if config.length_and_overlap_weighting:
                loss *= min(5, abs(guess - true)) * (1 - overlap)
            total += loss
    return total / (4 * len(batch["box_cxcywh"]))


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_is_that_of_a_plain_loop(tokenizer, weighted, smoothing):
    batch = make_batch(tokenizer)
    for seed in range(3):
        task = make_task(
            tokenizer,
            seed=seed,
            smoothing_bins=smoothing,
            length_and_overlap_weighting=weighted,
        )
        found = task.losses(batch, active=frozenset({"box"}))
        assert list(found) == ["box"]
        assert found["box"].item() == pytest.approx(plain_loss(task, batch), rel=1e-4)


def test_weighting_leaves_alone_what_is_right_already(tokenizer):
    """Where the four likeliest bins are the true ones, the weighted loss and gradient are 0."""
    batch = {name: tensor[:1] for name, tensor in make_batch(tokenizer).items()}
    task = make_task(tokenizer, length_and_overlap_weighting=True)
    tokens = [task.start_id]
    for _ in range(4):
        scores = plain_log_bins(task, batch, 0, tokens)[-1]
        tokens.append(task.first_bin_id + max(range(BINS), key=scores.__getitem__))
    bins = torch.tensor([tokens[1:]]) - task.first_bin_id
    batch["box_cxcywh"] = (bins.float() + 0.5) / (BINS - 1)
    assert task.to_bins(batch["box_cxcywh"]).tolist() == bins.tolist()
    loss = task.losses(batch, active=frozenset({"box"}))["box"]
    assert loss.item() == 0.0
    loss.backward()
    assert not any(bool(p.grad.any()) for p in task.model.parameters() if p.grad is not None)


def test_the_order_of_the_batch_and_padding_change_no_loss(tokenizer):
    task, batch = make_task(tokenizer, length_and_overlap_weighting=True), make_batch(tokenizer)
    expected = task.losses(batch, active=frozenset({"box"}))
    shuffled = {name: tensor[[2, 0, 1]] for name, tensor in batch.items()}
    torch.testing.assert_close(task.losses(shuffled, active=frozenset({"box"})), expected)
    noise = torch.full((3, 2), 9)
    wide = batch | {
        "token_ids": torch.cat([batch["token_ids"], noise], dim=1),
        "text_mask": torch.cat([batch["text_mask"], noise < 0], dim=1),
    }
    torch.testing.assert_close(task.losses(wide, active=frozenset({"box"})), expected)


def test_a_prediction_is_the_likeliest_bin_at_each_step(tokenizer):
    task, batch = make_task(tokenizer), make_batch(tokenizer)
    found = task.predict({name: batch[name] for name in batch if name != "box_cxcywh"})
    assert list(found.index) == [0, 1, 2]
    for row, (width, height) in enumerate(batch["image_size_px"].tolist()):
        tokens = [task.start_id]
        for _ in range(4):
            scores = plain_log_bins(task, batch, row, tokens)[-1]
            tokens.append(task.first_bin_id + max(range(BINS), key=scores.__getitem__))
        corners = plain_corners([token - task.first_bin_id for token in tokens[1:]])
        pixels = [
            min(max(c, 0), 1) * side
            for c, side in zip(corners, (width, height, width, height), strict=True)
        ]
        assert found.boxes_xyxy[row].tolist() == pytest.approx(pixels, abs=1e-4)


def test_smooth_coordinates_are_alike_where_bins_are_near(tokenizer):
    task = make_task(tokenizer)
    table = task.model.decoder.embedding.word.weight
    before, scale = table.detach().clone(), table.std().item()
    torch.manual_seed(0)
    task.init_coordinates()
    bins = slice(task.first_bin_id, task.first_bin_id + BINS)
    rows = table[bins].detach()
    root_mean_square = rows.square().mean(dim=1).sqrt()  # sin² + cos² = 1, at the table's scale
    torch.testing.assert_close(root_mean_square, torch.full((BINS,), scale))
    similar = rows @ rows.T  # Σ cos(rate · (a - b)): it depends on the distance alone
    for distance in range(BINS):
        same = similar.diagonal(distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), atol=1e-4, rtol=1e-4)
    assert similar[0, 0] > similar[0, 1] > similar[0, 2]
    others = torch.ones(len(table), dtype=torch.bool)
    others[bins] = False
    assert torch.equal(table[others], before[others])


def test_bins_outside_of_the_vocabulary_are_refused(tokenizer):
    config = GroundingConfig(num_bins=BINS)
    first = tokenizer.vocab_size - BINS + 1
    with pytest.raises(ConfigError, match=f"num_bins = {BINS}: must leave the bins inside"):
        Grounding(tiny_model(tokenizer), config, start_id=0, first_bin_id=first)
    with pytest.raises(ConfigError, match="num_bins = 1: must be at least 2"):
        GroundingConfig(num_bins=1)
