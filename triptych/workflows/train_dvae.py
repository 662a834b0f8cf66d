"""From a RunConfig to a trained image tokenizer, and images of what its codes keep."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from torch import Tensor

from triptych.core.config import check, save_yaml
from triptych.core.errors import DataError
from triptych.core.files import write_atomic
from triptych.core.outputs import MetricValue
from triptych.core.rng import seed_everything
from triptych.data.collate.image import ImageCollator
from triptych.data.records import Record
from triptych.data.stream import build_loader
from triptych.data.transforms.pipeline import ImageTransform, ImageTransformConfig
from triptych.distributed.env import is_main
from triptych.evaluation.bootstrap import mean_value
from triptych.models.dvae.model import DVAE, PIXEL_MEAN, PIXEL_STD, unmap_pixels
from triptych.models.dvae.start import spread_codes
from triptych.models.registry import build_model, model_config
from triptych.objectives.dvae import code_usage
from triptych.recipes.config import RunConfig
from triptych.tasks.pretraining.dvae import DVAETraining, DVAETrainingConfig
from triptych.train.trainer import Trainer, TrainResult
from triptych.workflows import image_tokenizer
from triptych.workflows.fusion_choice import choose_fusion
from triptych.workflows.sources import read_training_data, training_loader

NUM_CHECKED = 256
"""Images, spread over the training data, that codes start from and are judged on."""

NUM_SHOWN = 8
"""Images above their reconstructions in `reconstructions.png`."""

SHOWN_FILE = "reconstructions.png"
ROWS_AT_ONCE = 32


def train_image_tokenizer(
    config: RunConfig,
    run_folder: Path,
    *,
    config_file: str,
    model_folder: str,
    resume: bool,
    console: Console | None,
) -> TrainResult:
    """Train a dVAE, and leave its model folder and `reconstructions.png` in the run folder.

    Args:
        config: The run; its task is a `DVAETrainingConfig`.
        run_folder: Receives everything.
        config_file: Name of the resolved config in it.
        model_folder: Name of the model folder in it.
        resume: Go on from the last checkpoint.
        console: Where to report.

    Raises:
        ConfigError: The config is not one of an image tokenizer.
        DataError: The data cannot be read.
    """
    settings = config.task
    assert isinstance(settings, DVAETrainingConfig)
    data = read_training_data(config, run_folder)
    seed_everything(config.train.seed)
    model = _prepare_model(config)
    config = replace(config, image=_image_config(config.image, model))
    images = Reconstructions(data.records, config.image, config.data.seed)
    if settings.init_scale:
        spread_codes(model.encoder, images.images, settings.init_scale)
    task = DVAETraining(model, settings)

    def evaluate(step: int) -> dict[str, float]:
        del step
        images.save(model, run_folder / SHOWN_FILE)
        return {f"eval/{metric.name}": metric.value for metric in images.measure(model)}

    trainer = Trainer(
        task,
        lambda start: training_loader(config, data, (), lambda kind: ImageCollator(), start),
        config=config.train,
        optim=config.optim,
        weights=config.weights,
        run_folder=run_folder,
        evaluate=evaluate if is_main() else None,
        is_vision=lambda name: name.startswith("model.encoder."),
        console=console,
    )
    if is_main():
        save_yaml(config, run_folder / config_file)
    result = trainer.fit(resume=resume)
    if is_main():
        images.save(model, run_folder / SHOWN_FILE)
        image_tokenizer.save(
            run_folder / model_folder,
            model,
            config.image,
            config=config,
            num_records=len(data.records),
            metrics=images.measure(model),
        )
    return result


class Reconstructions:
    """Some images of the training data, and what is left of them in their codes.

    Args:
        records: The training data.
        image: How images are prepared; here they are never cropped.
        seed: Decides which are taken.

    Raises:
        DataError: None of them can be read.
    """

    def __init__(self, records: list[Record], image: ImageTransformConfig, seed: int) -> None:
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
        return [
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


def _prepare_model(config: RunConfig) -> DVAE:
    source = config.model
    if source.init_from is not None:
        model = image_tokenizer.load(source.init_from, image_size=source.image_size)
        model.need_decoder()
        return model.requires_grad_(True).train()
    size = model_config(source.name, image_size=source.image_size)
    model = build_model(choose_fusion(size, source))
    known = isinstance(model, DVAE)
    check(known, "model.name", source.name, "be an image tokenizer, such as dvae_tiny")
    return model  # type: ignore[no-any-return]


def _image_config(image: ImageTransformConfig, model: DVAE) -> ImageTransformConfig:
    """Return the transform at the model's size and in the range that it reads."""
    return replace(image, image_size=model.image_size, mean=PIXEL_MEAN, std=PIXEL_STD)


def _number(name: str, value: float, num_items: int, protocol: str) -> MetricValue:
    """Return a number without an interval."""
    return MetricValue(
        name=name, value=value, low=value, high=value, num_items=num_items, protocol=protocol
    )
