import multiprocessing
import os
import signal
import subprocess
import threading
import warnings
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from triptych.core.errors import ConfigError, DataError
from triptych.data.batches import ImageCache, record_texts
from triptych.data.collate import (
    CaptioningCollator,
    GroundingCollator,
    PretrainingCollator,
    PretrainingTextConfig,
    StatementCollator,
    VQACollator,
)
from triptych.data.records import ImageSource, Record
from triptych.data.skips import SkipKind, SkipLog
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig, normalise_batch
from triptych.text import Tokenizer

WORDS = [
    "a",
    "red",
    "blue",
    "dog",
    "cat",
    "sits",
    "on",
    "near",
    "the",
    "big",
    "small",
    "mat",
    "left",
]


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> list[Record]:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    found = []
    for i in range(10):
        path = folder / f"{i}.png"
        pixels = rng.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        text = " ".join(rng.choice(WORDS, size=6))
        found.append(Record(record_id=f"r{i}", image=ImageSource(str(path)), caption=text))
    return found


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(WORDS, vocab_size=200)


@pytest.fixture(scope="module")
def bad(records, tmp_path_factory) -> list[Record]:
    """The same records; images 2 and 5 are broken and caption 7 is empty."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.png").write_text("no image")
    found = list(records)
    found[2] = Record(record_id="r2", image=ImageSource(str(folder / "no.png")), caption="a dog")
    found[5] = Record(record_id="r5", image=ImageSource(str(folder / "text.png")), caption="a cat")
    found[7] = Record(record_id="r7", image=records[7].image, caption="!!")
    return found


def loader(records, tokenizer, *, train=True, size=4, seed=0, augment=None, **settings):
    config = ImageTransformConfig(image_size=16)
    transform = ImageTransform(config, train=train if augment is None else augment)
    collator = settings.pop("collator", None) or PretrainingCollator(tokenizer)
    return build_loader(
        records, collator, transform, seed=seed, local_batch_size=size, train=train, **settings
    )


def take(source, num):
    iterator = iter(source)
    found = [next(iterator) for _ in range(num)]
    iterator.close()
    return found


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert set(a) == set(b)
        for key in a:
            assert torch.equal(a[key], b[key]), key


def no_child_is_left():
    return not multiprocessing.active_children()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing(records, tokenizer, num_workers):
    alone = take(loader(records, tokenizer), 6)
    assert_same(alone, take(loader(records, tokenizer, num_workers=num_workers), 6))
    assert no_child_is_left()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_main_random_state_is_not_touched(records, tokenizer, num_workers):
    torch.manual_seed(5)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    take(loader(records, tokenizer, num_workers=num_workers), 2)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002


@pytest.mark.parametrize("num_workers", [0, 2])
def test_starting_at_a_step_equals_never_stopping(records, tokenizer, num_workers):
    whole = take(loader(records, tokenizer), 8)
    rest = take(loader(records, tokenizer, start_step=5, num_workers=num_workers), 3)
    assert_same(whole[5:], rest)


@pytest.mark.parametrize("world_size", [2, 4])
def test_one_sample_decides_on_empty_prefixes_for_all_processes(bad, tokenizer, world_size):
    config = PretrainingTextConfig(empty_prefix_probability=0.5)
    collator = PretrainingCollator(tokenizer, config)
    settings = {"collator": collator, "num_workers": 0}
    whole = take(loader(bad, tokenizer, size=4, **settings), 12)
    size = 4 // world_size
    ranks = [
        take(loader(bad, tokenizer, size=size, rank=r, world_size=world_size, **settings), 12)
        for r in range(world_size)
    ]
    lengths = [batch["prefix_mask"].sum(1).tolist() for batch in whole]
    split = [[batch["prefix_mask"].sum(1).tolist() for batch in own] for own in ranks]
    assert [list(chain(*parts)) for parts in zip(*split, strict=True)] == lengths
    assert 0 < sum(max(own) == 1 for own in lengths) < 12  # both kinds of batches occur


def test_the_cache_changes_nothing(records, tokenizer):
    plain = take(loader(records, tokenizer), 6)
    assert_same(plain, take(loader(records, tokenizer, cache_mib=1), 6))


def test_seed_and_epoch_change_the_augmentation(records, tokenizer):
    one = records[:1]
    first, second = take(loader(one, tokenizer, size=1), 2)
    (other,) = take(loader(one, tokenizer, size=1, seed=1), 1)
    assert not torch.equal(first["image"], second["image"])
    assert not torch.equal(first["image"], other["image"])


@pytest.mark.parametrize("num_records", [1, 3])
def test_a_dataset_smaller_than_a_batch_wraps(records, tokenizer, num_records):
    batches = take(loader(records[:num_records], tokenizer, size=7), 3)
    indices = torch.cat([batch["index"] for batch in batches]).tolist()
    for start in range(0, 21 - num_records + 1, num_records):
        assert sorted(indices[start : start + num_records]) == list(range(num_records))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_gives_every_record_once(records, tokenizer, num_workers):
    source = loader(records, tokenizer, train=False, num_workers=num_workers)
    for _ in range(2):  # a loader can be read again
        batches = list(source)
        assert [len(batch["image"]) for batch in batches] == [4, 4, 2]
        assert torch.cat([b["index"] for b in batches]).tolist() == list(range(10))
    assert source.num_batches == 3
    assert no_child_is_left()


def test_evaluation_images_are_resized_and_normalised(records, tokenizer):
    (batch, *_) = list(loader(records, tokenizer, train=False))
    expected = []
    for record in records[:4]:
        with Image.open(record.image.path) as image:
            expected.append(np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)))
    assert torch.equal(batch["image"], normalise_batch(expected))


class Lengths:
    """Texts alone: each sample is the number of words, and a draw of the sample's generator."""

    needs_boxes = False

    def text_sample(self, record, rng):
        return len(record.text.split()), int(rng.integers(1 << 30))

    def batch(self, samples):
        return {"num_words": torch.tensor(samples)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_texts_need_no_image(tokenizer, num_workers):
    records = [Record(record_id=str(i), text="a " * (i + 1)) for i in range(5)]
    batches = take(loader(records, tokenizer, collator=Lengths(), num_workers=num_workers), 3)
    assert set(batches[0]) == {"num_words", "index"}
    for batch in batches:
        assert batch["num_words"][:, 0].tolist() == (batch["index"] + 1).tolist()
    draws = torch.cat([batch["num_words"][:, 1] for batch in batches])
    assert len(draws.unique()) == 12  # each sample of each epoch has its own


@pytest.mark.parametrize("num_workers", [0, 1])
def test_pairs_have_two_images_in_the_order_of_the_record(records, tokenizer, num_workers):
    images = [record.image for record in records[:4]]
    pairs = [
        Record(record_id="a", images=(images[0], images[1]), statement="a dog", label=True),
        Record(record_id="b", images=(images[3], images[2]), statement="on the left", label=False),
    ]
    (batch,) = loader(
        pairs,
        tokenizer,
        train=False,
        collator=StatementCollator(tokenizer),
        num_workers=num_workers,
    )
    assert batch["image"].shape == (2, 2, 3, 16, 16)
    (plain,) = loader(records[:4], tokenizer, train=False)
    expected = plain["image"][torch.tensor([[0, 1], [3, 2]])]
    assert torch.equal(batch["image"], expected)
    swapping = StatementCollator(tokenizer, swap_probability=1.0)
    (batch, *_) = take(loader(pairs[1:], tokenizer, size=1, augment=False, collator=swapping), 1)
    assert torch.equal(batch["image"][0], expected[1].flip(0))
    right = tokenizer.encode(["on the right"], max_tokens=9)
    assert batch["token_ids"].tolist() == right


def test_pairs_with_a_bad_image_are_replaced_and_named(records, bad, tokenizer):
    good, broken = records[0].image, bad[5].image
    pairs = [
        Record(record_id="a", images=(good, good), statement="a dog", label=True),
        Record(record_id="b", images=(good, broken), statement="a dog", label=True),
    ]
    log = SkipLog(None, num_samples=2, max_share=1.0)
    collator = StatementCollator(tokenizer)
    (batch,) = take(loader(pairs, tokenizer, size=2, collator=collator, skip_log=log), 1)
    assert torch.equal(batch["index"], torch.tensor([0, 0]))
    assert log.counts == {SkipKind.NOT_AN_IMAGE: 1}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_leaves_out_what_is_bad(bad, tokenizer, num_workers, tmp_path):
    log = SkipLog(tmp_path, num_samples=10, max_share=0.5)
    source = loader(bad, tokenizer, train=False, num_workers=num_workers, skip_log=log)
    batches = list(source)
    assert torch.cat([b["index"] for b in batches]).tolist() == [0, 1, 3, 4, 6, 8, 9]
    assert (log.num_bad, log.num_ok) == (3, 7)
    assert log.counts == {
        SkipKind.MISSING_FILE: 1, SkipKind.NOT_AN_IMAGE: 1, SkipKind.EMPTY_CAPTION: 1
    }  # fmt: skip
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 3


def test_a_batch_without_a_usable_record_is_left_out(bad, tokenizer):
    only = [bad[2], bad[0], bad[5]]
    batches = list(loader(only, tokenizer, train=False, size=1))
    assert [b["index"].tolist() for b in batches] == [[1]]


def test_training_replaces_what_is_bad(bad, tokenizer, tmp_path):
    log = SkipLog(tmp_path, num_samples=10, max_share=0.5)
    batches = take(loader(bad, tokenizer, skip_log=log), 10)
    indices = torch.cat([batch["index"] for batch in batches])
    assert len(indices) == 40 and not set(indices.tolist()) & {2, 5, 7}
    assert log.num_bad == 3
    for num_workers in (1, 2):
        assert_same(batches, take(loader(bad, tokenizer, num_workers=num_workers), 10))
    assert_same(batches[6:], take(loader(bad, tokenizer, start_step=6), 4))
    # good places are what they are without bad ones
    good = SampleIndices(loader(bad, tokenizer).order, 10)
    kept = [i for i, index in enumerate(good) if index not in {2, 5, 7}]
    assert [indices[i].item() for i in kept] == [good[i] for i in kept]


@pytest.mark.parametrize("seed", range(4))
def test_what_replaces_a_bad_sample_does_not_depend_on_what_was_met_before(
    records, tokenizer, seed
):
    wordless = [replace(r, caption="!!") if i in (1, 4, 6) else r for i, r in enumerate(records)]
    whole = take(loader(wordless, tokenizer, seed=seed), 12)
    for start in range(1, 12):
        rest = take(loader(wordless, tokenizer, seed=seed, start_step=start), 12 - start)
        assert_same(whole[start:], rest)
    assert_same(whole, take(loader(wordless, tokenizer, seed=seed, num_workers=2), 12))


class SampleIndices(list):
    def __init__(self, order, num_steps):
        super().__init__(i for step in range(num_steps) for _, i in order.batch(step))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_bad_records_stop_the_run(bad, tokenizer, num_workers):
    log = SkipLog(None, num_samples=10, max_share=0.1)
    with pytest.raises(DataError, match=r"At most 10\.00% is allowed"):
        list(loader(bad, tokenizer, train=False, num_workers=num_workers, skip_log=log))
    assert no_child_is_left()


def test_training_on_nothing_usable_stops(bad, tokenizer):
    with pytest.raises(DataError, match=r"record r2 .*no\.png.* cannot be used.*data check"):
        next(iter(loader([bad[2]], tokenizer)))


class FailingCollator(CaptioningCollator):
    def sample(self, record, image, rng):
        if record.record_id == "r3":
            raise KeyError("boom")
        return super().sample(record, image, rng)


class DyingCollator(CaptioningCollator):
    def sample(self, record, image, rng):
        if record.record_id == "r3" and get_worker_info().id == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().sample(record, image, rng)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_exception_names_the_record(records, tokenizer, num_workers):
    source = loader(
        records, tokenizer, collator=FailingCollator(tokenizer), num_workers=num_workers
    )
    with pytest.raises(DataError, match=r"record r3 \(.*3\.png\) failed: KeyError: 'boom'"):
        take(source, 8)
    assert no_child_is_left()


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_dead_worker_names_the_record(records, tokenizer, num_workers):
    source = loader(records, tokenizer, collator=DyingCollator(tokenizer), num_workers=num_workers)
    with pytest.raises(DataError, match=r"worker died.*at record r3 \(.*3\.png\)") as caught:
        take(source, 8)
    assert caught.tb is not None  # its frames hold the iterator
    assert no_child_is_left()


def test_a_death_is_not_raised_in_training_code(records, tokenizer):
    before = signal.getsignal(signal.SIGCHLD)
    iterator = iter(loader(records, tokenizer, num_workers=1))
    next(iterator)
    assert signal.getsignal(signal.SIGCHLD) is before
    (worker,) = multiprocessing.active_children()
    worker.kill()
    worker.join()  # the signal of its death arrives here at the latest
    iterator.close()
    assert no_child_is_left()


def test_dropping_the_iterator_ends_the_workers(records, tokenizer):
    iterator = iter(loader(records, tokenizer, num_workers=2))
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    del iterator
    assert no_child_is_left()


def test_workers_ignore_ctrl_c(records, tokenizer):
    iterator = iter(loader(records, tokenizer, num_workers=1))
    next(iterator)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGINT)
    for _ in range(6):
        next(iterator)
    assert worker.is_alive()
    iterator.close()
    assert no_child_is_left()


