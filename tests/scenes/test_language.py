import random
import re

import pytest

from triptych.scenes.config import SceneConfig
from triptych.scenes.language import (
    caption_scene,
    caption_variants,
    class_label,
    describe,
    objects_named,
    refer_variants,
)
from triptych.scenes.world import generate_scene

from .oracle import matching, referred, things

CONFIG = SceneConfig()
SCENES = [generate_scene(CONFIG, "train", index) for index in range(200)]


@pytest.mark.parametrize("materials", [False, True])
@pytest.mark.parametrize("phrasing", range(4))
def test_captions_name_every_object_from_left_to_right(phrasing, materials):
    config = SceneConfig(materials=materials)
    for index in range(50):
        scene = generate_scene(config, "train", index)
        caption = caption_scene(scene, config, phrasing)
        words = re.findall(r"\w+", caption)
        ordered = sorted(things(scene), key=lambda o: o["x"])
        for slot in ("size", "color", "shape") + (("material",) if materials else ()):
            vocabulary = {o[slot] for o in ordered}
            assert [w for w in words if w in vocabulary] == [o[slot] for o in ordered]
        assert objects_named(caption) == [(o["size"], o["color"], o["shape"]) for o in ordered]


def test_a_caption_reads_as_designed():
    scene = SCENES[0]
    names = [f"a {o['size']} {o['color']} {o['shape']}" for o in things(scene)]
    assert len(names) == 4
    listed = f"{names[0]}, {names[1]}, {names[2]} and {names[3]}"
    said = {caption_scene(scene, CONFIG, phrasing) for phrasing in range(4)}
    starts = ("", "there is ", "a picture of ", "from left to right: ")
    assert said == {start + listed for start in starts}


def test_captions_of_one_image_differ():
    for scene in SCENES[:50]:
        captions = caption_variants(scene, CONFIG, 3, random.Random(scene.index))
        assert len(set(captions)) == 3


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("A small RED circle, and a large blue star.", ["small red circle", "large blue star"]),
        ("large striped green cross small plain black heart", ["large green cross"]),
        ("a red circle and a small circle", []),
        ("a small red circles", []),
        ("", []),
    ],
)
def test_objects_are_read_from_a_caption(caption, named):
    found = [" ".join(name) for name in objects_named(caption)]
    assert found[: len(named)] == named
    assert len(found) == (2 if "striped" in caption else len(named))


def test_phrases_fit_exactly_their_object():
    kinds = set()
    for scene in SCENES:
        objects = things(scene)
        for phrase in refer_variants(scene, 3, random.Random(scene.index)):
            fitting = referred(phrase.text, objects)
            assert fitting == [objects[phrase.target]], phrase.text
            kinds |= set(re.findall("left of|above|leftmost|highest|small|red|star", phrase.text))
    assert kinds == {"left of", "above", "leftmost", "highest", "small", "red", "star"}


def test_phrases_of_one_scene_differ():
    for scene in SCENES[:50]:
        texts = [p.text for p in refer_variants(scene, 3, random.Random(scene.index))]
        assert 1 <= len(texts) == len(set(texts)) <= 3


def test_a_description_avoids_what_it_must_not_say():
    none = 0
    for scene in SCENES[:100]:
        for item, thing in zip(scene.objects, things(scene)):
            said = describe(scene, item, random.Random(0), avoid=frozenset({"color"}))
            if said is None:
                rivals = matching(f"{item.size} {item.shape}", things(scene))
                assert len(rivals) > 1
                none += 1
                continue
            assert item.color not in said.split()
            assert matching(said, things(scene)) == [thing]
    assert none > 0


def test_a_class_is_named_by_color_and_shape():
    item = SCENES[0].objects[0]
    assert class_label(item) == f"{item.color}_{item.shape}"
