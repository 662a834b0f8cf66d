"""Pairs for FLAVA: which captions are swapped, with which labels and keys."""

import dataclasses

import numpy as np
import pytest
import torch

from triptych.core.errors import ConfigError
from triptych.data.collate.image import MaskedImageCollator
from triptych.data.collate.pretraining import FLAVAPairCollator, PretrainingTextConfig
from triptych.data.masking import IGNORE_INDEX, BlockMaskingConfig, block_masks
from triptych.data.records import ImageSource, Record
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig, resize_lanczos
from triptych.text import Tokenizer

CAPTIONS = ("A red dog, running!", "two dogs", "it is a house", "a red dog, running!")
IMAGE = ImageTransformConfig(
    image_size=32, crop_scale=None, flip_probability=0.0, randaugment_num_ops=0
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(list(CAPTIONS) * 3, vocab_size=200)


def make_collator(tokenizer, swap_probability=0.1, **captions):
    config = PretrainingTextConfig(max_words=None, whole_word=True, **captions)
    images = MaskedImageCollator(IMAGE, patch_size=8, codebook_size=32)
    return FLAVAPairCollator(tokenizer, config, images, swap_probability=swap_probability)


def make_samples(collator, seed=0, captions=CAPTIONS, images=(0, 1, 2, 3)):
    rng = np.random.default_rng(seed)
    transform = ImageTransform(IMAGE, train=True)
    samples = []
    for place, (caption, image) in enumerate(zip(captions, images, strict=True)):
        record = Record(record_id=str(place), caption=caption, image=ImageSource(f"{image}.png"))
        pixels = np.random.default_rng(image).integers(0, 256, (40, 50, 3), dtype=np.uint8)
        samples.append(collator.sample(record, transform.apply(pixels, rng), rng))
    return samples


def test_without_swaps_everything_is_its_own(tokenizer):
    collator = make_collator(tokenizer, 0.0)
    samples = make_samples(collator)
    batch = collator.batch(samples)
    ids, labels = batch["token_ids"], batch["mlm_labels"]
    texts = [" ".join(c.lower().split()) for c in CAPTIONS]  # punctuation stays
    assert ids.tolist() == tokenizer.pad(tokenizer.encode(texts, max_tokens=40))[0].tolist()
    hidden = labels != IGNORE_INDEX
    assert bool(hidden.any(dim=1).all())
    assert torch.equal(labels[hidden], ids[hidden])
    assert torch.equal(batch["mlm_token_ids"][~hidden], ids[~hidden])
    assert batch["itm_labels"].tolist() == [1, 1, 1, 1]
    keys = np.array([s.image.mask_key for s in samples], dtype=np.uint64)
    assert np.array_equal(batch["hidden_patches"], block_masks(keys, 4, BlockMaskingConfig()))
    assert batch["codebook_image"].shape == (4, 3, 32, 32)
    assert 0.1 <= float(batch["codebook_image"].min()) < 0.2
    assert len(set(batch["image_key"].tolist())) == 4
    first, *_, last = batch["caption_key"].tolist()
    assert first == last  # the same caption but for its case


def test_the_tokenizers_view_is_the_same_image(tokenizer):
    collator = make_collator(tokenizer)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    view = torch.from_numpy(resize_lanczos(pixels, 32, 32).copy()).permute(2, 0, 1) / 255
    found = collator.batch(make_samples(collator))["codebook_image"][0]
    torch.testing.assert_close(found, 0.8 * view + 0.1, atol=1e-6, rtol=0.0)


def test_a_swapped_caption_is_another_text_of_another_image(tokenizer):
    collator = make_collator(tokenizer, 1.0)
    plain = make_collator(tokenizer, 0.0)
    for seed in range(20):
        samples = make_samples(collator, seed)
        own = plain.batch([dataclasses.replace(s, is_swapped=False) for s in samples])
        batch = collator.batch(samples)
        assert batch["itm_labels"].tolist() == [0, 0, 0, 0]
        assert torch.equal(batch["image_key"], own["image_key"])
        assert not bool((batch["caption_key"] == own["caption_key"]).any())
        for row in range(4):  # the text, its mask and its labels are all the partner's
            length = int(batch["text_mask"][row].sum())
            partner = [
                r
                for r in range(4)
                if torch.equal(own["token_ids"][r, :length], batch["token_ids"][row, :length])
            ]
            names = ("mlm_token_ids", "mlm_labels")
            assert any(
                all(torch.equal(own[n][r, :length], batch[n][row, :length]) for n in names)
                for r in partner
            )


def test_all_partners_are_drawn_alike(tokenizer):
    collator = make_collator(tokenizer, 1.0)
    captions = ("one dog", "two dogs", "it is", "a house")
    keys = [s.caption_key for s in make_samples(collator, captions=captions)]
    counts = np.zeros(4)
    for seed in range(300):
        shown = collator.batch(make_samples(collator, seed, captions=captions))["caption_key"]
        counts[keys.index(int(shown[0]))] += 1
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - 100) < 35)  # four deviations of a binomial


def test_a_tenth_is_swapped_and_what_cannot_be_stays(tokenizer):
    collator = make_collator(tokenizer)
    labels = [
        collator.batch(make_samples(collator, seed, captions=CAPTIONS[:3], images=(0, 1, 2)))
        for seed in range(200)
    ]
    share = 1 - torch.cat([batch["itm_labels"] for batch in labels]).float().mean().item()
    assert 0.05 < share < 0.15
    always = make_collator(tokenizer, 1.0)
    same_image = make_samples(always, captions=CAPTIONS[:3], images=(0, 0, 0))
    assert always.batch(same_image)["itm_labels"].tolist() == [1, 1, 1]
    same_text = make_samples(always, captions=(CAPTIONS[0],) * 3, images=(0, 1, 2))
    assert always.batch(same_text)["itm_labels"].tolist() == [1, 1, 1]


def test_a_share_out_of_range_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="swap_probability"):
        make_collator(tokenizer, 1.5)
