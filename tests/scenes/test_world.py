from itertools import combinations, pairwise

import pytest

from triptych.core.errors import ConfigError
from triptych.scenes.config import SPLITS, SceneConfig, held_out_pairs
from triptych.scenes.world import generate_scene

CONFIG = SceneConfig()


def scenes(split, count=300, config=CONFIG):
    return [generate_scene(config, split, index) for index in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_held_out_pairs_show_only_in_every_compositional_scene(split):
    hidden = set(held_out_pairs(CONFIG))
    shown = [any(item.pair in hidden for item in scene.objects) for scene in scenes(split)]
    assert all(shown) if split == "compositional" else not any(shown)


def test_objects_stand_apart_inside_and_in_order():
    for scene in scenes("train"):
        boxes = [item.box(64) for item in scene.objects]
        for x, y, width, height in boxes:
            assert x >= 0 and y >= 0 and x + width <= 64 and y + height <= 64
        for (ax, ay, aw, ah), (bx, by, bw, bh) in combinations(boxes, 2):
            assert ax + aw < bx or bx + bw < ax or ay + ah < by or by + bh < ay
        centers = [x + width / 2 for x, _, width, _ in boxes]
        assert all(b - a > 5 for a, b in pairwise(centers))


def test_no_two_objects_of_a_scene_are_of_one_kind():
    for scene in scenes("train") + scenes("compositional"):
        assert len({item.kind for item in scene.objects}) == len(scene.objects)


def test_sizes_are_far_apart():
    diameters = {"small": [], "large": []}
    for scene in scenes("train"):
        for item in scene.objects:
            diameters[item.size].append(128 * item.radius)
    assert min(diameters["small"]) >= 12 and max(diameters["small"]) <= 14
    assert min(diameters["large"]) >= 20 and max(diameters["large"]) <= 24


def test_scenes_depend_on_seed_split_index_and_series_only():
    scene = generate_scene(CONFIG, "train", 7)
    assert generate_scene(SceneConfig(), "train", 7) == scene
    others = [
        generate_scene(SceneConfig(seed=1), "train", 7),
        generate_scene(CONFIG, "val", 7),
        generate_scene(CONFIG, "train", 8),
        generate_scene(CONFIG, "train", 7, series="text"),
    ]
    assert all(other.objects != scene.objects for other in others)


def test_the_numbers_of_objects_follow_their_weights():
    counts = [len(scene.objects) for scene in scenes("train", 1000)]
    shares = [counts.count(number) / 1000 for number in (1, 2, 3, 4)]
    assert shares == pytest.approx([0.1, 0.3, 0.3, 0.3], abs=0.05)  # 3 standard errors


def test_equal_captions_are_rare():
    names = [tuple(item.kind for item in scene.objects) for scene in scenes("test", 500)]
    assert len(set(names)) >= 480


def test_materials_are_mixed_only_when_asked_for():
    def seen(config):
        return {item.material for scene in scenes("train", 50, config) for item in scene.objects}

    assert seen(CONFIG) == {"plain"}
    assert seen(SceneConfig(materials=True)) == {"plain", "striped"}


def test_a_box_is_scaled_with_the_image():
    item = generate_scene(CONFIG, "train", 3).objects[0]
    assert item.box(256) == pytest.approx([4 * value for value in item.box(64)], abs=0.03)


def test_a_number_of_objects_can_be_fixed():
    assert len(generate_scene(CONFIG, "val", 0, num_objects=1).objects) == 1


def test_objects_too_large_to_place_are_an_error():
    config = SceneConfig(large_diameter=(0.7, 0.75), object_count_weights=(0, 0, 0, 1))
    with pytest.raises(ConfigError, match="cannot place 4 objects apart"):
        for index in range(8):
            generate_scene(config, "train", index)


def test_a_compositional_split_needs_held_out_pairs():
    with pytest.raises(ConfigError, match="num_held_out_pairs = 0"):
        generate_scene(SceneConfig(num_held_out_pairs=0), "compositional", 0)


def test_the_truth_as_json_values_holds_the_boxes():
    scene = generate_scene(CONFIG, "train", 3)
    plain = scene.as_dict(64)
    assert plain["split"] == "train" and plain["index"] == 3
    assert [entry["box"] for entry in plain["objects"]] == [o.box(64) for o in scene.objects]
    assert [entry["color"] for entry in plain["objects"]] == [o.color for o in scene.objects]
