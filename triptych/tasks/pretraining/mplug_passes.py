"""What mPLUG's pre-training runs through the model: a pass of encoders, and one of fused rows.

Both read a batch a row at a time, so that either may run in chunks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.core.host import alike, select
from triptych.core.outputs import FusedFeatures, ImageFeatures, TextFeatures
from triptych.models.base import encode_frames
from triptych.models.mplug.model import MPLUG
from triptych.objectives import IGNORE_INDEX
from triptych.objectives.mlm import distillation_sum, shift_targets, token_sum
from triptych.tasks.pretraining.padding import is_read

STATES = {"mlm": "mlm_states", "prefix_lm": "prefix_states"}
"""Names of the states that the teacher gives for an objective."""

_TARGETS = {"mlm": ("mlm_labels",), "prefix_lm": ("target_token_ids", "target_mask")}

_TEXT_KEYS = {
    "caption": ("token_ids", "text_mask"),
    "mlm": ("mlm_token_ids", "text_mask"),
    "prefix_lm": ("prefix_token_ids", "prefix_mask"),
}


def text_names(active: frozenset[str]) -> list[str]:
    """Return which texts of a pair the objectives read."""
    return ["caption"] * bool(active & {"itc", "itm"}) + [
        name for name in ("mlm", "prefix_lm") if name in active
    ]


def text_width(batch: Mapping[str, Tensor], names: list[str]) -> int:
    """Return the length of the longest of these texts."""
    return max(batch[_TEXT_KEYS[name][0]].shape[1] for name in names)


def stacked_texts(
    batch: Mapping[str, Tensor], names: list[str], width: int
) -> tuple[Tensor, Tensor]:
    """Return the K texts of each pair: (B, K, width) token ids and their mask."""
    ids, masks = (
        torch.stack([_widen(batch[_TEXT_KEYS[name][i]], width) for name in names], dim=1)
        for i in (0, 1)
    )
    return ids, masks


def encode_texts(model: MPLUG, ids: Tensor, mask: Tensor) -> Tensor:
    """Encode (B, K, L) texts in one pass: (B, K, L, D) states."""
    flat = (x.transpose(0, 1).flatten(0, 1) for x in (ids, mask))
    tokens = model.encode_text(*flat).tokens
    return tokens.unflatten(0, (ids.shape[1], len(ids))).transpose(0, 1)  # type: ignore[no-any-return, no-untyped-call]


def encode_pairs(
    model: MPLUG, image: Tensor, ids: Tensor, mask: Tensor, *, embed: bool
) -> tuple[Tensor, ...]:
    """Encode images (B, 3, H, W), or clips (B, F, 3, H, W), and their K texts (B, K, L).

    Args:
        model: Whose encoders.
        image: Pixels.
        ids: Token ids, the caption first if `embed`.
        mask: True = real token.
        embed: Whether image and caption are embedded too.

    Returns:
        (B, N, D) and (B, K, L, D) states; with `embed` (B, E) embeddings of images and captions.
    """
    images, tokens = encode_frames(model, image), encode_texts(model, ids, mask)
    if not embed:
        return images.tokens, tokens
    caption = TextFeatures(tokens[:, 0], mask[:, 0])
    return images.tokens, tokens, model.embed_image(images), model.embed_text(caption)


def embed_pairs(model: MPLUG, image: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return the embeddings alone, (B, E) each: `encode_pairs` without states for other heads."""
    caption = TextFeatures(encode_texts(model, ids, mask)[:, 0], mask[:, 0])
    return model.embed_pixels(image), model.embed_text(caption)


def word_targets(batch: Mapping[str, Tensor], active: frozenset[str]) -> dict[str, Tensor]:
    """Return the tensors of the batch that say which words are to be predicted."""
    return {key: batch[key] for name, keys in _TARGETS.items() if name in active for key in keys}


def sum_counts(rows: Mapping[str, Tensor], active: frozenset[str]) -> list[tuple[str, Tensor]]:
    """Return the names of the sums that `fused_sums` returns, in order, and what each counts."""
    labels = {}
    if "itm" in active:
        labels["itm"] = rows["itm_labels"]
    if "mlm" in active:
        labels["mlm"] = rows["mlm_labels"]
    if "prefix_lm" in active:
        _, labels["prefix_lm"] = shift_targets(rows["target_token_ids"], rows["target_mask"])
    counts = {name: (some != IGNORE_INDEX).sum() for name, some in labels.items()}
    taught = {f"{name}_distilled": counts[name] for name, key in STATES.items() if key in rows}
    return [*counts.items(), *taught.items()]


