"""Released image tokenizers: DALL-E's own files and transformers' `FlavaImageCodebook`.

Both hold the same encoder under different names. DALL-E's decoder is a file of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from triptych.core.errors import CheckpointError
from triptych.models.conversion import (
    ImportReport,
    KeyTable,
    gather_tensors,
    load_tensors,
    split_tensors,
)
from triptych.models.dvae.config import DVAEConfig
from triptych.models.dvae.model import DVAE

Layout = Literal["transformers", "openai"]

_WRAPPERS = re.compile(r"^(?:(?:module|model|flava|image_codebook|encoder)\.)*(?=blocks\.)")


def encoder_keys(
    config: DVAEConfig, layout: Layout, *, ours: str = "", theirs: str = ""
) -> KeyTable:
    """Return which foreign tensors make which of a `DVAEEncoder`'s.

    Args:
        config: The encoder's sizes.
        layout: Whose names.
        ours: Prefix of our names, such as "image_codebook.".
        theirs: Prefix of the foreign names, such as "image_codebook.".
    """
    return _keys(config, layout, ours, theirs, first=config.group_dims[0], dims=config.group_dims)


def decoder_keys(config: DVAEConfig, *, ours: str = "", theirs: str = "") -> KeyTable:
    """Return which tensors of DALL-E's decoder make which of a `DVAEDecoder`'s."""
    dims = config.group_dims[::-1]
    return _keys(config, "openai", ours, theirs, first=config.code_dim, dims=dims)


def import_encoder(official: Mapping[str, Any], model: DVAE) -> ImportReport:
    """Load an encoder of either layout into a model of the same sizes.

    Args:
        official: A state dict; names may begin with "image_codebook." or "flava.image_codebook.",
            as in a whole FLAVA checkpoint, whose other tensors the report lists as skipped.
        model: Changed in place; a model on the meta device takes the tensors over.

    Returns:
        What became of every tensor of the file and of the encoder.

    Raises:
        CheckpointError: No encoder is in it.
    """
    foreign = {
        _WRAPPERS.sub("", name): tensor
        for name, tensor in official.items()
        if isinstance(tensor, Tensor) and _WRAPPERS.match(name)
    }
    if "blocks.input.weight" not in foreign and "blocks.input.w" not in foreign:
        raise CheckpointError(
            "the file holds no image tokenizer: expected blocks.input.weight (transformers) or "
            "blocks.input.w (DALL-E's encoder)"
        )
    layout: Layout = "transformers" if "blocks.input.weight" in foreign else "openai"
    report = _load(foreign, model, "encoder.", encoder_keys(model.config, layout, ours="encoder."))
    for name, tensor in official.items():
        if isinstance(tensor, Tensor) and not _WRAPPERS.match(name):
            report.dropped[name] = "not of the image tokenizer"
    return report


def import_decoder(official: Mapping[str, Tensor], model: DVAE) -> ImportReport:
    """Load DALL-E's decoder into a model of the same sizes, as `import_encoder` does its encoder.

    Raises:
        CapabilityError: The model has no decoder.
    """
    model.need_decoder()
    return _load(official, model, "decoder.", decoder_keys(model.config, ours="decoder."))


def export_encoder(model: DVAE, layout: Layout = "transformers") -> dict[str, Tensor]:
    """Return the encoder under the names of transformers' `FlavaImageCodebook` or of DALL-E."""
    return split_tensors(model.encoder.state_dict(), encoder_keys(model.config, layout))


def export_decoder(model: DVAE) -> dict[str, Tensor]:
    """Return the decoder under DALL-E's names."""
    return split_tensors(model.need_decoder().state_dict(), decoder_keys(model.config))


def config_for(official: Mapping[str, Any], *, image_size: int = 112) -> DVAEConfig:
    """Return the sizes of the encoder in a state dict of either layout, without a decoder.

    Raises:
        CheckpointError: No encoder is in it.
    """
    shapes = {_WRAPPERS.sub("", k): v.shape for k, v in official.items() if isinstance(v, Tensor)}
    shapes = {re.sub(r"\.w$", ".weight", name): shape for name, shape in shapes.items()}
    try:
        first, last = shapes["blocks.input.weight"], shapes["blocks.output.conv.weight"]
    except KeyError as error:
        raise CheckpointError(f"the file holds no image tokenizer: it has no {error}") from error
    blocks = {
        m[1] for m in (re.match(r"blocks\.group_1\..*?block_(\d+)\.", k) for k in shapes) if m
    }
    return DVAEConfig(
        image_size=image_size,
        num_codes=last[0],
        hidden_dim=first[0],
        blocks_per_group=len(blocks),
        has_decoder=False,
    )


def _load(foreign: Mapping[str, Tensor], model: DVAE, part: str, table: KeyTable) -> ImportReport:
    report = ImportReport()
    wanted = {name: t for name, t in model.state_dict().items() if name.startswith(part)}
    tensors = gather_tensors(foreign, wanted, table, {}, report)
    used = {name for names in table.values() for name in names}
    report.unexpected += [name for name in foreign if name not in used]
    load_tensors(model, tensors)
    return report


def _keys(
    config: DVAEConfig, layout: Layout, ours: str, theirs: str, *, first: int, dims: tuple[int, ...]
) -> KeyTable:
    group_part, path_part = (".group", ".path") if layout == "transformers" else ("", "")
    table = _conv_keys(layout, f"{ours}input", f"{theirs}blocks.input")
    before = first
    for g, dim in enumerate(dims):
        for b in range(config.blocks_per_group):
            mine = f"{ours}groups.{g}.{b}"
            block = f"{theirs}blocks.group_{g + 1}{group_part}.block_{b + 1}"
            if before != dim:
                table |= _conv_keys(layout, f"{mine}.shortcut", f"{block}.id_path")
            for c in range(4):
                path = f"{block}.res_path{path_part}.conv_{c + 1}"
                table |= _conv_keys(layout, f"{mine}.convs.{c}", path)
            before = dim
    return table | _conv_keys(layout, f"{ours}output", f"{theirs}blocks.output.conv")


def _conv_keys(layout: Layout, ours: str, theirs: str) -> KeyTable:
    names = ("weight", "bias") if layout == "transformers" else ("w", "b")
    return {
        f"{ours}.{mine}": (f"{theirs}.{name}",)
        for mine, name in zip(("weight", "bias"), names, strict=True)
    }
