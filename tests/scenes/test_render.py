from dataclasses import replace

import numpy as np
import pytest

from triptych.scenes.config import PALETTE, SceneConfig
from triptych.scenes.render import render_scene
from triptych.scenes.world import BACKGROUNDS, generate_scene

SCENES = [generate_scene(SceneConfig(), "train", index) for index in range(60)]


@pytest.mark.parametrize("size", [64, 97, 224])
def test_boxes_enclose_exactly_the_pixels_of_each_object(size):
    for scene in SCENES[:20]:
        empty = render_scene(replace(scene, objects=()), size).astype(int)
        for item in scene.objects:
            alone = render_scene(replace(scene, objects=(item,)), size)
            changed = np.abs(alone - empty).max(axis=2) > 12
            rows, columns = np.nonzero(changed)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            x, y, width, height = item.box(size)
            assert found == pytest.approx([x, y, x + width, y + height], abs=1.1)


def test_the_middle_of_each_box_has_the_color_that_the_scene_says():
    for scene in SCENES:
        image = render_scene(scene, 64, noise=4.0).astype(float)
        for item in scene.objects:
            x, y, width, height = item.box(64)
            row, column = int(y + height / 2), int(x + width / 2)
            mean = image[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))
            gaps = {name: np.abs(mean - rgb).sum() for name, rgb in PALETTE.items()}
            assert min(gaps, key=gaps.__getitem__) == item.color


def test_no_background_comes_near_the_color_of_an_object():
    palette = np.array(list(PALETTE.values()))
    for scene in SCENES:
        background = render_scene(replace(scene, objects=()), 64, noise=0.0).astype(int)
        assert background.min() >= 140 and background.max() <= 240
        assert np.ptp(background, axis=2).max() <= 45
        gaps = np.abs(background[:, :, None] - palette).max(axis=3)
        assert gaps.min() > 60


def test_every_kind_of_background_differs():
    scene = SCENES[0]
    images = [render_scene(replace(scene, objects=(), background=kind), 64) for kind in BACKGROUNDS]
    spreads = [np.ptp(image[:, :, 0]) for image in images]
    assert spreads[0] == 0
    assert min(spreads[1:]) >= 4
    assert len({image.tobytes() for image in images}) == len(BACKGROUNDS)


def test_shapes_have_the_areas_of_their_figures():
    """Areas in units of the radius squared, by school geometry."""
    expected = {"circle": np.pi, "square": 1.76**2, "cross": 2 * 2 * 0.66 - 0.66**2}
    expected |= {"triangle": 2.1 * 1.9 / 2, "star": 5 * 1.12 * 0.47 * np.sin(np.pi / 5)}
    base = generate_scene(SceneConfig(), "train", 0).objects[0]
    scene = replace(SCENES[0], background="even")
    empty = render_scene(replace(scene, objects=()), 128).astype(float)
    for shape, area in expected.items():
        item = replace(base, shape=shape, x=0.5, y=0.5, radius=0.3, rgb=(0, 0, 0))
        image = render_scene(replace(scene, objects=(item,)), 128).astype(float)
        covered = (1 - image[:, :, 0] / empty[:, :, 0]).sum() / (0.3 * 128) ** 2
        assert covered == pytest.approx(area, rel=0.03), shape


def test_edges_are_antialiased():
    base = SCENES[0].objects[0]
    item = replace(base, shape="circle", x=0.5, y=0.5, radius=0.3, rgb=(0, 0, 0))
    scene = replace(SCENES[0], objects=(item,), background="even")
    levels = np.unique(render_scene(scene, 64)[:, :, 0])
    assert len(levels) >= 10


def test_a_larger_image_shows_the_same_scene():
    for scene in SCENES[:5]:
        small = render_scene(replace(scene, background="even"), 64).astype(float)
        large = render_scene(replace(scene, background="even"), 256).astype(float)
        averaged = large.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
        assert np.abs(averaged - small).mean() < 0.6
        assert np.abs(averaged - small).max() < 40


def test_noise_is_as_strong_as_asked_and_repeatable():
    scene = replace(SCENES[0], objects=(), background="even")
    clean, noisy = render_scene(scene, 64), render_scene(scene, 64, noise=4.0)
    difference = noisy.astype(float) - clean
    assert difference.std() == pytest.approx(4.0, rel=0.05)
    np.testing.assert_array_equal(noisy, render_scene(scene, 64, noise=4.0))


def test_stripes_are_half_pale():
    base = SCENES[0].objects[0]
    item = replace(base, shape="square", material="striped", x=0.5, y=0.5, radius=0.3)
    item = replace(item, rgb=(0, 0, 0))
    image = render_scene(replace(SCENES[0], objects=(item,), background="even"), 128)
    column = image[35:93, 64, 0]  # within the square
    dark, pale = (column < 20).mean(), (column > 170).mean()
    assert 0.3 < dark < 0.65 and 0.3 < pale < 0.65
    assert dark + pale > 0.85


def test_an_object_over_the_edge_is_cut():
    item = replace(SCENES[0].objects[0], shape="circle", x=0.0, y=0.5, radius=0.2, rgb=(0, 0, 0))
    scene = replace(SCENES[0], background="even")
    image = render_scene(replace(scene, objects=(item,)), 64)
    away = render_scene(replace(scene, objects=(replace(item, x=-3.0),)), 64)
    assert image[32, 0, 0] == 0
    np.testing.assert_array_equal(away, render_scene(replace(scene, objects=()), 64))
