"""Image tokenizers on disk: model folders, and released weights of FLAVA's and DALL-E's."""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor

from triptych.checkpoint.foreign import read_foreign
from triptych.checkpoint.model_folder import (
    CONFIG,
    load_model_folder,
    stored_config,
)
from triptych.checkpoint.pickles import read_dalle_module
from triptych.core.errors import CheckpointError, ConfigError, DataError
from triptych.core.reading import read_json_object
from triptych.data.codes import CodesAbout
from triptych.models.dvae.convert import config_for, import_encoder
from triptych.models.dvae.model import DVAE, DVAEEncoder
from triptych.models.families import restore_model

START_HINT = (
    "It predicts codes: set task.image_tokenizer to a model folder of `triptych train dvae`, or to "
    "released weights."
)
"""What a new config of a task on codes must still be given."""

USAGE = (
    "from triptych.tasks.pretraining import image_tokenizer\n\n"
    'model = image_tokenizer.load("path/to/this/folder")\n'
    "codes = model.codes(image)  # (B, 3, H, W) in [0.1, 0.9] to (B, P)"
)
"""Python lines of the model card of an image tokenizer."""


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
        plain = read_json_object(folder / CONFIG)
    except DataError:
        return False
    return not isinstance(plain.get("model"), dict)


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
