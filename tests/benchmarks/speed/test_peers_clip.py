"""The contests with CLIP's users: our sides on small sizes, and the peers' where they are there."""

import importlib.util
import math
import sys
from functools import partial

import pytest
import torch

from benchmarks.peers import product_flops
from benchmarks.speed import peers_clip

SIZES = peers_clip.Sizes(image_size=32, width=64, depth=2, text_width=64)
TOWER = peers_clip.Tower(image_size=64, width=64, depth=2)


def has(package):
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"no {package}")


def our_step(lengths):
    generator = torch.Generator().manual_seed(0)
    ids, mask = peers_clip.texts(lengths, generator)
    image = torch.randn(len(lengths), 3, 32, 32, generator=generator)
    torch.manual_seed(0)
    return ids, mask, peers_clip.Ours(peers_clip.two_towers(SIZES), image, ids, mask)


def test_texts_are_padded_as_open_clips_tokenizer_pads_them():
    ids, mask, _ = our_step([5, 77])
    assert ids.shape == (2, 77) and mask.sum(1).tolist() == [5, 77]
    assert ids[0, 0] == ids[1, 0] == 49406 and ids[0, 4] == ids[1, 76] == 49407
    assert not ids[0, 5:].any()


def test_our_step_trains_both_towers_with_itc_alone():
    *_, side = our_step([5, 9, 20, 77])
    first = side.gradients("fp32")
    assert first == pytest.approx(math.log(4), abs=0.5)
    side.optimizer.zero_grad()
    for _ in range(5):
        side.step("fp32")
    assert side.gradients("fp32") < first
    assert all(parameter.grad is not None for parameter in side.parameters)


def test_operations_are_counted_without_padding():
    sides = [our_step(lengths)[2] for lengths in ([7] * 4, [77] * 4)]
    short, long = (product_flops(partial(side.gradients, "fp32")) for side in sides)
    # forward and backward pass of 2 blocks: 3 x 2 x (24 T D² + 4 T² D), T = 28 and 308 tokens
    text = [3 * 2 * 4 * (24 * tokens * 64**2 + 4 * tokens**2 * 64) for tokens in (7, 77)]
    assert long - short == pytest.approx(text[1] - text[0], rel=0.05)


def test_the_stand_in_is_there_for_the_import_alone():
    with peers_clip.torchvision_stand_in():
        from torchvision.ops.misc import FrozenBatchNorm2d  # noqa: F401
        from torchvision.transforms import InterpolationMode, Resize  # noqa: F401
    if importlib.util.find_spec("torchvision") is None:
        assert not any(name.startswith("torchvision") for name in sys.modules)


def test_our_folder_embeds_as_clip_does(tmp_path):
    clip = peers_clip.clip_folder(tmp_path / "clip", TOWER)
    folder = peers_clip.mplug_folder(tmp_path / "mplug", clip, TOWER)
    loaded = peers_clip.load_model(folder, device="cpu", precision="fp32")
    assert peers_clip.same_vectors(loaded.model, clip, TOWER.image_size) < 1e-5
    with torch.no_grad():
        loaded.model.image_projection.weight.mul_(-1)
    with pytest.raises(AssertionError):
        peers_clip.same_vectors(loaded.model, clip, TOWER.image_size)


@has("sentence_transformers")
def test_both_sides_embed_the_files(monkeypatch, tmp_path):
    monkeypatch.setattr(peers_clip.tempfile, "tempdir", str(tmp_path))
    work = peers_clip.embed_files(3, TOWER)
    for run in (*work.ours.values(), *work.peer.values()):
        assert tuple(run().shape) == (3, 512)


@has("open_clip")
def test_both_sides_step():
    work = peers_clip.contrastive_step([5, 9])
    assert set(work.ours) == set(work.peer)
    assert work.facts["parameters"]["ours"] == pytest.approx(work.facts["parameters"]["peer"], 0.01)