def test_workers_do_not_inherit_the_handler_of_sigterm(records, tokenizer):
    previous = signal.signal(signal.SIGTERM, lambda *_: os._exit(3))  # as a trainer's would save
    try:
        iterator = iter(loader(records, tokenizer, num_workers=1))
        next(iterator)
        (worker,) = multiprocessing.active_children()
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)  # as torchrun sends to all
        for _ in range(6):
            next(iterator)
        worker.terminate()
        worker.join()
        assert worker.exitcode == -signal.SIGTERM
        iterator.close()
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_more_workers_than_cores_and_threads_give_no_warning(records, tokenizer):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        take(loader(records, tokenizer, num_workers=5, prefetch=1), 1)
    assert [str(w.message) for w in caught] == []


def test_two_ranks_make_the_batch_of_one(records, tokenizer):
    (whole,) = take(loader(records, tokenizer, size=6), 1)
    halves = [
        take(loader(records, tokenizer, size=3, rank=rank, world_size=2), 1)[0] for rank in range(2)
    ]
    for key in ("image", "index", "caption_key"):
        assert torch.equal(torch.cat([half[key] for half in halves]), whole[key])


@pytest.mark.parametrize("text", ["the dog on the left", "a dog"])
def test_side_words_forbid_the_flip(tmp_path, tokenizer, text):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    record = Record(record_id="1", image=ImageSource(str(tmp_path / "a.png")), caption=text)
    config = ImageTransformConfig(
        image_size=16, crop_scale=None, flip_probability=1.0, randaugment_num_ops=0
    )
    batch = next(iter(build_loader(
        [record], PretrainingCollator(tokenizer), ImageTransform(config, train=True),
        seed=0, local_batch_size=1, train=True,
    )))  # fmt: skip
    expected = pixels if "left" in text else pixels[:, ::-1]
    assert torch.equal(batch["image"], normalise_batch([expected]))


