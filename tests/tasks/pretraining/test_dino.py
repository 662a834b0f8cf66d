"""DINO on models of every family: small crops, teacher, center, and what learns."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from triptych.core.errors import ConfigError
from triptych.models.families import build_model, family_of, model_config
from triptych.objectives.dino import dino_loss
from triptych.tasks.pretraining.dino import (
    DINO,
    DINOConfig,
    DINOHead,
    SmallCropEncoder,
    image_side,
)
from triptych.train.step import set_recompute

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
    assert share == pytest.approx(0.004)  # the first step takes the schedule's first value
    moved = teacher.get_parameter("head.directions")
    torch.testing.assert_close(moved, before["head.directions"] + share)
    task.after_step(51)
    assert 1 - task.modules["teacher"].momentum == pytest.approx(0.002)  # half of the steps done


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


def test_images_alone_keep_the_rest_of_the_model_still():
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


UNREAD = {
    "flava_tiny": {"text_encoder", "fusion", "mim_head", "mlm_head", "mmm_text_head", "itm_head"},
    "vlmo_tiny": {"text_embedding", "mlm_head", "itm_head"},
    "mplug_tiny": {"text_encoder", "fusion", "decoder"},
}


@pytest.mark.parametrize("name", UNREAD)
def test_teacher_holds_what_encodes_images_and_nothing_else(name):
    torch.manual_seed(0)
    model = build_model(small_config(name)).eval()
    image = crops()["large_crops"][0]
    with torch.no_grad():
        expected = model.encode_image(image).pooled
        teacher = DINO(model, HEAD).teacher["model"]
        torch.testing.assert_close(teacher.encode_image(image).pooled, expected, rtol=0, atol=0)
    held = {part for n, _ in teacher.named_parameters() for part in n.split(".")}
    assert not held & UNREAD[name]
    assert "text" not in held  # VLMo's experts for texts
    own = dict(model.named_parameters())
    side = dict(image_side(model).named_parameters())
    assert all(p.data_ptr() == own[n].data_ptr() for n, p in side.items())  # shared, not copied


@pytest.mark.parametrize("save", ["teacher", "student"])
def test_the_model_folder_gets_the_encoder_that_is_asked_for(model, save):
    task = DINO(model, dataclasses.replace(HEAD, save=save))
    with torch.no_grad():
        for parameter in task.teacher.parameters():
            parameter += 1
    state, student = task.model_state(), model.state_dict()
    assert state.keys() == student.keys()
    moved = {name for name in student if not torch.equal(state[name], student[name])}
    held = {name for name, _ in task.teacher["model"].named_parameters()}
    assert moved == (held if save == "teacher" else set())
    batch = {"image": crops()["large_crops"][0], "index": torch.arange(4)}
    model.eval()
    family = family_of(model.config)
    saved = family.build(model.config).eval()
    saved.load_state_dict(state)
    with torch.no_grad():
        expected = saved.encode_image(batch["image"]).pooled
        torch.testing.assert_close(task.predict(batch).embeddings["image"], expected)


def with_drop_path():
    torch.manual_seed(0)
    return build_model(dataclasses.replace(small_config("vlmo_tiny"), drop_path=0.5))


def test_small_crops_are_dropped_as_large_ones_and_building_draws_nothing():
    model, image = with_drop_path().train(), crops()["small_crops"][0]
    state = torch.get_rng_state()
    encoder = SmallCropEncoder(model, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(encoder(image), encoder(image))
    model.set_drop_path(0.0)
    assert torch.equal(encoder(image), encoder(image))
    model.set_drop_path(0.5)
    model.eval()
    assert torch.equal(encoder(image), encoder(image))


@pytest.mark.parametrize("name", ["flava_tiny", "mplug_tiny", "vlmo_tiny"])
def test_recomputed_activations_give_equal_gradients_on_all_crops(name):
    found = []
    for mode in ("none", "full"):
        torch.manual_seed(0)
        task = DINO(build_model(small_config(name)), HEAD)
        task.modules.train()
        task.losses(crops())  # the encoder of small crops is there before the switch
        set_recompute(task.modules, mode)
        torch.manual_seed(7)
        task.losses(crops())["dino"].backward()
        (encoder,) = task._smaller.values()
        switches = [getattr(m, "recompute", None) for m in encoder._twin.modules()]
        assert {s for s in switches if s is not None} == {mode}
        found.append({n: p.grad for n, p in task.modules.named_parameters() if p.grad is not None})
    plain, again = found
    assert plain.keys() == again.keys()
    assert all(torch.equal(plain[n], again[n]) for n in plain)


def test_micro_batches_equal_the_whole_batch(model):
    batch, start = crops(), {n: p.clone() for n, p in model.state_dict().items()}
    found = []
    for parts in (1, 2):
        model.load_state_dict(start)
        torch.manual_seed(1)
        task = DINO(model, HEAD)
        task.modules.train()
        for part in range(parts):
            own = slice(part * 4 // parts, (part + 1) * 4 // parts)
            halves = {k: batch[k][:, own] for k in ("large_crops", "small_crops")}
            (task.losses(halves)["dino"] / parts).backward()
        grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        model.zero_grad(set_to_none=True)
        task.after_step(1)
        assert task.center.any()
        found.append((grads, task.center.clone()))
    (grads, center), (other_grads, other_center) = found
    torch.testing.assert_close(other_center, center)
    torch.testing.assert_close(other_grads, grads, atol=1e-6, rtol=1e-3)


NUM_COLORS = 4


def colored(colors, labels, generator):
    """Return images (B, 3, 64, 64) of a colour each, under noise."""
    noise = torch.randn(len(labels), 3, 64, 64, generator=generator)
    return colors[labels][:, :, None, None] + 0.5 * noise


@torch.no_grad()
def told_apart(task, colors, generator):
    """Return the mutual information in nats of an image's colour and the teacher's class."""
    labels = torch.arange(NUM_COLORS).repeat(16)
    outputs = task.teacher["head"](
        task.teacher["model"].encode_image(colored(colors, labels, generator)).pooled
    )
    probs = torch.softmax((outputs - task.center) / task.teacher_temperature, -1)
    by_color = probs.view(16, NUM_COLORS, -1).mean(0)
    entropies = [-torch.special.xlogy(p, p).sum(-1) for p in (by_color.mean(0), by_color)]
    return float(entropies[0] - entropies[1].mean())


@pytest.mark.slow
def test_the_teachers_classes_come_to_tell_colours_that_nobody_named():
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    config = dataclasses.replace(
        HEAD,
        out_dim=32,
        hidden_dim=32,
        bottleneck_dim=16,
        teacher_temperature=0.04,
        teacher_warmup_steps=0,
        momentum=0.9,
        center_momentum=0.0,  # in so short a run an old center lets the classes collapse
    )
    task = DINO(build_model(small_config("flava_tiny")), config)
    colors = 1.5 * torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    trained = [p for p in task.modules.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4)
    task.modules.train()
    before = told_apart(task, colors, generator)
    for step in range(1, 76):
        labels = torch.randint(NUM_COLORS, (16,), generator=generator)
        large = torch.stack([colored(colors, labels, generator) for _ in range(2)])
        task.losses({"large_crops": large, "small_crops": large[:0]})["dino"].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.after_step(step)
    after = told_apart(task, colors, generator)
    assert before < 0.25
    assert after > 0.5  # one class alone, or chance, gives 0; ln 4 is all there is
