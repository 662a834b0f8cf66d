"""Training of an image tokenizer: a discrete VAE by Gumbel-softmax (Ramesh et al. 2021, 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.outputs import Predictions
from triptych.models.dvae.model import DVAE, unmap_pixels
from triptych.objectives.dvae import (
    annealed,
    code_balance,
    code_kl,
    code_usage,
    gumbel_softmax,
    logit_laplace_nll,
)

OBJECTIVES = frozenset({"reconstruction", "kl", "balance"})


@dataclass(frozen=True, kw_only=True, slots=True)
class DVAETrainingConfig:
    """Settings of the relaxed codes.

    Attributes:
        start_temperature: Gumbel-softmax temperature τ of the first step (paper: 1).
        end_temperature: τ at the end of the half cosine (paper: 1/16, low enough that the relaxed
            loss is that of one-hot codes).
        anneal_steps: Steps from the first to the last temperature (paper: 150,000).
        init_scale: Deviation of the logits at the start, where the last layer is set from the
            first images so that all codes are in use; 0 leaves it drawn, as the paper does.
    """

    start_temperature: float = 1.0
    end_temperature: float = 1 / 16
    anneal_steps: int = 150_000
    init_scale: float = 0.0

    def __post_init__(self) -> None:
        """Reject temperatures that rise or are not above 0."""
        low, high = self.end_temperature, self.start_temperature
        check(0 < low <= high, "end_temperature", low, f"be above 0 and at most {high}")
        check(self.anneal_steps >= 1, "anneal_steps", self.anneal_steps, "be at least 1")
        check(self.init_scale >= 0, "init_scale", self.init_scale, "be at least 0")


class DVAETraining:
    """The Task of an image tokenizer's training.

    `reconstruction` is the negative log-likelihood a pixel value and `kl` the divergence a code;
    at weights 1 and 1 / 192 (8 · 8 pixels of 3 values a code) their sum is the evidence lower
    bound, and the paper's β is 192 times the weight of `kl`. `balance` is ours.

    Beside the losses it returns `code_perplexity` and `codes_used` of the batch, and `temperature`.
    """

    batch_keys = frozenset({"image"})
    objective_names = OBJECTIVES

    def __init__(self, model: DVAE, config: DVAETrainingConfig) -> None:
        model.need_decoder()
        self.config = config
        self.modules = nn.ModuleDict({"model": model})
        self._step = 0

    @property
    def model(self) -> DVAE:
        """The tokenizer that is trained."""
        return cast(DVAE, self.modules["model"])

    @property
    def temperature(self) -> float:
        """τ of the current step."""
        c = self.config
        return annealed(c.start_temperature, c.end_temperature, self._step, c.anneal_steps)

    def extra_state(self) -> dict[str, int]:
        """Return what a checkpoint must hold besides tensors."""
        return {"step": self._step}

    def load_extra_state(self, state: dict[str, int]) -> None:
        """Restore what `extra_state` returned."""
        self._step = state["step"]

    def losses(
        self, batch: Mapping[str, Tensor], *, active: frozenset[str] = OBJECTIVES
    ) -> dict[str, Tensor]:
        """Return the unweighted losses of the active objectives, and what is only logged.

        Args:
            batch: `image` (B, 3, H, W) float in [0.1, 0.9].
            active: Objectives to compute.

        Returns:
            Scalars by name.
        """
        image = batch["image"]
        logits = self.model.encoder(image)  # (B, V, h, w)
        losses: dict[str, Tensor] = {}
        if "reconstruction" in active:
            codes = gumbel_softmax(logits, self.temperature)
            location, log_scale = self.model.need_decoder()(codes)
            losses["reconstruction"] = logit_laplace_nll(image, location, log_scale)
        if "kl" in active:
            losses["kl"] = code_kl(logits)
        if "balance" in active:
            losses["balance"] = code_balance(logits)
        num_codes = self.model.config.num_codes
        losses["code_perplexity"], losses["codes_used"] = code_usage(logits.argmax(1), num_codes)
        losses["temperature"] = logits.new_tensor(self.temperature)
        return losses

    def after_step(self, step: int) -> None:
        """Move on with the temperature."""
        self._step = step

    @torch.no_grad()
    def predict(self, batch: Mapping[str, Tensor]) -> Predictions:
        """Return each image's codes and the errors of its reconstruction from them.

        Args:
            batch: `image` (B, 3, H, W) float in [0.1, 0.9], `index`.

        Returns:
            Scores `codes` (B, P), `l1` and `mse` (B,): means over pixel values in [0, 1].
        """
        image = batch["image"]
        distance = self.model.reconstruct(image) - unmap_pixels(image)
        return Predictions(
            index=batch["index"].tolist(),
            scores={
                "codes": self.model.codes(image),
                "l1": distance.abs().mean(dim=(1, 2, 3)),
                "mse": distance.square().mean(dim=(1, 2, 3)),
            },
        )
