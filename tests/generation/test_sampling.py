"""Samples against the distribution written out, and the likely part against transformers."""

import math
from collections import Counter

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from tests.generation.test_beam import END, START, TableStep
from triptych.core.errors import ConfigError
from triptych.generation.sampling import SamplingConfig, sample_texts, token_log_probs
from triptych.generation.search import BeamConfig

A, B, C = 2, 3, 4
FIRST = [0.0, 0.1, 0.4, 0.3, 0.2]  # of [START], [END], A, B, C as the first token
LATER = {A: [0.0, 0.5, 0.5, 0.0, 0.0], B: [0.0, 0.25, 0.0, 0.0, 0.75], C: [0.0, 1.0, 0, 0, 0]}


class Chain(TableStep):
    """A language of five tokens whose next one depends on the last."""

    def scores(self, image, text):
        row = FIRST if len(text) == 1 else LATER.get(text[-1], LATER[C])
        return torch.tensor(row).log()


def _counts(config, num_images=1, seed=0, step=Chain, as_numbers=False):
    generator = torch.Generator().manual_seed(seed)
    numbers = None
    if as_numbers:
        shape = (num_images, config.num_samples, config.max_tokens)
        numbers = torch.rand(shape, generator=generator)
    found = sample_texts(
        step(num_images, 5),
        start_id=START,
        end_id=END,
        config=config,
        generator=generator,
        numbers=numbers,
    )
    return Counter(text for image in found.texts() for text in image)


def _check(counts, expected):
    """Compare counts with probabilities: each within five standard deviations."""
    total = sum(counts.values())
    assert set(counts) <= set(expected)
    for text, probability in expected.items():
        deviation = math.sqrt(total * probability * (1 - probability)) + 1e-9
        assert abs(counts[text] - total * probability) < 5 * deviation, text


def test_texts_come_as_often_as_their_probability_says():
    config = SamplingConfig(num_samples=10_000, min_tokens=0, max_tokens=2)
    expected = {
        (): 0.1,
        (A,): 0.4 * 0.5,
        (A, A): 0.4 * 0.5,
        (B,): 0.3 * 0.25,
        (B, C): 0.3 * 0.75,
        (C,): 0.2,
    }
    assert sum(expected.values()) == pytest.approx(1)
    _check(_counts(config), expected)
    _check(_counts(SamplingConfig(min_tokens=0, max_tokens=2), num_images=3_000), expected)
    _check(_counts(config, as_numbers=True), expected)


def test_numbers_decide_every_draw():
    """Each takes the first token at which the probabilities of `FIRST` add up to more."""
    rising = torch.tensor(FIRST).cumsum(0)
    numbers = torch.cat([torch.zeros(1), (rising - 1e-3).clamp(min=0), torch.ones(1)])[
        None, :, None
    ]
    config = SamplingConfig(num_samples=numbers.shape[1], min_tokens=0, max_tokens=1)
    found = sample_texts(
        Chain(1, 5), start_id=START, end_id=END, config=config, numbers=numbers
    ).token_ids[0, :, 0]
    possible = [token for token, share in enumerate(FIRST) if share > 0]
    expected = [next(t for t in possible if float(rising[t]) > n) for n in numbers[0, :-1, 0]]
    assert found.tolist() == [*expected, possible[-1]]  # 1 itself, where rounding may lead


def test_the_nucleus_is_the_fewest_tokens_with_the_probability():
    # A and B have 0.7 of the first token, A alone 0.4; the nucleus of 0.6 is A and B, 4 : 3.
    # After A both tokens (0.5 is below 0.6); after B only C.
    config = SamplingConfig(num_samples=10_000, top_p=0.6, min_tokens=0, max_tokens=2)
    expected = {(A,): 4 / 7 / 2, (A, A): 4 / 7 / 2, (B, C): 3 / 7}
    _check(_counts(config), expected)


def test_temperature_squares_the_odds():
    config = SamplingConfig(num_samples=10_000, temperature=0.5, min_tokens=0, max_tokens=1)
    squares = {(): 0.01, (A,): 0.16, (B,): 0.09, (C,): 0.04}
    _check(_counts(config), {text: value / 0.3 for text, value in squares.items()})