def fused_sums(
    model: MPLUG,
    names: list[str],
    rows: Mapping[str, Tensor],
    active: frozenset[str],
    *,
    teacher: MPLUG | None = None,
    images: Tensor | None = None,
    wrong_image: Tensor | None = None,
) -> dict[str, Tensor]:
    """Fuse all rows of some pairs at once and sum each objective's cross-entropies.

    Args:
        model: Whose fusion network, heads and decoder.
        names: The K texts of each pair; see `text_names`.
        rows: (B, ...) each. `image` (B, N, D), `tokens` (B, K, L, D), `mask` (B, K, L). For ITM
            `wrong_tokens` (B, L, D), `wrong_mask` (B, L), `itm_labels` (B, 3) of pair, text with
            wrong image, image with wrong text, and, unless `images` is given, `wrong_image`
            (B, N, D). For MLM `mlm_labels` (B, L'), for PrefixLM `target_token_ids` and
            `target_mask` (B, L''); `mlm_states`, `prefix_states` where the teacher teaches.
        active: Of "itm", "mlm" and "prefix_lm".
        teacher: Whose heads read these states.
        images: (I, N, D) of which the first B are `image`.
        wrong_image: (B,) int64, the wrong image of each text among `images`.

    Returns:
        (1,) each, float32: "itm", "mlm", "prefix_lm", "mlm_distilled" and "prefix_lm_distilled", as
        far as there are any, in this order.
    """
    if images is None:
        images = rows["image"]
        if "wrong_image" in rows:
            wrong_image = torch.arange(len(images), 2 * len(images), device=images.device)
            images = torch.cat([images, rows["wrong_image"]])
    parts = _word_rows(rows, names, active)
    if "itm" in active:
        assert wrong_image is not None
        parts["itm"] = _itm_rows(rows, _text(rows, names, "caption"), wrong_image)
    fused = _fuse(model, ImageFeatures(images), parts)
    sums: dict[str, Tensor] = {}
    if "itm" in parts:
        sums["itm"] = token_sum(model.match_logits(fused["itm"]), rows["itm_labels"].T.flatten())
    if "mlm" in parts:
        sums |= _masked_sums(model, teacher, fused["mlm"], rows)
    if "prefix_lm" in parts:
        sums |= _prefix_sums(model, teacher, fused["prefix_lm"], rows)
    return {name: sums[name][None] for name, _ in sum_counts(rows, active)}