def test_every_text_of_a_record_is_read_for_sides():
    fields = ["caption", "question", "phrase", "statement", "premise", "hypothesis", "text"]
    for field in fields:
        assert record_texts(Record(record_id="1", **{field: "left"})) == ["left"]
    assert record_texts(Record(record_id="1", answers=("right", "no"))) == ["right", "no"]


def test_a_record_without_an_image_is_left_out(tokenizer, records):
    log = SkipLog(None, num_samples=2, max_share=1.0)
    source = loader([Record(record_id="x", caption="a dog"), records[0]], tokenizer, train=False,
                    skip_log=log)  # fmt: skip
    assert [b["index"].tolist() for b in source] == [[1]]
    assert log.counts == {SkipKind.MISSING_FIELD: 1}


def test_questions_without_answers_can_be_evaluated(records, tokenizer):
    asked = [Record(record_id="q", image=records[0].image, question="a dog?")]
    (batch,) = list(loader(asked, tokenizer, train=False, size=2,
                           collator=VQACollator(tokenizer, train=False)))  # fmt: skip
    assert set(batch) == {"image", "index", "token_ids", "text_mask"}


def test_boxes_need_a_transform_that_keeps_them(records, tokenizer):
    with pytest.raises(ConfigError, match="crop_scale"):
        loader(records, tokenizer, collator=GroundingCollator(tokenizer))