def test_an_end_that_may_not_come_yet_leaves_its_share_to_the_others():
    config = SamplingConfig(num_samples=10_000, min_tokens=1, max_tokens=2)
    counts = _counts(config)
    first = {token: sum(n for text, n in counts.items() if text[0] == token) for token in (A, B, C)}
    _check(Counter(first), {A: 4 / 9, B: 3 / 9, C: 2 / 9})


def test_equal_seeds_give_equal_texts_and_other_seeds_others():
    config = SamplingConfig(num_samples=50, max_tokens=6)
    step = lambda images, size: TableStep(images, size)  # noqa: E731
    first, same, other = (_counts(config, 2, seed, step) for seed in (1, 1, 2))
    assert first == same != other


def test_nothing_follows_the_end():
    config = SamplingConfig(num_samples=20, min_tokens=2, max_tokens=8)
    found = sample_texts(TableStep(3, 5), start_id=START, end_id=END, config=config)
    for image, texts in enumerate(found.texts()):
        for number, text in enumerate(texts):
            assert END not in text and 2 <= len(text) <= 8
            ids, mask = found.token_ids[image, number], found.mask[image, number]
            drawn = [*text, END] if found.ended[image, number] else list(text)
            assert ids[mask].tolist() == drawn
            assert set(ids[~mask].tolist()) <= {END}
            assert bool(found.ended[image, number]) == (len(text) < 8)


def test_a_prompt_is_read_and_not_returned():
    class Echo(TableStep):
        def scores(self, image, text):
            logits = torch.full((9,), -40.0)
            logits[END if len(text) >= 4 else text[-1] + 1] = 40.0
            return logits

    config = SamplingConfig(num_samples=2, max_tokens=5)
    prompt = torch.tensor([[4], [6]])
    found = sample_texts(Echo(2, 9), start_id=START, end_id=END, config=config, prompt=prompt)
    assert found.texts() == [[(5, 6)] * 2, [(7, 8)] * 2]


@pytest.mark.parametrize("top_k", [0, 1, 7])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 1.0])
def test_the_likely_part_is_that_of_transformers(top_k, top_p):
    logits = 3 * torch.randn(20, 40, generator=torch.Generator().manual_seed(top_k))
    expected = TemperatureLogitsWarper(0.7)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    expected = torch.log_softmax(TopPLogitsWarper(top_p)(None, expected), dim=-1)
    config = SamplingConfig(temperature=0.7, top_k=top_k, top_p=top_p)
    torch.testing.assert_close(token_log_probs(logits[None], config)[0], expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_samples": 0},
        {"temperature": 0.0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"max_tokens": 0},
        {"min_tokens": 3, "max_tokens": 3},
    ],
)
def test_impossible_settings_are_refused(fields):
    with pytest.raises(ConfigError, match=next(iter(fields))):
        SamplingConfig(**fields)


def test_texts_longer_than_the_position_table_are_refused():
    with pytest.raises(ConfigError, match="decoder has 50"):
        config = SamplingConfig(max_tokens=51)
        sample_texts(TableStep(1, 4), start_id=START, end_id=END, config=config)


@pytest.mark.parametrize(
    ("config", "changed", "message"),
    [
        (SamplingConfig, {"temperature": 1e-300}, "temperature = 1e-300: must be at least 0.0001"),
        (SamplingConfig, {"top_k": 10**9}, "top_k = 1000000000: must be at most 1,000,000"),
        (SamplingConfig, {"num_samples": 10**7}, "num_samples = 10000000: must be at most 100,000"),
        (SamplingConfig, {"max_tokens": 10**6}, "max_tokens = 1000000: must be at most 16,384"),
        (BeamConfig, {"num_beams": 10**5}, "num_beams = 100000: must be at most 256"),
        (BeamConfig, {"max_tokens": 10**6}, "max_tokens = 1000000: must be at most 16,384"),
        (BeamConfig, {"length_penalty": 1e308}, r"length_penalty = 1e\+308: must be at most 10"),
    ],
)
def test_sizes_have_upper_bounds(config, changed, message):
    with pytest.raises(ConfigError, match=message):
        config(**changed)
