import random
import re
import sys

import av
import numpy as np
import pytest

from triptych.core.errors import CapabilityError, DataError
from triptych.scenes.clips import (
    MOTION_TYPES,
    ask_about_clip,
    ask_about_looks,
    caption_clip,
    generate_clip,
    render_clip,
    write_mp4,
)
from triptych.scenes.config import PALETTE, SceneConfig, held_out_pairs

from .oracle import answer, only, things

CONFIG = SceneConfig()
CLIPS = [generate_clip(CONFIG, "train", index) for index in range(60)]


def motion_seen(clip, number):
    """Which way the middle of an object goes between the first and the last frame."""
    first, last = things(clip.at(0.0))[number], things(clip.at(1.0))[number]
    dx, dy = last["x"] - first["x"], last["y"] - first["y"]
    if abs(dx) < 1e-9 and abs(dy) < 1e-9:
        return "nowhere"
    assert abs(dx) < 1e-9 or abs(dy) < 1e-9
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def test_objects_are_painted_where_they_move():
    for clip in CLIPS[:20]:
        frames = render_clip(clip, 64, num_frames=8)
        assert frames.shape == (8, 64, 64, 3) and frames.dtype == np.uint8
        for number, frame in enumerate(frames):
            for item in clip.at(number / 7).objects:
                x, y, width, height = item.box(64)
                assert min(x, y) >= 0 and max(x + width, y + height) <= 64
                color = frame[int(y + height / 2), int(x + width / 2)].astype(int)
                gaps = {name: np.abs(color - rgb).sum() for name, rgb in PALETTE.items()}
                assert min(gaps, key=gaps.__getitem__) == item.color


def test_something_moves_in_every_clip_and_far_enough_to_be_seen():
    for clip in CLIPS:
        assert any(motion != "nowhere" for motion in clip.motions)
        assert all(d >= 0.3 for d, m in zip(clip.distances, clip.motions) if m != "nowhere")


def test_captions_tell_every_motion():
    for clip in CLIPS:
        caption = caption_clip(clip, CONFIG, 1)
        found = re.findall(r"a (\w+ \w+ \w+) (moves \w+|stands still)", caption)
        assert len(found) == len(clip.scene.objects)
        for number, (name, verb) in enumerate(found):
            thing = things(clip.scene)[number]
            assert only(name, things(clip.scene)) == thing
            motion = motion_seen(clip, number)
            assert verb == ("stands still" if motion == "nowhere" else f"moves {motion}")


def test_answers_follow_from_the_motion():
    types = set()
    for clip in CLIPS:
        objects = things(clip.scene)
        seen = [motion_seen(clip, number) for number in range(len(objects))]
        for attempt in range(12):
            question = ask_about_clip(clip, random.Random(f"{clip.scene.index}{attempt}"))
            if not question:
                continue
            types.add(question.question_type)
            assert question.answer == _answer(question.text, objects, seen), question.text
    assert types == set(MOTION_TYPES)


def test_answers_about_looks_hold_in_every_frame():
    types = set()
    for clip in CLIPS:
        for attempt in range(12):
            rng = random.Random(f"{clip.scene.index}{attempt}")
            question = ask_about_looks(clip, CONFIG, rng)
            if question:
                types.add(question.question_type)
                for time in (0, 0.5, 1):
                    assert answer(question.text, things(clip.at(time))) == question.answer
    assert types == {"yes_no", "count", "color", "shape"}


def _answer(text, objects, seen):
    if text == "how many objects move?":
        return str(sum(motion != "nowhere" for motion in seen))
    if m := re.fullmatch(r"which way does (the .*) move\?", text):
        return seen[objects.index(only(m[1], objects))]
    if m := re.fullmatch(r"does (the .*) move (\w+)\?", text):
        return "yes" if seen[objects.index(only(m[1], objects))] == m[2] else "no"
    m = re.fullmatch(r"what color is the object that moves (\w+)\?", text)
    (number,) = [number for number, motion in enumerate(seen) if motion == m[1]]
    return objects[number]["color"]


def test_clips_of_training_hide_the_held_out_pairs():
    hidden = set(held_out_pairs(CONFIG))
    assert not [o for clip in CLIPS for o in clip.scene.objects if o.pair in hidden]
    for index in range(20):
        objects = generate_clip(CONFIG, "compositional", index).scene.objects
        assert any(item.pair in hidden for item in objects)


def test_clips_are_repeatable():
    assert generate_clip(CONFIG, "train", 5) == CLIPS[5]
    first, second = render_clip(CLIPS[5], 64, noise=4.0), render_clip(CLIPS[5], 64, noise=4.0)
    np.testing.assert_array_equal(first, second)


def test_a_written_clip_reads_back_alike(tmp_path):
    frames = render_clip(CLIPS[0], 64)
    write_mp4(tmp_path / "a.mp4", frames)
    with av.open(str(tmp_path / "a.mp4")) as container:
        read = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(read) == 8
    assert np.abs(np.stack(read).astype(float) - frames).mean() < 6  # lossy, halved colour


def test_an_odd_side_is_an_error(tmp_path):
    with pytest.raises(DataError, match="even sides, got 63 x 63"):
        write_mp4(tmp_path / "a.mp4", render_clip(CLIPS[0], 63))


def test_without_pyav_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(CapabilityError, match=r"triptych\[video\]"):
        write_mp4(tmp_path / "a.mp4", render_clip(CLIPS[0], 64))
