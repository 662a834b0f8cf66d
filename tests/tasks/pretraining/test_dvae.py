"""Training of an image tokenizer: its losses, its schedule, and that it learns."""

import math

import pytest
import torch

from triptych.core.errors import CapabilityError, ConfigError
from triptych.core.rng import seed_step
from triptych.models.dvae.config import DVAEConfig
from triptych.models.dvae.model import DVAE, map_pixels, spread_codes
from triptych.objectives.dvae import code_kl
from triptych.tasks.pretraining.dvae import DVAETraining, DVAETrainingConfig

SMALL = DVAEConfig(image_size=16, num_codes=12, hidden_dim=8, blocks_per_group=1, code_dim=8)


def colours(number, size=8, seed=0):
    """Images of one of four colours each, with noise; and which colour it is."""
    generator = torch.Generator().manual_seed(seed)
    palette = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.8, 0.2], [0.1, 0.2, 0.9], [0.9, 0.9, 0.2]])
    which = torch.randint(4, (number,), generator=generator)
    noise = 0.03 * torch.randn(number, 3, size, size, generator=generator)
    return map_pixels((palette[which][:, :, None, None] + noise).clamp(0, 1)), which


def task_of(config=SMALL, **settings):
    torch.manual_seed(0)
    return DVAETraining(DVAE(config), DVAETrainingConfig(**settings))


def test_losses_are_those_of_the_active_objectives():
    task = task_of()
    batch = {"image": colours(3, 16)[0], "index": torch.arange(3)}
    losses = task.losses(batch, active=frozenset({"kl"}))
    assert set(losses) == {"kl", "code_perplexity", "codes_used", "temperature"}
    torch.testing.assert_close(losses["kl"], code_kl(task.model.encoder(batch["image"])))
    every = task.losses(batch)
    assert {"reconstruction", "kl", "balance"} <= set(every)
    seed_step(3, 0, 0)
    one, other = (task.losses(batch)["reconstruction"] for _ in range(2))
    assert not torch.equal(one, other)
    seed_step(3, 0, 0)
    assert torch.equal(one, task.losses(batch)["reconstruction"])  # the noise is the step's


def test_gradients_reach_encoder_and_decoder():
    task = task_of()
    batch = {"image": colours(4, 16)[0]}
    task.losses(batch)["reconstruction"].backward()
    for name, parameter in task.modules.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_temperature_falls_with_the_steps_and_survives_a_checkpoint():
    task = task_of(anneal_steps=10)
    found = []
    for step in (0, 5, 10, 20):
        task.after_step(step)
        found.append(task.temperature)
    assert found == pytest.approx([1, (1 + 1 / 16) / 2, 1 / 16, 1 / 16])
    task.after_step(5)
    other = task_of(anneal_steps=10)
    other.load_extra_state(task.extra_state())
    assert other.temperature == task.temperature


def test_it_learns_to_name_colours():
    config = DVAEConfig(image_size=8, num_codes=8, hidden_dim=4, blocks_per_group=1, code_dim=8)
    task = task_of(config, anneal_steps=40)
    spread_codes(task.model.encoder, colours(64)[0], 4.0)
    groups = [
        {"params": task.model.encoder.parameters(), "lr": 2e-3},
        {"params": task.model.decoder.parameters(), "lr": 2e-2},
    ]
    optimizer = torch.optim.Adam(groups)
    for step in range(1, 51):
        losses = task.losses({"image": colours(16, seed=step)[0]})
        information = losses["balance"] + math.log(8) - losses["kl"]
        optimizer.zero_grad()
        (losses["reconstruction"] + 0.05 * information).backward()
        torch.nn.utils.clip_grad_norm_(task.modules.parameters(), 1.0)
        optimizer.step()
        task.after_step(step)
    image, which = colours(64, seed=999)
    found = task.predict({"image": image, "index": torch.arange(64)})
    assert list(found.index) == list(range(64))
    codes = found.scores["codes"][:, 0]
    kinds = [frozenset(codes[which == colour].tolist()) for colour in range(4)]
    assert all(len(kind) == 1 for kind in kinds)  # noise changes no code
    assert len(set(kinds)) >= 3
    # The mean colour gives 0.33; two colours that share a code, as rounding decides, give 0.24.
    assert found.scores["l1"].mean() < 0.27
    assert found.scores["mse"].mean() < 0.08  # and 0.127


def test_spread_codes_use_the_whole_codebook():
    torch.manual_seed(0)
    model = DVAE(SMALL)
    images = torch.cat([colours(200, 16)[0], map_pixels(torch.rand(50, 3, 16, 16))])
    before = model.codes(images).unique().numel()
    spread_codes(model.encoder, images, 3.0, torch.Generator().manual_seed(1))
    logits = model.encoder(images)
    assert before < 5
    assert model.codes(images).unique().numel() > 6
    torch.testing.assert_close(logits.mean((0, 2, 3)), torch.zeros(12), atol=1e-3, rtol=0)
    assert logits.std().item() == pytest.approx(3.0, rel=0.01)


def test_a_tokenizer_without_decoder_cannot_be_trained():
    config = DVAEConfig(image_size=16, num_codes=12, hidden_dim=8, has_decoder=False)
    with pytest.raises(CapabilityError, match="no decoder"):
        DVAETraining(DVAE(config), DVAETrainingConfig())


@pytest.mark.parametrize(
    "settings", [{"end_temperature": 0.0}, {"start_temperature": 0.01}, {"anneal_steps": 0}]
)
def test_settings_out_of_range_are_errors(settings):
    with pytest.raises(ConfigError):
        DVAETrainingConfig(**settings)


def test_a_bound_of_the_evidence_for_sure_codes():
    # with one-hot codes reconstruction + kl / 192 is a bound in nats a value: kl is then ln V
    task = task_of()
    image = colours(2, 16)[0]
    with torch.no_grad():
        task.model.encoder.output.weight.mul_(1e6)
    losses = task.losses({"image": image})
    assert losses["kl"].item() == pytest.approx(math.log(12), rel=1e-3)
