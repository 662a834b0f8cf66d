import pytest

from triptych.core.errors import ConfigError
from triptych.scenes.config import SceneConfig, held_out_pairs, pairs_of_split


def test_the_world_is_as_large_as_promised():
    config = SceneConfig()
    assert len(config.colors) >= 8
    assert len(config.shapes) >= 6
    assert len(config.object_count_weights) == 4


def test_pairs_of_train_and_held_out_pairs_partition_the_table():
    config = SceneConfig()
    table = {(c, s) for c in config.colors for s in config.shapes}
    train, hidden = set(pairs_of_split(config, "train")), set(held_out_pairs(config))
    assert train | hidden == table
    assert not train & hidden
    assert len(hidden) == 8
    assert set(pairs_of_split(config, "compositional")) == table


def test_every_color_and_shape_stays_common_in_training():
    train = pairs_of_split(SceneConfig(), "train")
    assert min(sum(color == c for c, _ in train) for color in SceneConfig().colors) == 5
    assert min(sum(shape == s for _, s in train) for shape in SceneConfig().shapes) >= 6


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_size": 8}, "image_size = 8"),
        ({"object_count_weights": ()}, "object_count_weights"),
        ({"object_count_weights": (0.0, 0.0)}, "object_count_weights"),
        ({"colors": ("red",)}, "colors"),
        ({"colors": ("red", "pink")}, "colors"),
        ({"shapes": ("circle", "circle")}, "shapes"),
        ({"small_diameter": (0.3, 0.2)}, "small_diameter"),
        ({"small_diameter": (0.2, 0.33)}, "small_diameter"),
        ({"num_held_out_pairs": 25}, "num_held_out_pairs = 25"),
        ({"repeat_probability": 1.0}, "repeat_probability = 1.0"),
        ({"noise": -1.0}, "noise = -1.0"),
        ({"color_jitter": 31}, "color_jitter = 31"),
        (
            {"colors": ("red", "blue"), "shapes": ("star", "cross"), "num_held_out_pairs": 2}
            | {"object_count_weights": (1.0,) * 5},
            "allow at most 4 objects",
        ),
    ],
)
def test_a_wrong_value_is_named(change, named):
    with pytest.raises(ConfigError, match=named):
        SceneConfig(**change)


def test_an_unknown_split_is_named():
    with pytest.raises(ConfigError, match="dev"):
        pairs_of_split(SceneConfig(), "dev")
