"""Captions of a served model: a search that fits its positions, or draws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from triptych.core.errors import DataError
from triptych.generation.sampling import SamplingConfig
from triptych.serving.loading import ServingSettings
from triptych.tasks.finetuning.captioning import Captioning, CaptioningConfig
from triptych.text import Tokenizer

Draw = tuple[SamplingConfig, torch.Generator]


def build_captioning(
    model: Any,
    tokenizer: Tokenizer,
    settings: ServingSettings,
    *,
    num_beams: int | None,
    prompt_ids: list[int] | None,
) -> Captioning:
    """Return the task with a search that fits the decoder's positions.

    Args:
        model: Says the captions.
        tokenizer: Its tokenizer.
        settings: The model folder's.
        num_beams: Width of the search; None is the folder's own.
        prompt_ids: Tokens that each caption begins with; None is the folder's own prompt.

    Raises:
        DataError: The prompt leaves no room for a caption.
    """
    config = settings.task_config(CaptioningConfig)
    if prompt_ids is not None:
        config = replace(config, prompt="", prompt_to="decoder")
    task = Captioning(model, config, tokenizer)
    task.text_generator.prompt_ids += prompt_ids or []
    length = len(task.text_generator.prompt_ids)
    room = task.model.decoder.config.max_positions - length
    if room < 2:
        raise DataError(f"prompt has {length} tokens and leaves no room: shorten it")
    longest = min(config.beam.max_tokens, room)
    least = min(config.beam.min_tokens, longest - 1)
    beam = replace(config.beam, max_tokens=longest, min_tokens=least)
    if num_beams is not None:
        beam = replace(beam, num_beams=num_beams)
    task.config = replace(config, beam=beam)
    return task


def generate_captions(task: Captioning, image: Tensor, draw: Draw | None) -> list[tuple[int, ...]]:
    """Return the tokens of each image's caption, the best of the search or a drawn one."""
    if draw is None:
        return [texts[0].token_ids for texts in task.search({"image": image})]
    samples = task.text_generator.sample(task.memory({"image": image}), *draw)
    return [texts[0] for texts in samples.texts()]
