"""Image tokenizers on disk: model folders, and released weights of FLAVA's and DALL-E's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from torch import Tensor

from triptych.checkpoint.dalle import read_dalle_module
from triptych.checkpoint.foreign import read_foreign
from triptych.checkpoint.model_card import build_model_card
from triptych.checkpoint.model_folder import (
    CONFIG,
    load_model_folder,
    save_model_folder,
    stored_config,
)
from triptych.core.config import to_dict
from triptych.core.errors import CheckpointError, ConfigError
from triptych.core.machine import current_commit
from triptych.core.outputs import MetricValue
from triptych.data.codes import CodesAbout
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.models.dvae.convert import config_for, import_encoder
from triptych.models.dvae.model import DVAE, DVAEEncoder
from triptych.models.families import restore_model
from triptych.recipes.config import RunConfig

TRAINED_FOR = "image_tokenizer"


def load(path: str | Path, *, image_size: int | None = None) -> DVAE:
    """Load an image tokenizer, frozen, on the CPU in fp32.

    Args:
        path: A model folder that `triptych train dvae` made; or released weights: a folder or file
            of transformers' FLAVA or of its codebook alone, or DALL-E's `encoder.pkl`.
        image_size: Side in pixels of its input, 8 times the patches on a side; None keeps the
            stored one (112 for released weights).

    Raises:
        ConfigError: No path is given.
        CheckpointError: There is no image tokenizer at that path.
    """
    if not str(path):
        raise ConfigError(
            "task.image_tokenizer is empty: name a model folder with an image tokenizer, such as "
            "`triptych train dvae` makes, or released weights of FLAVA's or DALL-E's"
        )
    path = Path(path)
    if path.is_file() or _is_released(path):
        return _load_released(path, image_size)
    stored = load_model_folder(path)
    plain = stored_config(stored.config, path)
    model = restore_model(plain, stored.state_dict, str(path), image_size=image_size)
    if not isinstance(model, DVAE):
        raise CheckpointError(f"{path} holds no image tokenizer but a {type(model).__name__}")
    return model.requires_grad_(False).eval()


def save(
    folder: Path,
    model: DVAE,
    image: ImageTransformConfig,
    *,
    config: RunConfig,
    num_records: int,
    metrics: Sequence[MetricValue] = (),
) -> None:
    """Write the model folder of a run that trained an image tokenizer.

    Args:
        folder: Where.
        model: What was trained.
        image: How images were prepared.
        config: The run.
        num_records: Images that it was trained on.
        metrics: What is known of it.
    """
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    sizes = model.config
    card = build_model_card(
        title=f"{config.model.name}: {config.recipe}",
        summary=(
            f"A discrete VAE with {parameters:.1f} M parameters: {sizes.num_codes:,} codes, one "
            f"for 8 x 8 pixels, trained for {config.train.max_steps:,} steps of "
            f"{config.train.local_batch_size} images of {sizes.image_size} px. Its codes are the "
            "targets of masked image modelling."
        ),
        data={source.path: f"reader {source.reader}" for source in config.data.train}
        | {"in all": f"{num_records} records"},
        recipe=yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True),
        metrics=metrics,
        commit=current_commit(),
        usage=(
            "from triptych.recipes import image_tokenizer\n\n"
            'model = image_tokenizer.load("path/to/this/folder")\n'
            "codes = model.codes(image)  # (B, 3, H, W) in [0.1, 0.9] to (B, P)"
        ),
    )
    save_model_folder(
        folder,
        config={
            "model": to_dict(sizes, tagged=True),
            "trained_for": [TRAINED_FOR],
            "task": to_dict(config.task, tagged=True),
            "text": None,
        },
        state_dict=model.state_dict(),
        tokenizer_json=None,
        preprocess=to_dict(image),
        card=card,
    )


def fingerprint(encoder: DVAEEncoder) -> str:
    """Return what tells an encoder's weights from any others: 16 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def about_codes(encoder: DVAEEncoder, image_size: int) -> CodesAbout:
    """Return what stored codes of an encoder say about themselves.

    Args:
        encoder: Makes the codes.
        image_size: Side in pixels of the image that it sees.
    """
    return CodesAbout(fingerprint(encoder), encoder.config.num_codes, image_size)


def _is_released(folder: Path) -> bool:
    """Return whether a folder has a `config.json` that is not one of ours."""
    try:
        plain = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(plain, dict) and not isinstance(plain.get("model"), dict)


def _load_released(path: Path, image_size: int | None) -> DVAE:
    tensors = _released_tensors(path)
    config = config_for(tensors, image_size=image_size or 112)
    model = DVAE(config)
    report = import_encoder(tensors, model)
    if not report.is_complete:
        raise CheckpointError(f"{path} holds no whole image tokenizer:\n{report.summary()}")
    return model.requires_grad_(False).eval()


def _released_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".pkl":
        return read_dalle_module(path)
    return read_foreign(path).tensors
