import pytest

from triptych.scenes.language import compute_caption_objects, count_objects_named

RED_CIRCLE, BLUE_STAR = ("small", "red", "circle"), ("large", "blue", "star")


@pytest.mark.parametrize(
    ("caption", "share"),
    [
        ("a small red circle and a large blue star", 1.0),
        ("a large blue star and a small red circle", 1.0),  # the order does not count
        ("there is a large red circle, a large blue star", 0.5),  # the size is wrong
        ("a small red circle and a small red circle", 0.5),  # named twice counts once
        ("a picture", 0.0),
    ],
)
def test_share_of_objects_named(caption, share):
    assert compute_caption_objects([caption], [[RED_CIRCLE, BLUE_STAR]]) == [share]


def test_a_repeated_object_must_be_named_as_often():
    caption = "a small red circle"
    assert count_objects_named(caption, [RED_CIRCLE, RED_CIRCLE]) == 1
    assert count_objects_named(f"{caption} and {caption}", [RED_CIRCLE, RED_CIRCLE]) == 2


def test_captions_and_scenes_must_be_as_many():
    with pytest.raises(ValueError, match="shorter"):
        compute_caption_objects(["a", "b"], [[RED_CIRCLE]])
