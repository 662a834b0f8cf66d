"""Training of an image tokenizer: a discrete VAE by Gumbel-softmax (Ramesh et al. 2021, 2.1)."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from triptych.core.config import check
from triptych.core.errors import DataError
from triptych.core.files import write_atomic
from triptych.core.outputs import MetricValue, Predictions
from triptych.data.collate import ImageCollator
from triptych.data.records import Record
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.evaluation.bootstrap import mean_value
from triptych.models.dvae.model import DVAE, PIXEL_MEAN, PIXEL_STD, spread_codes, unmap_pixels
from triptych.objectives.dvae import (
    annealed,
    code_balance,
    code_kl,
    code_usage,
    gumbel_softmax,
    logit_laplace_nll,
)
from triptych.tasks.pretraining import image_tokenizer
from triptych.tasks.spec import TaskConfig, TaskRecipe, TaskSpec, TrainedModels, TrainingSetup

NUM_CHECKED = 256
"""Images, spread over the training data, that codes start from and are judged on."""

NUM_SHOWN = 8
"""Images above their reconstructions in `reconstructions.png`."""

SHOWN_FILE = "reconstructions.png"
ROWS_AT_ONCE = 32

OBJECTIVES = frozenset({"reconstruction", "kl", "balance"})


@dataclass(frozen=True, kw_only=True, slots=True)
class DVAETrainingConfig(TaskConfig):
    """Settings of the relaxed codes.

    Attributes:
        start_temperature: Initial Gumbel-softmax temperature τ (paper: 1).
        end_temperature: τ at the end of the half cosine (paper: 1/16, low enough that the relaxed
            loss is that of one-hot codes).
        anneal_steps: Steps from the first to the last temperature (paper: 150,000).
        init_scale: Standard deviation of the initial logits: the last layer is set from the first
            images so that all codes are in use; 0 keeps its random weights, as in the paper.
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

    While it trains it measures, and shows in `reconstructions.png`, what the codes of some images
    of the training data keep.

    Beside the losses it returns `code_perplexity` and `codes_used` of the batch, and `temperature`.
    """

    batch_keys = frozenset({"image"})
    objective_names = OBJECTIVES

    def __init__(self, model: DVAE, config: DVAETrainingConfig) -> None:
        model.need_decoder()
        self.config = config
        self.modules = nn.ModuleDict({"model": model})
        self._step = 0
        self._images: Reconstructions | None = None
        self._shown = Path(SHOWN_FILE)

    @property
    def model(self) -> DVAE:
        """The tokenizer that is trained."""
        return cast(DVAE, self.modules["model"])

    @property
    def temperature(self) -> float:
        """τ of the current step."""
        c = self.config
        return annealed(c.start_temperature, c.end_temperature, self._step, c.anneal_steps)

    def initialise(self, setup: TrainingSetup) -> None:
        """Choose the images that are measured, and spread the codes over them.

        Raises:
            DataError: None of the images can be read.
        """
        self._images = Reconstructions(setup.records, setup.image, setup.seed)
        self._shown = setup.run_folder / SHOWN_FILE
        if self.config.init_scale:
            spread_codes(self.model.encoder, self._images.images, self.config.init_scale)

    def evaluate(self, step: int) -> dict[str, float]:
        """Return what the codes keep, by name, and write it as an image."""
        del step
        return {f"eval/{metric.name}": metric.value for metric in self.final_metrics()}

    def final_metrics(self) -> list[MetricValue]:
        """Return what the codes keep, and write it as an image."""
        assert self._images is not None, "initialise comes first"
        self._images.save(self.model, self._shown)
        return self._images.measure(self.model)

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


class Reconstructions:
    """Some images of the training data, and what is left of them in their codes.

    Args:
        records: The training data.
        image: How images are prepared; here they are never cropped.
        seed: Decides which are taken.

    Raises:
        DataError: None of them can be read.
    """

    def __init__(self, records: Sequence[Record], image: ImageTransformConfig, seed: int) -> None:
        generator = np.random.default_rng(seed)
        number = min(NUM_CHECKED, len(records))
        chosen = np.sort(generator.choice(len(records), number, replace=False))
        loader = build_loader(
            [records[i] for i in chosen],
            ImageCollator(),
            ImageTransform(image, train=False),
            seed=seed,
            local_batch_size=number,
            train=False,
        )
        batch = next(iter(loader), None)
        if batch is None:
            raise DataError(f"none of {number} images of the training data can be read")
        self.images = batch["image"]  # (N, 3, S, S) in [0.1, 0.9]

    def measure(self, model: DVAE) -> list[MetricValue]:
        """Return error and code usage, and the error of the mean image beside them."""
        codes, found = self._run(model)
        truth = unmap_pixels(self.images)
        mean = truth.mean(dim=0, keepdim=True)
        on_what = f"over {len(truth)} images of the training data"
        what = "absolute difference of pixel values in [0, 1]"
        perplexity, used = code_usage(codes, model.config.num_codes)
        errors = [
            mean_value(
                "reconstruction_l1",
                (found - truth).abs().mean(dim=(1, 2, 3)).numpy(),
                f"Mean {what} between images and those decoded from their codes, {on_what}.",
            ),
            mean_value(
                "mean_picture_l1",
                (mean - truth).abs().mean(dim=(1, 2, 3)).numpy(),
                f"Mean {what} between images and their common mean image, {on_what}.",
            ),
        ]
        return [
            *(replace(error, higher_is_better=False) for error in errors),
            _number(
                "code_perplexity",
                float(perplexity),
                codes.numel(),
                f"exp(entropy) of the codes' frequencies {on_what}; the codebook has "
                f"{model.config.num_codes:,} codes.",
            ),
            _number(
                "codes_used",
                float(used),
                codes.numel(),
                f"Share of the codebook that occurs {on_what}.",
            ),
        ]

    def save(self, model: DVAE, path: Path) -> None:
        """Write images above their reconstructions as one PNG."""
        _, found = self._run(model, NUM_SHOWN)
        rows = torch.stack([unmap_pixels(self.images[:NUM_SHOWN]), found])  # (2, n, 3, S, S)
        grid = rows.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)  # (2·S, n·S, 3)
        pixels: NDArray[np.uint8] = (grid * 255).round().to(torch.uint8).numpy()
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format="PNG")
        write_atomic(path, buffer.getvalue())

    @torch.no_grad()
    def _run(self, model: DVAE, number: int | None = None) -> tuple[Tensor, Tensor]:
        """Return (n, P) codes and (n, 3, S, S) reconstructions in [0, 1], on the CPU."""
        device = next(model.parameters()).device
        codes, images = [], []
        for rows in torch.split(self.images[:number], ROWS_AT_ONCE):
            own = model.codes(rows.to(device))
            side = model.config.grid_size
            codes.append(own.cpu())
            images.append(model.decode(own.view(-1, side, side)).cpu())
        return torch.cat(codes), torch.cat(images)


def _number(name: str, value: float, num_items: int, protocol: str) -> MetricValue:
    """Return a number without an interval."""
    return MetricValue(
        name=name, value=value, low=value, high=value, num_items=num_items, protocol=protocol
    )


def _load(path: str, image_size: int | None) -> DVAE:
    """Return a stored image tokenizer that can be trained further."""
    model = image_tokenizer.load(path, image_size=image_size)
    model.need_decoder()
    return model.requires_grad_(True).train()


def _image_config(image: ImageTransformConfig, model: DVAE) -> ImageTransformConfig:
    """Return the transform at the model's size and in the range that it reads."""
    return replace(image, image_size=model.image_size, mean=PIXEL_MEAN, std=PIXEL_STD)


def _summary(model: DVAE) -> str:
    return (
        f"Its codebook has {model.config.num_codes:,} codes, one for 8 x 8 pixels of an image of "
        f"{model.config.image_size} px: the targets of masked image modelling."
    )


def _collator(config: DVAETrainingConfig, inputs: Any) -> ImageCollator:
    del config, inputs
    return ImageCollator()


SPEC = TaskSpec(
    config=DVAETrainingConfig,
    trained_for="image_tokenizer",
    build=lambda config, model, *_: DVAETraining(model, config),
    collator=_collator,
    needs=("image",),
    models=TrainedModels(families=("dvae",)),
    recipes=(TaskRecipe("dvae", "dvae", default=True),),
    pretrains=True,
    tokenizer="none",
    image=_image_config,
    load_model=_load,
    summary=_summary,
    usage=image_tokenizer.USAGE,
)
