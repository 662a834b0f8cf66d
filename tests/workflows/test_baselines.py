"""Guesses beside the scores, against cases worked by hand."""

from math import exp, sqrt

import numpy as np
import pytest
from PIL import Image

from triptych.data.records import ImageSource, Record
from triptych.workflows.baselines import baselines_of


def captioned(*captions):
    return [Record(record_id=str(i), caption=text) for i, text in enumerate(captions)]


def boxed(tmp_path, *cases):
    """Return records of grey images, each with its (width, height) and box."""
    records = []
    for i, (size, box) in enumerate(cases):
        path = tmp_path / "{}x{}.png".format(*size)
        Image.fromarray(np.zeros(size[::-1], dtype=np.uint8)).save(path)
        records.append(Record(record_id=str(i), image=ImageSource(str(path)), box=box))
    return records


def test_the_most_frequent_caption_is_scored_as_the_caption_of_every_image():
    train = captioned("A red ball.", "a dog", "A red ball.")
    guess = baselines_of("caption", train, captioned("a red ball", "a cat sat here"), seed=0)
    assert list(guess) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"]
    # "a red ball" twice: 4 of 6 words and 2 of 4 pairs are right, and 6 words stand for 7
    brevity = exp(1 - 7 / 6)
    assert guess["bleu_1"].blind == pytest.approx(brevity * 4 / 6)
    assert guess["bleu_2"].blind == pytest.approx(brevity * sqrt(4 / 6 * 2 / 4))
    assert guess["bleu_3"].blind == pytest.approx(brevity * (4 / 6 * 2 / 4 * 1 / 2) ** (1 / 3))
    # The second shares "a" alone: P = 1/3, R = 1/4, F = 2.44 PR / (R + 1.44 P)
    second = 2.44 * (1 / 3) * (1 / 4) / (1 / 4 + 1.44 / 3)
    assert guess["rouge_l"].blind == pytest.approx((1 + second) / 2)
    # The first is equal in 1-, 2- and 3-grams and has no 4-gram: 10 x 3/4; "a" is in both, log 1
    assert guess["cider"].blind == pytest.approx((7.5 + 0) / 2)


def test_chance_is_a_caption_drawn_for_each_image():
    train = captioned(*["two grey cats", "one blue dog"] * 50)
    held_out = captioned(*["two grey cats"] * 400)
    guess = baselines_of("caption", train, held_out, seed=0)["rouge_l"]
    assert guess.chance == pytest.approx(0.5, abs=0.08)  # three standard deviations of a coin
    assert guess.blind == 1.0  # of two equally frequent ones the first


def test_all_true_captions_of_an_image_count():
    train, held_out = captioned("a b c"), captioned("x y z")
    both = baselines_of("caption", train, held_out, 0, references={0: ["x y z", "a b c"]})
    assert both["rouge_l"].blind == both["rouge_l"].chance == 1.0
    assert baselines_of("caption", train, held_out, 0)["rouge_l"].blind == 0.0


def test_boxes_are_scaled_to_the_image_and_overlap(tmp_path):
    train = boxed(tmp_path, ((10, 10), (0, 0, 5, 10)))  # the left half
    held_out = boxed(tmp_path, ((20, 10), (0, 0, 20, 10)), ((10, 10), (5, 0, 5, 10)))
    guess = baselines_of("grounding", train, held_out, seed=0)
    assert list(guess) == ["grounding", "grounding_iou"]
    for way in ("chance", "blind"):  # half of the first one's box, nothing of the second one's
        assert getattr(guess["grounding"], way) == 0.5
        assert getattr(guess["grounding_iou"], way) == pytest.approx(0.25)


def test_the_mean_box_is_right_about_nothing_where_a_drawn_one_is_half_the_time(tmp_path):
    left, right = ((10, 10), (0, 0, 5, 10)), ((10, 10), (5, 0, 5, 10))
    train = boxed(tmp_path, *[left, right] * 4)
    guess = baselines_of("grounding", train, boxed(tmp_path, *[left] * 100), seed=0)
    # Half-way between the halves, 2.5 of 7.5 columns are common; a drawn one is all or nothing
    assert guess["grounding"].blind == 0.0
    assert guess["grounding_iou"].blind == pytest.approx(1 / 3, abs=0.08)
    assert guess["grounding"].chance == guess["grounding_iou"].chance
    assert guess["grounding"].chance == pytest.approx(0.5, abs=0.16)


def test_chance_of_retrieval_is_the_share_of_the_images():
    guess = baselines_of("retrieval", [], captioned(*"abcd"), seed=0)
    assert guess["i2t_r1"].chance == guess["t2i_r1_itm"].chance == 1 / 4
    assert guess["i2t_r5"].chance == 1.0
    assert guess["i2t_r1"].blind is None
