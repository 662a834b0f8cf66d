"""Classifiers of images and of their pixels, on a model of every family."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from triptych.core.errors import ConfigError
from triptych.data.masks import IGNORED
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.families import build_model, model_config
from triptych.nn.segmentation import PyramidSegmentation
from triptych.objectives import IGNORE_INDEX
from triptych.recipes.registry import build_recipe
from triptych.tasks.finetuning import segmentation
from triptych.tasks.finetuning.image_classification import (
    ImageClassification,
    ImageClassificationConfig,
    blend,
)
from triptych.tasks.finetuning.segmentation import Segmentation, SegmentationConfig
from triptych.train.optim import group_parameters

FAMILIES = ("mplug", "vlmo", "flava")
LABELS = ("cat", "dog", "owl")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    return {
        kind: build_model(model_config(f"{kind}_tiny", image_size=32, vocab_size=64)).eval()
        for kind in FAMILIES
    }


def images(number=4):
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("pooling", ["mean", "class"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_a_classifier_reads_what_it_says(models, kind, pooling):
    task = ImageClassification(
        models[kind], ImageClassificationConfig(labels=LABELS, pooling=pooling)
    )
    features = models[kind].encode_image(images())
    state = features.tokens[:, 1:].mean(1) if pooling == "mean" else features.pooled
    head = task.modules["head"].eval()
    torch.testing.assert_close(task.image_scores(images()), head(state).float())
    label = torch.tensor([0, 2, IGNORE_INDEX, 1])
    loss = task.losses({"image": images(), "label": label}, active=frozenset())["classification"]
    rows = [0, 1, 3]
    expected = F.cross_entropy(head(state).float()[rows], label[rows])
    torch.testing.assert_close(loss, expected)
    found = task.predict({"image": images(), "index": torch.arange(4)})
    assert found.texts == [LABELS[k] for k in head(state).argmax(1).tolist()]
    ignored = {"image": images(), "label": torch.full((4,), IGNORE_INDEX)}
    assert task.losses(ignored, active=frozenset())["classification"].item() == 0


def test_blended_images_keep_their_shares():
    plain = images(6)
    for seed in range(30):
        torch.manual_seed(seed)
        mixed, share = blend(plain, 0.8, 0.0)
        torch.testing.assert_close(mixed, share * plain + (1 - share) * plain.flip(0))
        torch.manual_seed(seed)
        cut, share = blend(plain, 0.0, 1.0)
        own = (cut == plain)[:, 0].float().mean(dim=(1, 2))
        other = (cut == plain.flip(0))[:, 0].float().mean(dim=(1, 2))
        assert own.tolist() == pytest.approx([share] * 6)
        assert other.tolist() == pytest.approx([1 - share] * 6)
    kinds = set()
    for seed in range(30):
        torch.manual_seed(seed)
        both, share = blend(plain, 0.8, 1.0)
        is_mixed = torch.allclose(both, share * plain + (1 - share) * plain.flip(0), atol=1e-5)
        kinds.add(is_mixed or share in (0.0, 1.0))
    assert kinds == {True, False}


def test_only_training_blends_and_targets_are_shared_as_pixels_are(models):
    config = ImageClassificationConfig(labels=LABELS, mixup=0.8, label_smoothing=0.1)
    task = ImageClassification(models["mplug"], config)
    batch = {"image": images(), "label": torch.tensor([0, 1, 2, 0])}
    task.modules.eval()
    plain = task.losses(batch, active=frozenset())["classification"]
    scores = task.image_scores(batch["image"])
    targets = F.one_hot(batch["label"], 3) * 0.9 + 0.1 / 3
    torch.testing.assert_close(plain, -(targets * scores.log_softmax(1)).sum(1).mean())
    task.modules.train()
    torch.manual_seed(3)
    found = task.losses(batch, active=frozenset())["classification"]
    torch.manual_seed(3)
    mixed, share = blend(batch["image"], 0.8, 0.0)
    scores = task.image_scores(mixed)
    targets = share * targets + (1 - share) * targets.flip(0)
    torch.testing.assert_close(found, -(targets * scores.log_softmax(1)).sum(1).mean())
    task.modules.eval()


@pytest.mark.parametrize("head", ["linear", "upernet"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_pixels_are_classified(models, kind, head):
    config = SegmentationConfig(classes=LABELS, head=head, channels=16)
    task = Segmentation(models[kind], config)
    task.modules.eval()
    mask = torch.randint(0, 3, (4, 32, 32), generator=torch.Generator().manual_seed(2))
    mask[:, :5] = IGNORED
    loss = task.losses({"image": images(), "mask": mask}, active=frozenset())["segmentation"]
    maps = task.map_scores(images())
    side = 2 if head == "linear" else 8
    assert maps.shape == (4, 3, side, side)
    full = F.interpolate(maps, size=(32, 32), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full[:, :, 5:], mask[:, 5:])
    torch.testing.assert_close(loss, expected)
    grads = torch.autograd.grad(loss, list(task.modules["head"].parameters()))
    assert all(bool(g.abs().sum() > 0) for g in grads)
    nothing = {"image": images(), "mask": torch.full_like(mask, IGNORED)}
    assert task.losses(nothing, active=frozenset())["segmentation"].item() == 0
    sizes = torch.tensor([[32, 32], [20, 50], [64, 16], [1, 1]])
    found = task.predict({"image": images(), "image_size_px": sizes, "index": torch.arange(4)})
    assert [m.shape for m in found.scores["mask"]] == [(32, 32), (50, 20), (16, 64), (1, 1)]
    np.testing.assert_array_equal(found.scores["mask"][0], full[0].argmax(0).numpy())


@pytest.mark.parametrize("at_once", [1, 100, 900, 1 << 20])
def test_classes_are_compared_in_parts(at_once, monkeypatch):
    monkeypatch.setattr(segmentation, "PIXELS_AT_ONCE", at_once)
    scores = torch.randint(0, 3, (7, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    full = F.interpolate(scores[None], size=(15, 20), mode="bilinear", align_corners=False)[0]
    found = segmentation.best_classes(scores, 15, 20)
    assert found.dtype == torch.uint8
    assert torch.equal(full.gather(0, found[None].long())[0], full.max(dim=0).values)
    first = (full == full.max(dim=0).values).int().argmax(dim=0)
    assert torch.equal(found.long(), first)


@pytest.mark.parametrize("grid", [1, 2, 3, 7, 14])
def test_a_pyramid_takes_any_grid(grid):
    head = PyramidSegmentation(8, 5, channels=8).eval()
    assert head(torch.randn(2, grid * grid, 8)).shape == (2, 5, 4 * grid, 4 * grid)


def test_a_mirrored_grid_of_states_has_a_mirrored_map():
    """Patches lie row by row: mirroring their columns mirrors a linear head's map."""
    model = build_model(model_config("mplug_tiny", image_size=64, vocab_size=64))
    task = Segmentation(model, SegmentationConfig(classes=LABELS, head="linear"))
    states = torch.randn(1, 16, model.feature_dims.image)
    mirrored = states.view(1, 4, 4, -1).flip(2).reshape(1, 16, -1)
    head = task.modules["head"]
    torch.testing.assert_close(head(mirrored), head(states).flip(3))


