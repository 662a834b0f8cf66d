"""Foreign checkpoints: apply a key table, and report what became of every tensor."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from triptych.core.errors import CheckpointError, ConfigError

KeyTable = dict[str, tuple[str, ...]]
"""Our name to the foreign names whose tensors, joined along dim 0, it holds."""

Resize = Callable[[Tensor], Tensor]
"""Bring a foreign tensor to the size that the model wants."""

Allowed = Literal["missing", "reshaped", "unexpected"]
"""The faults that `ImportReport.require` may tolerate."""

FIRST = 3  # names that an error message shows of many


@dataclass(slots=True)
class ImportReport:
    """What became of every tensor of a foreign checkpoint and of the model.

    Attributes:
        loaded: Our names that took their values from the file, resized ones included.
        resized: Those of them that were brought to another size.
        dropped: Foreign names that the model has no tensor for, each with the reason.
        missing: Our names that the file does not have; the model keeps its own values.
        reinitialised: Our names whose tensor in the file has another shape, with both shapes; the
            model keeps its own values.
        unexpected: Foreign names that nothing explains.
        temperature: The file's ITC temperature, which belongs to the task; None when absent.
        contrast: The file's scalars behind it as they are, by our tasks' names.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    reinitialised: dict[str, str] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    temperature: float | None = None
    contrast: dict[str, float] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether all the model's values come from the file and every name in it is understood."""
        return not (self.missing or self.reinitialised or self.unexpected)

    def require(
        self,
        what: str,
        *,
        optional: Sequence[str] = (),
        allow: Iterable[Allowed] = (),
    ) -> None:
        """Raise unless the import is one to rely on.

        Args:
            what: The file and the model, for the message: "x.pth as mplug_base_patch16_256".
            optional: Patterns of our names that a good file may lack, such as heads.
            allow: Kinds of faults to let pass.

        Raises:
            CheckpointError: A tensor is missing, has another shape, or is not understood.
        """
        fatal = [name for name in self.missing if not _matches(name, optional)]
        faults: list[tuple[Allowed, str, list[str]]] = [
            ("missing", "not in the file", fatal),
            (
                "reshaped",
                "of another shape",
                [f"{name}: {why}" for name, why in self.reinitialised.items()],
            ),
            ("unexpected", "not understood", self.unexpected),
        ]
        told = [
            f"{len(names)} tensor{' is' if len(names) == 1 else 's are'} {text} "
            f"(such as {'; '.join(names[:FIRST])})"
            for kind, text, names in faults
            if names and kind not in set(allow)
        ]
        if told:
            raise CheckpointError(f"cannot import {what}: {', and '.join(told)}")

    def summary(self, *, long: bool = True) -> str:
        """Return what a person needs to judge the import.

        Args:
            long: A line a group, and one for each name that needs a look; else one line in all.
        """
        reasons: dict[str, int] = {}
        for reason in self.dropped.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines = [f"loaded {len(self.loaded)} tensors, {len(self.resized)} of them resized"]
        lines += [f"skipped {count}: {reason}" for reason, count in reasons.items()]
        if not long:
            counts = {
                "randomly initialised": len(self.missing) + len(self.reinitialised),
                "not understood": len(self.unexpected),
            }
            return "; ".join(lines + [f"{n} {text}" for text, n in counts.items() if n])
        lines += [f"resized: {name}" for name in self.resized]
        lines += [f"not in the file, randomly initialised: {name}" for name in self.missing]
        lines += [
            f"another shape, randomly initialised: {name} ({why})"
            for name, why in self.reinitialised.items()
        ]
        lines += [f"not understood: {name}" for name in self.unexpected]
        return "\n".join(lines)


def gather_tensors(
    foreign: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    table: KeyTable,
    resizes: Mapping[str, Resize],
    report: ImportReport,
) -> dict[str, Tensor]:
    """Collect the model's tensors from a foreign state dict.

    Args:
        foreign: The foreign state dict, names normalised.
        wanted: The model's own state dict.
        table: Which foreign tensors make which of ours.
        resizes: How to bring a tensor of another shape to size, by our name.
        report: Filled with loaded, resized, missing and reinitialised names.

    Returns:
        Tensors by our name, in the model's shapes and dtypes.
    """
    found: dict[str, Tensor] = {}
    for ours, mine in wanted.items():
        names = table.get(ours, ())
        if not names or any(name not in foreign for name in names):
            report.missing.append(ours)
            continue
        tensor = _joined([foreign[name] for name in names])
        fits = tensor is not None and tensor.shape == mine.shape
        if tensor is not None and not fits and ours in resizes:
            resized = _resized(tensor, resizes[ours])
            fits = resized is not None and resized.shape == mine.shape
            if fits:
                tensor = resized
                report.resized.append(ours)
        if tensor is None or not fits:
            shapes = " and ".join(str(tuple(foreign[name].shape)) for name in names)
            report.reinitialised[ours] = f"{shapes} for {tuple(mine.shape)}"
            continue
        found[ours] = tensor.to(mine.dtype)
        report.loaded.append(ours)
    return found


