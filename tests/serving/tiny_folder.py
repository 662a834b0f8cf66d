"""Model folders of a few thousand random weights, which know a handful of words."""

from dataclasses import replace
from pathlib import Path

import torch

from triptych.checkpoint.model_folder import save_model_folder
from triptych.core.config import to_dict
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.generation.search import BeamConfig
from triptych.models.families import model_config
from triptych.models.flava.config import FLAVAConfig, FLAVAFusionConfig, FLAVAVisionConfig
from triptych.models.flava.model import FLAVA
from triptych.models.mplug.model import MPLUG
from triptych.models.vlmo.config import VLMoConfig
from triptych.models.vlmo.model import VLMo
from triptych.nn.encoder import TextConfig
from triptych.tasks.finetuning.captioning import CaptioningConfig
from triptych.tasks.finetuning.grounding import GroundingConfig
from triptych.tasks.finetuning.vqa import VQAConfig
from triptych.tasks.registry import build_task, task_spec
from triptych.tasks.spec import TaskConfig
from triptych.text import Tokenizer

IMAGE_SIZE = 16
WORDS = ["a small red circle and a large blue square", "what color is the star ?", "yes no green"]
SHORT = BeamConfig(num_beams=2, min_tokens=1, max_tokens=6)
TASKS = {
    "pretraining": None,
    "captioning": CaptioningConfig(beam=SHORT),
    "retrieval": None,
    "vqa": VQAConfig(beam=SHORT),
    "grounding": GroundingConfig(num_bins=9, start_unused=0, first_bin_unused=1),
}


def write_tiny_folder(
    folder: Path, trained_for: str, *, vocab_size: int | None = None, seed: int = 1
) -> Path:
    """Write a folder as `triptych train` does, with random weights from a fixed seed."""
    tokenizer = Tokenizer.train(WORDS, vocab_size=120, num_unused=12)
    size = vocab_size or tokenizer.vocab_size
    config = model_config("mplug_tiny", image_size=IMAGE_SIZE, vocab_size=size)
    config = replace(
        config,
        vision=replace(config.vision, embed_dim=32, depth=1, num_heads=2),
        text=replace(config.text, embed_dim=32, num_heads=2),
        text_depth=1,
        decoder_depth=1,
        proj_dim=8,
        init_std=0.3,
    )
    torch.manual_seed(seed)
    model = MPLUG(config)
    task = TASKS[trained_for]
    return save_model_folder(
        folder,
        config={
            "model": to_dict(config, tagged=True),
            "trained_for": [trained_for],
            "task": {"kind": trained_for} if task is None else to_dict(task, tagged=True),
            "text": {"max_text_tokens": 20, "max_words": 30, "question": 12, "phrase": 12},
        },
        state_dict=model.state_dict(),
        tokenizer_json=tokenizer.to_json(),
        preprocess=to_dict(ImageTransformConfig(image_size=IMAGE_SIZE)),
        card="# Tiny\n",
    )


def write_tiny_vlmo(
    folder: Path, trained_for: str = "pretraining", task: TaskConfig | None = None
) -> Path:
    """Write a VLMo's folder with the same words and image size, patches of 8 px.

    Args:
        folder: Where.
        trained_for: What it says it was trained for.
        task: Settings of a task with a classifier, whose weights are random too.
    """
    tokenizer = Tokenizer.train(WORDS, vocab_size=120, num_unused=12)
    config = VLMoConfig(
        vocab_size=tokenizer.vocab_size,
        image_size=IMAGE_SIZE,
        patch_size=8,
        max_text_tokens=24,
        embed_dim=32,
        depth=2,
        num_heads=2,
        fused_from=1,
        proj_dim=8,
        init_std=0.3,
    )
    torch.manual_seed(1)
    model = VLMo(config)
    head = None if task is None else build_task(task, model, tokenizer).modules["head"]
    return save_model_folder(
        folder,
        config={
            "model": to_dict(model.config, tagged=True),
            "trained_for": [trained_for if task is None else task_spec(task).trained_for],
            "task": {} if task is None else to_dict(task, tagged=True),
            "text": {"max_text_tokens": 20, "max_words": 30, "question": 12, "phrase": 12},
        },
        state_dict=model.state_dict(),
        tokenizer_json=tokenizer.to_json(),
        preprocess=to_dict(ImageTransformConfig(image_size=IMAGE_SIZE)),
        card="# Tiny VLMo\n",
        head=None if head is None else head.state_dict(),
    )


def write_tiny_flava(folder: Path, trained_for: str = "pretraining") -> Path:
    """Write a FLAVA's folder with the same words and image size.

    It keeps all words of a text, and pads texts as the released FLAVA does.
    """
    tokenizer = Tokenizer.train(WORDS, vocab_size=120, num_unused=12)
    config = FLAVAConfig(
        vision=FLAVAVisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            embed_dim=32,
            depth=1,
            num_heads=2,
            stem_widths=(8, 8),
        ),
        text=TextConfig(
            vocab_size=tokenizer.vocab_size,
            embed_dim=32,
            num_heads=2,
            max_positions=24,
            dropout=0.0,
            attention_dropout=0.0,
            pre_norm=True,
        ),
        text_depth=1,
        fusion=FLAVAFusionConfig(embed_dim=32, depth=1, num_heads=2),
        proj_dim=8,
        num_codes=11,
        pad_attention="attended",
        padded_text_len=22,
        init_std=0.3,
    )
    torch.manual_seed(1)
    return save_model_folder(
        folder,
        config={
            "model": to_dict(config, tagged=True),
            "trained_for": [trained_for],
            "text": {"max_text_tokens": 20, "max_words": None, "question": 12, "phrase": 12},
        },
        state_dict=FLAVA(config).state_dict(),
        tokenizer_json=tokenizer.to_json(),
        preprocess=to_dict(ImageTransformConfig(image_size=IMAGE_SIZE)),
        card="# Tiny FLAVA\n",
    )