def _masked_sums(
    model: MPLUG, teacher: MPLUG | None, fused: FusedFeatures, rows: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Score masked positions only; the vocabulary is the costly axis."""
    labels = rows["mlm_labels"]
    masked = is_read(labels)
    states = fused.text_tokens[:, : labels.shape[1]]  # the text pass pads to its longest text
    logits = model.word_logits(select(states, masked))  # (masked tokens, V)
    labels = select(labels, masked)
    sums = {"mlm": token_sum(logits, labels)}
    if "mlm_states" in rows:
        assert teacher is not None
        with torch.no_grad():
            taught = teacher.word_logits(select(rows["mlm_states"], masked))
        sums["mlm_distilled"] = distillation_sum(logits, taught, labels)
    return sums


def _prefix_sums(
    model: MPLUG, teacher: MPLUG | None, fused: FusedFeatures, rows: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Say the rest of the caption, given the image and the prefix."""
    states, labels = decoder_states(model, rows["image"], fused, rows)
    read = is_read(labels)
    logits = model.decoder.word_logits(select(states, read))  # (target tokens, V)
    labels = select(labels, read)
    sums = {"prefix_lm": token_sum(logits, labels)}
    if "prefix_states" in rows:
        assert teacher is not None
        with torch.no_grad():
            taught = teacher.decoder.word_logits(select(rows["prefix_states"], read))
        sums["prefix_lm_distilled"] = distillation_sum(logits, taught, labels)
    return sums


def taught_states(
    model: MPLUG, names: list[str], rows: Mapping[str, Tensor], taught: frozenset[str]
) -> dict[str, Tensor]:
    """Return the teacher's states of what it teaches: `mlm_states`, `prefix_states`, (B, L, D).

    Args:
        model: The teacher.
        names: See `fused_sums`.
        rows: See `fused_sums`, its states those of the teacher.
        taught: Of "mlm" and "prefix_lm".
    """
    parts = _word_rows(rows, names, taught)
    fused = _fuse(model, ImageFeatures(rows["image"]), parts)
    states: dict[str, Tensor] = {}
    if "mlm" in parts:
        states["mlm_states"] = fused["mlm"].text_tokens[:, : rows["mlm_labels"].shape[1]]
    if "prefix_lm" in parts:
        states["prefix_states"], _ = decoder_states(model, rows["image"], fused["prefix_lm"], rows)
    return states


def decoder_states(
    model: MPLUG, image: Tensor, fused: FusedFeatures, rows: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the decoder's states of the targets (B, L - 1, D), and their labels (B, L - 1)."""
    ids, mask = rows["target_token_ids"], rows["target_mask"]
    inputs, _ = shift_targets(ids, mask)
    labels = alike(lambda ids, mask: shift_targets(ids, mask)[1], ids, mask)
    memory = model.memory_states(ImageFeatures(image), fused)
    return model.decoder.read_once(inputs, labels != IGNORE_INDEX, *memory), labels


@dataclass(frozen=True, slots=True)
class _Rows:
    """Rows of the fusion pass that one objective reads.

    Attributes:
        texts: M texts.
        image_index: (M,) int64, the image of each.
        read: (M, L) bool, True = the objective reads this text state.
    """

    texts: TextFeatures
    image_index: Tensor
    read: Tensor


def _word_rows(
    rows: Mapping[str, Tensor], names: list[str], active: frozenset[str]
) -> dict[str, _Rows]:
    """Return the rows of MLM, which reads masked positions, and of PrefixLM, which reads all."""
    own = torch.arange(len(rows["image"]), device=rows["image"].device)
    parts: dict[str, _Rows] = {}
    for name in ("mlm", "prefix_lm"):
        if name in active:
            text = _text(rows, names, name)
            read = text.mask
            if name == "mlm":
                read = _widen(rows["mlm_labels"] != IGNORE_INDEX, read.shape[1])
            parts[name] = _Rows(text, own, read)
    return parts


def _itm_rows(rows: Mapping[str, Tensor], caption: TextFeatures, wrong_image: Tensor) -> _Rows:
    """Return [pairs; texts with wrong images; images with wrong texts]; [CLS] alone is read."""
    own = torch.arange(len(wrong_image), device=wrong_image.device)
    texts = TextFeatures(
        torch.cat([caption.tokens, caption.tokens, rows["wrong_tokens"]]),
        torch.cat([caption.mask, caption.mask, rows["wrong_mask"]]),
    )
    only_cls = torch.zeros_like(texts.mask)
    only_cls[:, 0] = True
    return _Rows(texts, torch.cat([own, wrong_image, own]), only_cls)


def _text(rows: Mapping[str, Tensor], names: list[str], name: str) -> TextFeatures:
    k = names.index(name)
    return TextFeatures(rows["tokens"][:, k], rows["mask"][:, k])


def _fuse(
    model: MPLUG, image: ImageFeatures, rows: Mapping[str, _Rows]
) -> dict[str, FusedFeatures]:
    """Run the fusion network once for all objectives; the texts of all are equally wide."""
    parts = rows.values()
    texts = TextFeatures(
        torch.cat([part.texts.tokens for part in parts]),
        torch.cat([part.texts.mask for part in parts]),
    )
    image_index = torch.cat([part.image_index for part in parts])
    read = torch.cat([part.read for part in parts])
    fused = model.fuse(image, texts, image_index=image_index, read=read)
    found, start = {}, 0
    for name, part in rows.items():
        end = start + len(part.image_index)
        found[name], start = fused.rows(slice(start, end)), end
    return found


def _widen(x: Tensor, width: int) -> Tensor:
    """Pad (B, L) with zeros on the right."""
    return nn.functional.pad(x, (0, width - x.shape[1]))