def explain_rest(
    names: Iterable[str],
    used: Iterable[str],
    reason: Callable[[str], str | None],
    report: ImportReport,
) -> None:
    """Sort the foreign names that no row of the table uses into dropped and unexpected.

    Args:
        names: All names of the file.
        used: Those that the table uses.
        reason: Returns why the model has no such tensor; None when nothing explains it.
        report: Filled with dropped and unexpected names.
    """
    known = set(used)
    for name in names:
        if name in known:
            continue
        why = reason(name)
        if why is None:
            report.unexpected.append(name)
        else:
            report.dropped[name] = why


def read_scalars(foreign: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, float]:
    """Return the scalars that a file has, by our names; a float holds a float32 bit by bit.

    Args:
        foreign: The foreign state dict, names normalised.
        names: Our name to the foreign one.
    """
    return {
        ours: float(foreign[name])
        for ours, name in names.items()
        if name in foreign and not foreign[name].is_meta
    }


def used_names(table: KeyTable) -> set[str]:
    """Return every foreign name that a table reads."""
    return {name for names in table.values() for name in names}


def first_reason(name: str, patterns: Sequence[tuple[str, str]]) -> str | None:
    """Return the reason of the first (pattern, reason) whose pattern is the whole name."""
    return next((why for pattern, why in patterns if re.fullmatch(pattern, name)), None)


