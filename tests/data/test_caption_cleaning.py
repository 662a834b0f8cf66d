import pytest

from triptych.data.caption_cleaning import clean_caption, mentions_side, swap_sides


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        # worked by hand from the rules of the released `pre_caption`
        ("A man's t-shirt, 50% off!", "a mans t shirt 50% off"),
        ("<PERSON> and/or  his  dog ...", "person and or his dog"),
        ('"Hello" (world) *#:;~? ok', "hello world ok"),
        ("  spaces\tand\nlines ", "spaces and lines"),
        ("?!", ""),
        ("Äpfel_und Öl", "äpfel_und öl"),
    ],
)
def test_clean_caption(caption, expected):
    assert clean_caption(caption) == expected


def test_clean_caption_keeps_the_first_words():
    words = [f"w{i}" for i in range(40)]
    assert clean_caption(" ".join(words)) == " ".join(words[:30])
    assert clean_caption("a b-c d", max_words=2) == "a b"


@pytest.mark.parametrize(
    "text",
    ["left of it", "on the RIGHT.", "left/right", "the right-hand dog", "leftmost cup", "(left)",
     "the righthand side"],
)  # fmt: skip
def test_side_words_are_found(text):
    assert mentions_side(text)


@pytest.mark.parametrize("text", ["bright lights", "leftover cake", "a copyright sign", "", "up"])
def test_other_words_are_no_sides(text):
    assert not mentions_side(text)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("the left picture has a star", "the right picture has a star"),
        ("Left of it, the rightmost one.", "Right of it, the leftmost one."),
        ("a left-hand glove and a bright light", "a right-hand glove and a bright light"),
        ("both pictures", "both pictures"),
    ],
)
def test_sides_change_places(text, other):
    assert swap_sides(text) == other
    assert swap_sides(other) == text
