"""A share of the images is held out: no image on both sides, whatever the order or the folder."""

from dataclasses import replace

import pytest

from triptych.core.errors import ConfigError, DataError
from triptych.data.held_out import count_shared, hold_out
from triptych.data.records import ImageSource, Record


def _image(number, root="/data/photos"):
    return ImageSource(f"{root}/{number}.jpg")


def _captions(count, each=3, root="/data/photos"):
    return [
        Record(record_id=f"{number}-{k}", image=_image(number, root), caption=f"caption {k}")
        for number in range(count)
        for k in range(each)
    ]


def _names(records):
    return {image.path for record in records for image in record.all_images()}


def test_no_image_is_on_both_sides_and_every_record_on_one():
    records = _captions(400)
    (found,) = hold_out([records], 0.1, "data")
    assert not _names(found.train) & _names(found.held_out)
    assert sorted(r.record_id for part in (found.train, found.held_out) for r in part) == sorted(
        record.record_id for record in records
    )
    assert (found.num_images, found.total_images) == (len(_names(found.held_out)), 400)
    assert 20 <= found.num_images <= 60  # binomial: 40 and four deviations of 6 or less


def test_neither_order_nor_other_images_nor_the_folder_matter():
    (first,) = hold_out([_captions(100)], 0.2, "data")
    (turned,) = hold_out([_captions(200, root="/else/photos")[::-1]], 0.2, "data")
    held = {path.rpartition("/")[2] for path in _names(first.held_out)}
    again = {path.rpartition("/")[2] for path in _names(turned.held_out)}
    assert held == {name for name in again if int(name.removesuffix(".jpg")) < 100}


def test_an_image_of_two_sources_is_on_one_side_in_both():
    one, two = hold_out([_captions(100), _captions(100, each=1)], 0.3, "data")
    assert _names(one.held_out) == _names(two.held_out)


def test_images_that_are_shown_together_stay_together():
    """A chain of pairs is one group: 0-1, 1-2, 2-3; another is 10-11."""
    pairs = [(0, 1), (1, 2), (2, 3), (10, 11)] + [(i, i + 1) for i in range(20, 200, 2)]
    records = [
        Record(record_id=str(i), images=tuple(map(_image, pair)), statement="s")
        for i, pair in enumerate(pairs)
    ]
    for share in (0.2, 0.5, 0.8):
        (found,) = hold_out([records], share, "data")
        assert not _names(found.train) & _names(found.held_out)
        sides = [record in list(found.held_out) for record in records[:3]]
        assert len(set(sides)) == 1
    (turned,) = hold_out([records[::-1]], 0.5, "data")
    (found,) = hold_out([records], 0.5, "data")
    assert _names(turned.held_out) == _names(found.held_out)


def test_shards_and_texts_and_clips():
    shards = [
        Record(
            record_id=str(i),
            image=ImageSource(f"/s/{i // 50:04d}.tar", i, 9, f"{i}.jpg"),
            caption="c",
        )
        for i in range(200)
    ]
    (found,) = hold_out([shards], 0.3, "data")
    assert 20 < len(found.held_out) < 100
    texts = [Record(record_id=str(i), text=f"Text  {i % 100}") for i in range(200)]
    (found,) = hold_out([texts], 0.3, "data")
    assert not {r.text for r in found.train} & {r.text for r in found.held_out}
    clips = [
        Record(record_id=str(i), video=f"/v/clips/{i // 5}.mp4", caption=f"c {i}")
        for i in range(200)
    ]
    (found,) = hold_out([clips], 0.3, "data")
    assert not {r.video for r in found.train} & {r.video for r in found.held_out}


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_out_of_range(share):
    with pytest.raises(ConfigError, match="val_share"):
        hold_out([_captions(10)], share, "data")


def test_too_few_images():
    alone = [replace(_captions(1)[0], caption="a")]
    with pytest.raises(DataError, match=r"val_share = 0.01 of the 1 images of my.jsonl"):
        hold_out([alone], 0.01, "my.jsonl")
    with pytest.raises(DataError, match="all images of a source"):
        hold_out([_captions(20), alone], 0.9999, "my.jsonl")


def test_images_on_both_sides_are_counted():
    records = _captions(6)
    assert count_shared(records[:9], records[9:]) == 0
    assert count_shared(records[:10], records[9:]) == 1  # another caption of image 3
    assert count_shared(records, records) == 6