def without_prefix(names: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors below a prefix such as "visual.", by the rest of their names."""
    return {k.removeprefix(prefix): t for k, t in names.items() if k.startswith(prefix)}


def split_tensors(state: Mapping[str, Tensor], table: KeyTable) -> dict[str, Tensor]:
    """Return our tensors under their foreign names: the reverse of `gather_tensors`."""
    foreign: dict[str, Tensor] = {}
    for ours, names in table.items():
        if len(names) == 1:
            foreign[names[0]] = state[ours]
            continue
        for name, part in zip(names, state[ours].chunk(len(names)), strict=True):
            foreign[name] = part.clone()
    return foreign


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors into a model; one on the meta device takes them over instead of copying.

    Tensors that share memory in the file (tied there) do not share it in the model.
    """
    on_meta = any(parameter.is_meta for parameter in model.parameters())
    mine = dict(tensors)
    if on_meta:
        known: set[int] = set()
        for name, tensor in mine.items():
            address = 0 if tensor.is_meta else tensor.untyped_storage().data_ptr()
            mine[name] = tensor.clone() if address in known else tensor
            known |= {address} - {0}
    model.load_state_dict(mine, strict=False, assign=on_meta)


def linear_keys(ours: str, *foreign: str) -> KeyTable:
    """Map the weight and bias of a layer to those of one layer, or of several packed in order."""
    return {
        f"{ours}.{kind}": tuple(f"{name}.{kind}" for name in foreign) for kind in ("weight", "bias")
    }


InitPart = Callable[[Any, Mapping[str, Tensor], Mapping[str, Any]], ImportReport]
"""Fills a part of a model from foreign tensors and their `config.json`."""


class AdaptConfig(Protocol):
    """Makes a variant's config fit a released file."""

    def __call__(
        self,
        foreign: Mapping[str, Tensor],
        config: Any,
        /,
        *,
        image_size: int | None,
        trained_for: str,
    ) -> Any:
        """Return the config with which the file loads whole.

        Args:
            foreign: The file's tensors.
            config: The variant that the user named.
            image_size: Side in pixels that was asked for; None keeps the file's.
            trained_for: What the file was trained for.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """How one family of models comes from and goes to the files of its released code.

    Attributes:
        family: The `kind` of its config, such as "mplug".
        signatures: Patterns of names that only files of this family have, for a clear message
            when a file of another family is given.
        adapt_config: Makes a variant's config fit a file.
        import_state: Fills a model, which may be on the meta device, and reports what became of
            every tensor.
        export_state: The model's tensors under the released names.
        trained_for: What a file was trained for, by its names: "pretraining", "captioning",
            "retrieval", "vqa" and so on.
        optional: Patterns of our names that a good file may lack, such as heads, by what the file
            was trained for.
        contrast: Names of the scalars of contrastive losses that tasks keep beside the model, such
            as temperatures, and the released ones.
        import_head: The classifier of a fine-tuned file, as weights of ours; None if the family's
            are not read.
        head_names: From our names of a folder's classifier and the kind of its task to the released
            ones; None where the layout has none for it.
        wrapper: Key under which the released code stores its state dict; None for a bare one.
        folder_configs: JSON files, by name, of an export that transformers reads, from the model
            and the mean and deviation of its images; None if there is no such export.
        export_note: What to tell who exports a model; None for nothing.
        config_from_folder: From a folder's `config.json` and a variant, the variant with what only
            that file says, such as the number of heads; None where there are no such folders.
        max_text_tokens: Longest text that the released code gives the model.
        max_question_tokens: Longest question with the words that follow it.
        max_words: Words that the released code keeps of a caption, which it cleans; None where it
            reads captions as they are.
        init_vision: Fills a new model's image side from published image weights and the
            `config.json` beside them; None if the family has no such start.
        init_text: The same for its text side.
        mean: Mean of each channel, for values in [0, 1], that the released weights expect.
        std: Standard deviation of each channel.
        source: Paper and code that the layout is of, for the model card.
    """

    family: str
    signatures: tuple[str, ...]
    adapt_config: AdaptConfig
    import_state: Callable[[Mapping[str, Tensor], Any], ImportReport]
    export_state: Callable[[Any], dict[str, Tensor]]
    trained_for: Callable[[Iterable[str]], str]
    optional: Callable[[str], tuple[str, ...]] = lambda _: ()
    contrast: Mapping[str, str] = field(default_factory=dict)
    import_head: Callable[[Mapping[str, Tensor]], dict[str, Tensor] | None] | None = None
    head_names: Callable[[Iterable[str], str], dict[str, str] | None] = lambda *_: None
    wrapper: str | None = "model"
    folder_configs: (
        Callable[[Any, Sequence[float], Sequence[float]], dict[str, dict[str, Any]]] | None
    ) = None
    export_note: Callable[[Any], str] | None = None
    config_from_folder: Callable[[Mapping[str, Any], Any], Any] | None = None
    max_text_tokens: int = 40
    max_question_tokens: int = 25
    max_words: int | None = 30
    init_vision: InitPart | None = None
    init_text: InitPart | None = None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    source: str

    def recognises(self, names: Iterable[str]) -> bool:
        """Say whether names are of this family's released files."""
        return any(_matches(name, self.signatures) for name in names)


def _joined(parts: list[Tensor]) -> Tensor | None:
    """Join tensors along dim 0; None where their other sizes differ."""
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts) if len({part.shape[1:] for part in parts}) == 1 else None


def _resized(tensor: Tensor, resize: Resize) -> Tensor | None:
    """Resize; None where the tensor is of no shape that can be resized."""
    try:
        return resize(tensor)
    except (ConfigError, IndexError, RuntimeError):
        return None


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)


def bert_embedding_keys(ours: str, theirs: str) -> KeyTable:
    """Map a `TextEmbedding` to BERT's embeddings.

    Args:
        ours: Such as "text_encoder.embedding".
        theirs: What precedes "embeddings", such as "bert".
    """
    table: KeyTable = {
        f"{ours}.{mine}.weight": (f"{theirs}.embeddings.{mine}_embeddings.weight",)
        for mine in ("word", "position", "token_type")
    }
    return table | linear_keys(f"{ours}.norm", f"{theirs}.embeddings.LayerNorm")