def test_masks_cannot_follow_rotations(models):
    turning = ImageTransformConfig()
    with pytest.raises(ConfigError, match="randaugment_geometric"):
        segmentation.SPEC.image(turning, models["vlmo"])
    plain = replace(turning, randaugment_geometric=False)
    assert segmentation.SPEC.image(plain, models["vlmo"]).image_size == 32


@pytest.mark.parametrize(
    ("config", "values", "message"),
    [
        (ImageClassificationConfig, {"label_smoothing": 1.0}, "label_smoothing"),
        (ImageClassificationConfig, {"mixup": -1.0}, "mixup"),
        (ImageClassificationConfig, {"label_pattern": "("}, "label_pattern"),
        (ImageClassificationConfig, {"label_pattern": "a"}, "must have a group"),
        (SegmentationConfig, {"channels": 12}, "multiple of 8"),
        (SegmentationConfig, {"dropout": 1.0}, "dropout"),
        (SegmentationConfig, {"classes": tuple(map(str, range(256)))}, "255 at most"),
    ],
)
def test_settings_out_of_range_are_named(config, values, message):
    with pytest.raises(ConfigError, match=message):
        config(**values)


def test_a_classifier_needs_two_classes(models):
    with pytest.raises(ConfigError, match="two classes or more"):
        ImageClassification(models["mplug"], ImageClassificationConfig())
    with pytest.raises(ConfigError, match="two classes or more"):
        Segmentation(models["mplug"], SegmentationConfig(classes=("a",)))


@pytest.mark.parametrize("recipe", ["classify.images", "segment.images", "vlmo.segmentation"])
def test_layers_below_learn_more_slowly_at_the_papers_scales(models, recipe):
    optim = build_recipe(recipe, "base").optim
    task = ImageClassification(models["vlmo"], ImageClassificationConfig(labels=LABELS))
    groups = group_parameters(task.modules.named_parameters(), optim, lambda _: False)
    rates = {name: group.peak_lr for group in groups for name, _ in group.parameters}  # six blocks
    top, bottom = (rates[f"model.trunk.blocks.{k}.attention.out.weight"] for k in (5, 0))
    assert bottom == pytest.approx(top * optim.layer_decay**5)
    assert rates["head.1.0.weight"] == optim.learning_rate
