"""DINO on models of every family: small crops, teacher, center, and what learns."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from triptych.core.errors import ConfigError
from triptych.models.families import family_of
from triptych.models.registry import build_model, model_config
from triptych.objectives.dino import dino_loss
from triptych.tasks.pretraining.dino import DINO, DINOConfig, DINOHead, SmallCropEncoder

HEAD = DINOConfig(
    out_dim=7,
    hidden_dim=16,
    bottleneck_dim=4,
    teacher_warmup_steps=10,
    freeze_last_layer_steps=0,
    max_steps=100,
    init_std=0.2,
)


def small_config(name):
    config = model_config(name, image_size=64, vocab_size=30)
    if name.startswith("vlmo"):
        return dataclasses.replace(
            config, embed_dim=16, depth=2, num_heads=2, fused_from=1, drop_path=0.0, proj_dim=8
        )
    vision = dataclasses.replace(config.vision, embed_dim=16, depth=2, num_heads=2)
    text = dataclasses.replace(config.text, embed_dim=16, num_heads=2)
    if name.startswith("flava"):
        fusion = dataclasses.replace(config.fusion, embed_dim=16, depth=1, num_heads=2)
        return dataclasses.replace(
            config, vision=vision, text=text, text_depth=1, fusion=fusion, codebook=None
        )
    return dataclasses.replace(config, vision=vision, text=text, text_depth=1, decoder_depth=1)


@pytest.fixture(params=["flava_tiny", "vlmo_tiny", "mplug_tiny"])
def model(request):
    torch.manual_seed(0)
    return build_model(small_config(request.param))


def crops(num_small=3, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "large_crops": torch.randn(2, 4, 3, 64, 64, generator=generator),
        "small_crops": torch.randn(num_small, 4, 3, size, size, generator=generator),
        "index": torch.arange(4),
    }


@torch.no_grad()
def test_small_crops_are_read_as_by_a_model_of_that_size(model):
    model.eval()
    image = crops()["small_crops"][0]
    family = family_of(model.config)
    state, config = family.resize(model.state_dict(), model.config, 32)
    smaller = family.build(config).eval()
    smaller.load_state_dict(state)
    found = SmallCropEncoder(model, 32)(image)
    torch.testing.assert_close(found, smaller.encode_image(image).pooled, atol=1e-5, rtol=1e-5)


def test_small_crops_send_gradients_to_the_models_own_parameters(model):
    encoder = SmallCropEncoder(model, 32)
    encoder(crops()["small_crops"][0]).square().sum().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("patch_embedding" in name for name in moved)
    assert any("position" in name for name in moved)  # through the resized table
    assert not any(name.startswith("text_encoder") for name in moved)


def test_loss_is_that_of_student_and_teacher(model):
    task = DINO(model, HEAD)
    task.modules.eval()
    task.center.copy_(torch.linspace(-0.3, 0.3, 7))
    batch = crops()
    with torch.no_grad():
        found = task.losses(batch)
        head = task.modules["dino_head"]
        large = [head(model.encode_image(crop).pooled) for crop in batch["large_crops"]]
        encoder = SmallCropEncoder(model, 32)
        small = [head(encoder(crop)) for crop in batch["small_crops"]]
    probs = torch.softmax((torch.stack(large) - task.center) / 0.04, -1)  # teacher = student yet
    expected = dino_loss(torch.stack([*large, *small]), probs, 0.1)
    torch.testing.assert_close(found["dino"], expected, atol=1e-4, rtol=1e-4)
    entropy = -(probs * probs.clamp(min=1e-30).log()).sum(-1).mean()
    torch.testing.assert_close(found["teacher_entropy"], entropy, atol=1e-4, rtol=1e-3)


def test_a_step_trains_the_student_and_only_moves_the_teacher(model):
    task = DINO(model, HEAD)
    task.modules.train()
    batch = crops()
    teacher = task.modules["teacher"].module
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    task.losses(batch)["dino"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    patch = next(p for n, p in model.named_parameters() if "patch_embedding" in n)
    head = task.modules["dino_head"]
    assert patch.grad.any()
    assert head.directions.grad.any()
    with torch.no_grad():
        head.directions += 1
    outputs = teacher["head"](teacher["model"].encode_image(batch["large_crops"][0]).pooled)
    other = teacher["head"](teacher["model"].encode_image(batch["large_crops"][1]).pooled)
    mean = torch.cat([outputs, other]).mean(0)
    task.after_step(1)
    torch.testing.assert_close(task.center, 0.1 * mean, atol=1e-4, rtol=1e-3)
    share = 1 - task.modules["teacher"].momentum
    assert share == pytest.approx(0.004 * (1 + torch.cos(torch.tensor(torch.pi / 100))) / 2)
    moved = teacher.get_parameter("head.directions")
    torch.testing.assert_close(moved, before["head.directions"] + share)


def test_last_layer_waits():
    torch.manual_seed(0)
    model = build_model(small_config("flava_tiny"))
    task = DINO(model, dataclasses.replace(HEAD, freeze_last_layer_steps=2))
    task.losses(crops(num_small=0))["dino"].backward()
    assert task.modules["dino_head"].directions.grad is None
    task.after_step(2)
    task.losses(crops(num_small=0))["dino"].backward()
    assert task.modules["dino_head"].directions.grad.any()


def test_temperature_and_step_survive_a_checkpoint():
    torch.manual_seed(0)
    task = DINO(build_model(small_config("flava_tiny")), HEAD)
    found = []
    for step in (0, 5, 10, 50):
        task.after_step(step)
        found.append(task.teacher_temperature)
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])
    other = DINO(build_model(small_config("flava_tiny")), HEAD)
    other.load_extra_state(task.extra_state())
    assert other.teacher_temperature == pytest.approx(0.07)


def test_head_gives_cosines():
    torch.manual_seed(0)
    head = DINOHead(5, HEAD)
    x = torch.randn(3, 5)
    hidden = F.gelu(head.layers[1](F.gelu(head.layers[0](x))))
    state = head.layers[2](hidden)
    expected = F.cosine_similarity(state[:, None], head.directions[None], dim=-1)
    torch.testing.assert_close(head(x), expected)


def test_pictures_alone_keep_the_rest_of_the_model_still():
    torch.manual_seed(0)
    model = build_model(small_config("flava_tiny"))
    task = DINO(model, HEAD)
    task.losses(crops())["dino"].backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None}
    assert touched
    assert all(name.startswith("visual_encoder.") for name in touched)


def test_a_side_that_no_patch_fits_is_an_error(model):
    with pytest.raises(ConfigError, match="small_size = 40"):
        SmallCropEncoder(model, 40)