def bert_block_keys(ours: str, theirs: str, *, cross: bool = False) -> KeyTable:
    """Map a post-norm `Block` to a layer of BERT.

    Args:
        ours: Such as "text_encoder.blocks.0".
        theirs: Such as "bert.encoder.layer.0".
        cross: Whether the layer has cross-attention, where BERT's decoders have it.
    """
    table = linear_keys(
        f"{ours}.attention.qkv",
        *(f"{theirs}.attention.self.{part}" for part in ("query", "key", "value")),
    )
    table |= linear_keys(f"{ours}.attention.out", f"{theirs}.attention.output.dense")
    table |= linear_keys(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
    if cross:
        other, mine = f"{theirs}.crossattention", f"{ours}.cross_attention"
        table |= linear_keys(f"{mine}.query", f"{other}.self.query")
        table |= linear_keys(f"{mine}.key_value", f"{other}.self.key", f"{other}.self.value")
        table |= linear_keys(f"{mine}.out", f"{other}.output.dense")
        table |= linear_keys(f"{ours}.cross_norm", f"{other}.output.LayerNorm")
    table |= linear_keys(f"{ours}.mlp.up", f"{theirs}.intermediate.dense")
    table |= linear_keys(f"{ours}.mlp.down", f"{theirs}.output.dense")
    return table | linear_keys(f"{ours}.mlp_norm", f"{theirs}.output.LayerNorm")


def bert_head_keys(ours: str, theirs: str) -> KeyTable:
    """Map a `VocabularyHead`, its own matrix apart, to BERT's MLM head.

    Args:
        ours: Such as "mlm_head".
        theirs: Such as "cls.predictions".
    """
    table: KeyTable = {f"{ours}.bias": (f"{theirs}.bias",)}
    table |= linear_keys(f"{ours}.dense", f"{theirs}.transform.dense")
    return table | linear_keys(f"{ours}.norm", f"{theirs}.transform.LayerNorm")


def clip_vision_keys(ours: str, theirs: str, depth: int) -> KeyTable:
    """Map a `VisionTransformer` to OpenAI's image tower.

    Args:
        ours: Such as "visual_encoder".
        theirs: Such as "visual".
        depth: Number of blocks.
    """
    table: KeyTable = {
        f"{ours}.class_embedding": (f"{theirs}.class_embedding",),
        f"{ours}.position_embedding": (f"{theirs}.positional_embedding",),
        f"{ours}.patch_embedding.weight": (f"{theirs}.conv1.weight",),
    }
    table |= linear_keys(f"{ours}.norm_pre", f"{theirs}.ln_pre")
    table |= linear_keys(f"{ours}.norm_post", f"{theirs}.ln_post")
    for layer in range(depth):
        mine, block = f"{ours}.blocks.{layer}", f"{theirs}.transformer.resblocks.{layer}"
        for kind in ("weight", "bias"):
            table[f"{mine}.attention.qkv.{kind}"] = (f"{block}.attn.in_proj_{kind}",)
        table |= linear_keys(f"{mine}.attention.out", f"{block}.attn.out_proj")
        table |= linear_keys(f"{mine}.attention_norm", f"{block}.ln_1")
        table |= linear_keys(f"{mine}.mlp.up", f"{block}.mlp.c_fc")
        table |= linear_keys(f"{mine}.mlp.down", f"{block}.mlp.c_proj")
        table |= linear_keys(f"{mine}.mlp_norm", f"{block}.ln_2")
    return table


def transformers_clip_vision_keys(ours: str, theirs: str, depth: int) -> KeyTable:
    """Map a `VisionTransformer` to CLIP's image tower as transformers names it.

    Args:
        ours: Such as "visual_encoder".
        theirs: Such as "vision_model".
        depth: Number of blocks.
    """
    table: KeyTable = {
        f"{ours}.class_embedding": (f"{theirs}.embeddings.class_embedding",),
        f"{ours}.position_embedding": (f"{theirs}.embeddings.position_embedding.weight",),
        f"{ours}.patch_embedding.weight": (f"{theirs}.embeddings.patch_embedding.weight",),
    }
    table |= linear_keys(f"{ours}.norm_pre", f"{theirs}.pre_layrnorm")
    table |= linear_keys(f"{ours}.norm_post", f"{theirs}.post_layernorm")
    for layer in range(depth):
        mine, block = f"{ours}.blocks.{layer}", f"{theirs}.encoder.layers.{layer}"
        table |= linear_keys(
            f"{mine}.attention.qkv",
            *(f"{block}.self_attn.{part}_proj" for part in ("q", "k", "v")),
        )
        table |= linear_keys(f"{mine}.attention.out", f"{block}.self_attn.out_proj")
        table |= linear_keys(f"{mine}.attention_norm", f"{block}.layer_norm1")
        table |= linear_keys(f"{mine}.mlp.up", f"{block}.mlp.fc1")
        table |= linear_keys(f"{mine}.mlp.down", f"{block}.mlp.fc2")
        table |= linear_keys(f"{mine}.mlp_norm", f"{block}.layer_norm2")
    return table
