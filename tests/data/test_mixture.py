"""Mixtures: which source is drawn when, against brute-force counts and each source on its own."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from triptych.core.errors import ConfigError, DataError
from triptych.data.collate import RetrievalCollator
from triptych.data.mixture import (
    SEED_STRIDE,
    STEPS_AT_ONCE,
    MixtureSource,
    SourceOrder,
    build_mixture,
)
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, SkipLog
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.text import Tokenizer

TRANSFORM = ImageTransform(ImageTransformConfig(image_size=8), train=True)


class Texts:
    """Texts alone: the number of each text, and a draw of the sample's generator."""

    needs_boxes = False

    def text_sample(self, record, rng):
        return int(record.text), int(rng.integers(1 << 30))

    def batch(self, samples):
        return {"text": torch.tensor(samples)}


def texts(count):
    return [Record(record_id=f"t{i}", text=str(i)) for i in range(count)]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixture")
    rng = np.random.default_rng(0)
    found = []
    for i in range(3):
        path = folder / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).save(path)
        found.append(
            Record(record_id=f"p{i}", image=ImageSource(str(path)), caption=f"a dog {'x' * i}")
        )
    return found


@pytest.fixture(scope="module")
def sources(images):
    tokenizer = Tokenizer.train(["a dog x"], vocab_size=200)
    return [
        MixtureSource(name="few", records=texts(5), collator=Texts(), transform=TRANSFORM),
        MixtureSource(
            name="pairs",
            records=images,
            collator=RetrievalCollator(tokenizer),
            transform=TRANSFORM,
            ratio=2.0,
            local_batch_size=3,
        ),
        MixtureSource(name="many", records=texts(50), collator=Texts(), transform=TRANSFORM),
    ]


def take(source, num):
    iterator = iter(source)
    found = [next(iterator) for _ in range(num)]
    iterator.close()
    return found


def mixture(sources, **settings):
    return build_mixture(sources, **{"seed": 3, "local_batch_size": 4} | settings)


def drawn(batches):
    return [int(batch["source"]) for batch in batches]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert set(a) == set(b)
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_sources_are_drawn_with_their_ratios():
    order = SourceOrder((1.0, 0.0, 3.0), seed=5)
    steps = 2 * STEPS_AT_ONCE + 100
    counts = Counter(order.at(step) for step in range(steps))
    assert set(counts) == {0, 2}
    # 5 standard deviations of a binomial share around 1/4
    assert abs(counts[0] / steps - 0.25) < 5 * (0.25 * 0.75 / steps) ** 0.5


def test_draws_are_independent_of_the_last():
    order = SourceOrder((1.0, 1.0), seed=5)
    steps = [order.at(step) for step in range(4000)]
    stays = sum(a == b for a, b in pairwise(steps)) / 3999
    assert abs(stays - 0.5) < 5 * 0.5 / 3999**0.5


@pytest.mark.parametrize("step", [0, 1, 17, STEPS_AT_ONCE, 3 * STEPS_AT_ONCE + 5])
def test_counts_are_those_of_the_steps_before(step):
    walked, asked = SourceOrder((1.0, 2.0, 0.5), seed=1), SourceOrder((1.0, 2.0, 0.5), seed=1)
    steps = Counter(walked.at(s) for s in range(step))
    assert asked.counts(step).tolist() == [steps[number] for number in range(3)]
    assert asked.at(step) == walked.at(step)


def test_the_seed_changes_the_draws():
    draws = [[SourceOrder((1.0, 1.0), seed).at(s) for s in range(40)] for seed in (0, 1)]
    assert draws[0] != draws[1]


def test_each_source_gives_its_own_batches_in_its_own_order(sources):
    """The n-th batch of a source is that of a loader of this source alone."""
    batches = take(mixture(sources), 24)
    for number, source in enumerate(sources):
        found = [batch for batch in batches if batch["source"] == number]
        alone = build_loader(
            source.records,
            source.collator,
            source.transform,
            seed=3 + SEED_STRIDE * number,
            local_batch_size=source.local_batch_size or 4,
            train=True,
        )
        expected = take(alone, len(found))
        assert_same(found, [batch | {"source": torch.tensor(number)} for batch in expected])
    assert len(set(drawn(batches))) == 3
    assert all(("image" in batch) == (int(batch["source"]) == 1) for batch in batches)


def test_an_exhausted_source_begins_again_in_a_new_order(sources):
    batches = take(mixture(sources[:1], local_batch_size=5), 4)
    orders = [tuple(batch["index"].tolist()) for batch in batches]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len(set(orders)) > 1


@pytest.mark.parametrize("start", [1, 7, 10])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_at_a_step_equals_never_stopping(sources, start, num_workers):
    whole = take(mixture(sources, accumulate=2), 14)
    rest = mixture(sources, accumulate=2, start_step=start, num_workers=num_workers)
    assert_same(take(rest, 14 - start), whole[start:])


def test_micro_batches_of_a_step_are_of_one_source(sources):
    one = drawn(take(mixture(sources), 10))
    three = drawn(take(mixture(sources, accumulate=3), 30))
    assert three == [number for number in one for _ in range(3)]


def test_ranks_draw_the_same_source_and_other_samples(sources):
    parts = [take(mixture(sources, rank=rank, world_size=2), 12) for rank in (0, 1)]
    assert drawn(parts[0]) == drawn(parts[1]) == drawn(take(mixture(sources), 12))
    for first, second in zip(*parts, strict=True):
        if int(first["source"]) == 2:
            assert not set(first["index"].tolist()) & set(second["index"].tolist())


def test_bad_samples_of_any_source_are_counted(sources, images, tmp_path):
    gone = Record(record_id="gone", image=ImageSource(str(tmp_path / "no.png")), caption="a dog")
    pairs = MixtureSource(
        name="pairs",
        records=[*images, gone],
        collator=sources[1].collator,
        transform=TRANSFORM,
    )
    log = SkipLog(tmp_path, num_samples=54, max_share=0.5)
    batches = take(mixture([sources[0], pairs], skip_log=log), 12)
    assert log.counts == {SkipKind.MISSING_FILE: 1}
    used = torch.cat([b["index"] for b in batches if b["source"] == 1])
    assert set(used.tolist()) == {0, 1, 2}


def test_a_failing_sample_is_named_with_its_source(sources):
    class Broken(Texts):
        def text_sample(self, record, rng):
            raise RuntimeError("no way")

    broken = MixtureSource(name="b", records=texts(2), collator=Broken(), transform=TRANSFORM)
    with pytest.raises(DataError, match="record t1 failed: RuntimeError: no way"):
        take(mixture([MixtureSource(name="b", records=texts(2)[1:], collator=Broken(),
                                    transform=TRANSFORM)]), 1)  # fmt: skip
    loader = mixture([sources[0], broken])
    assert loader.builder.name(4) == "record t4"
    assert loader.builder.name(6) == "record t1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratio": -1.0}, "ratio"),
        ({"ratio": float("nan")}, "ratio"),
        ({"local_batch_size": -2}, "local_batch_size"),
        ({"name": "pairs"}, "different names"),
        ({"records": []}, "no record"),
    ],
)
def test_what_cannot_be_is_refused(sources, change, message):
    settings = {
        "name": "x", "records": texts(2), "collator": Texts(), "transform": TRANSFORM
    }  # fmt: skip
    bad = MixtureSource(**settings | change)
    with pytest.raises((ConfigError, DataError), match=message):
        mixture([*sources[:2], bad])
    with pytest.raises(ConfigError, match="accumulate"):
        mixture(sources, accumulate=0)
    with pytest.raises(ConfigError, match="different names"):
        mixture([])