@pytest.mark.parametrize(
    ("field", "value"), [("num_workers", -1), ("size", 0), ("start_step", -1), ("cache_mib", -1)]
)
def test_numbers_out_of_range_name_the_field(records, tokenizer, field, value):
    name = {"size": "local_batch_size"}.get(field, field)
    with pytest.raises(ConfigError, match=name):
        loader(records, tokenizer, **{field: value})


def test_no_record_is_an_error(tokenizer):
    with pytest.raises(DataError, match="no record"):
        loader([], tokenizer)


def test_the_cache_is_bounded(records, tmp_path):
    shape = np.asarray(Image.open(records[0].image.path)).shape
    path = tmp_path / "a.png"
    Image.fromarray(np.full(shape, 7, dtype=np.uint8)).save(path)
    first, second = ImageSource(str(path)), records[0].image
    cache = ImageCache(max_bytes=int(np.prod(shape)) + 10)  # room for one
    images = [cache(first), cache(second)]
    assert cache(first) is images[0] and cache(second) is not images[1]
    np.testing.assert_array_equal(cache(second), images[1])


class WaitingCollator(CaptioningCollator):
    """Waits for ever in a worker, deaf to SIGTERM, as one does for a disk that never answers."""

    def sample(self, record, image, rng):
        if get_worker_info() is not None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            while True:
                signal.pause()
        return super().sample(record, image, rng)


def test_ctrl_c_ends_workers_that_wait_for_ever(records, tokenizer):
    source = loader(records, tokenizer, collator=WaitingCollator(tokenizer), num_workers=2)
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist ignores it
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(iter(source))
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert no_child_is_left()
