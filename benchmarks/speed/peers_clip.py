"""Contests with CLIP's users: a contrastive step of open_clip, files embedded by
sentence-transformers.

Neither package is among our extras: benchmarks/peers-requirements.txt says how they are installed
beside Triptych. Both can do without torchvision here. open_clip imports names of it for its image
transforms, which are not used: where there is no torchvision, these names stand for nothing while
open_clip is imported, and are taken away again. Model, loss and step are open_clip's own.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers import Work
from benchmarks.speed.decode import KINDS, photo
from benchmarks.speed.mplug_batch import caption_lengths
from benchmarks.speed.peers_blip import in_precisions
from triptych.checkpoint.model_folder import save_model_folder
from triptych.core.config import to_dict
from triptych.core.machine import cpu_has_bf16
from triptych.data.source import DataSourceConfig
from triptych.data.transforms.pipeline import ImageTransformConfig
from triptych.distributed.engine import Engine
from triptych.index.build import build_index
from triptych.index.store import VECTORS, map_vectors, read_state
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.init_from import init_vision
from triptych.models.mplug.model import MPLUG
from triptych.nn.encoder import TextConfig
from triptych.nn.vision import VisionConfig
from triptych.serving.loading import load_model
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.text import Tokenizer
from triptych.train.precision import autocast
from triptych.train.step import backward_micro_batch, clip_gradients

CPU = torch.device("cpu")
PAIRS, FILES = 8, 200
CONTEXT, VOCABULARY = 77, 49_408
START, END = 49_406, 49_407
LEARNING_RATE, LARGEST_NORM = 1e-5, 1.0
LARGEST_GAP = 1e-3
"""Of embeddings of the same pixels in fp32; the rest is rounding."""

TORCHVISION = {
    "torchvision": (),
    "torchvision.transforms": (
        *("Normalize", "Compose", "RandomResizedCrop", "InterpolationMode", "ToTensor"),
        *("Resize", "CenterCrop", "ColorJitter", "Grayscale"),
    ),
    "torchvision.transforms.functional": (),
    "torchvision.ops": (),
    "torchvision.ops.misc": ("FrozenBatchNorm2d",),
}
"""What open_clip imports from it."""


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """Let these names be imported where there is no torchvision; none of them does anything."""
    import transformers  # noqa: F401 - it asks whether there is a torchvision once, at its import

    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    for name, contents in TORCHVISION.items():
        module = sys.modules[name] = ModuleType(name)
        for content in contents:
            setattr(module, content, type(content, (), {"BICUBIC": "bicubic"}))
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, module)
    try:
        yield
    finally:
        for name in TORCHVISION:
            del sys.modules[name]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of both sides: open_clip's ViT-B-16.

    Attributes:
        image_size: In pixels, in patches of 16.
        width: Of the image tower, whose heads have 64.
        depth: Layers of either tower.
        text_width: Of the text tower, likewise.
        vocabulary: Tokens.
    """

    image_size: int = 224
    width: int = 768
    depth: int = 12
    text_width: int = 512
    vocabulary: int = VOCABULARY


def two_towers(sizes: Sizes) -> MPLUG:
    """Return our model of these towers; what ITC does not reach is not trained."""
    vision = VisionConfig(
        image_size=sizes.image_size,
        patch_size=16,
        embed_dim=sizes.width,
        depth=sizes.depth,
        num_heads=sizes.width // 64,
        attention_dropout=0.0,
    )
    text = TextConfig(
        vocab_size=sizes.vocabulary,
        embed_dim=sizes.text_width,
        num_heads=sizes.text_width // 64,
        max_positions=CONTEXT,
        dropout=0.0,
        attention_dropout=0.0,
        pre_norm=True,
    )
    config = MPLUGConfig(
        vision=vision,
        text=text,
        text_depth=sizes.depth,
        fusion="none",
        decoder_depth=1,
        proj_dim=sizes.text_width,
    )
    model = MPLUG(config)
    for part in (model.decoder, model.itm_head, model.mlm_head):
        part.requires_grad_(False)
    return model


def texts(lengths: list[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return token ids (B, 77) int64 as open_clip's tokenizer pads them, and their mask."""
    mask = torch.arange(CONTEXT) < torch.tensor(lengths)[:, None]
    ids = torch.randint(1000, START, mask.shape, generator=generator) * mask
    ids[:, 0] = START
    ids[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = END
    return ids, mask


class Ours:
    """Steps as the trainer does them, with ITC alone."""

    def __init__(self, model: MPLUG, image: Tensor, ids: Tensor, mask: Tensor) -> None:
        task = MPLUGPretraining(model, MPLUGPretrainingConfig(queue_size=0, momentum=0.0))
        task.modules.train()
        self.engine = Engine(task)
        self.parameters = [p for p in task.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, fused=True)
        longest = int(mask.sum(1).max())
        keys = torch.arange(len(image))
        self.batch = {"image": image, "token_ids": ids[:, :longest], "text_mask": mask[:, :longest]}
        self.batch |= {"image_key": keys, "caption_key": keys, "index": keys}

    def gradients(self, precision: str) -> float:
        """Compute loss and gradients."""
        context = autocast(CPU, precision)
        found = backward_micro_batch(
            self.engine, self.batch, {"itc": 1.0}, share=1.0, context=context
        )
        return float(found["total"])

    def step(self, precision: str) -> None:
        """Do one optimizer step."""
        self.gradients(precision)
        reduced = self.engine.reduce(self.parameters, torch.zeros(1))
        clip_gradients(reduced.gradients, float(reduced.norm), LARGEST_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


class Theirs:
    """Steps as open_clip_train's train_one_epoch does them."""

    def __init__(self, image: Tensor, ids: Tensor) -> None:
        with torchvision_stand_in():
            import open_clip
        logging.getLogger().setLevel(logging.ERROR)  # it warns that the weights are random
        self.model: Any = open_clip.create_model("ViT-B-16", output_dict=True).train()
        self.loss = open_clip.ClipLoss()
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE, fused=True)
        self.image, self.ids = image, ids

    def gradients(self, precision: str) -> float:
        """Compute loss and gradients."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            loss: Tensor = self.loss(**self.model(self.image, self.ids))
        loss.backward()
        return float(loss.detach())

    def step(self, precision: str) -> None:
        """Do one optimizer step."""
        self.gradients(precision)
        nn.utils.clip_grad_norm_(self.parameters, LARGEST_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def contrastive_step(lengths: list[int], sizes: Sizes | None = None) -> Work:
    """Return an optimizer step of two towers on pairs.

    Args:
        lengths: Of the texts in tokens; open_clip computes all 77 of each.
        sizes: Of ours.
    """
    sizes = sizes or Sizes()
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), 3, sizes.image_size, sizes.image_size)
    image = torch.randn(shape, generator=generator)
    ids, mask = texts(lengths, generator)
    torch.manual_seed(0)
    sides: Mapping[str, Ours | Theirs] = {
        "ours": Ours(two_towers(sizes), image, ids, mask),
        "peer": Theirs(image, ids),
    }
    names = ("fp32", "bf16") if cpu_has_bf16() else ("fp32",)
    ours, peer = (
        {name: (lambda side=side, name=name: side.step(name)) for name in names}  # type: ignore[misc]
        for side in sides.values()
    )
    return Work(
        ours,
        peer,
        {
            "pairs": len(lengths),
            "mean_tokens": round(sum(lengths) / len(lengths), 1),
            "parameters": {n: sum(p.numel() for p in s.parameters) for n, s in sides.items()},
        },
    )


def itc_step() -> Work:
    """Return a step on captions as long as Conceptual Captions'."""
    return contrastive_step(caption_lengths(PAIRS, torch.Generator().manual_seed(0)))


def itc_step_full() -> Work:
    """Return a step on texts of 77 tokens, so that both sides compute the same products."""
    return contrastive_step([CONTEXT] * PAIRS)


@dataclass(frozen=True, slots=True)
class Tower:
    """The image tower of both sides that embed files: CLIP's ViT-B/32.

    Attributes:
        image_size: In pixels.
        patch_size: Likewise.
        width: Of its states; a head has 64.
        depth: Layers.
    """

    image_size: int = 224
    patch_size: int = 32
    width: int = 768
    depth: int = 12


def clip_folder(folder: Path, tower: Tower) -> Any:
    """Write a CLIPModel of transformers with random weights, with its processor; return it."""
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        CLIPTokenizer,
    )

    vision = {"image_size": tower.image_size, "patch_size": tower.patch_size}
    vision |= {"hidden_size": tower.width, "intermediate_size": 4 * tower.width}
    vision |= {"num_hidden_layers": tower.depth, "num_attention_heads": tower.width // 64}
    text = {"num_hidden_layers": 1, "vocab_size": 3, "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text))
    model.save_pretrained(folder)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2}
    size = {"shortest_edge": tower.image_size}
    crop = {"height": tower.image_size, "width": tower.image_size}
    images = CLIPImageProcessorPil(size=size, crop_size=crop)
    CLIPProcessor(images, CLIPTokenizer(vocab=words, merges=[])).save_pretrained(folder)
    return model


def mplug_folder(folder: Path, clip: Any, tower: Tower) -> Path:
    """Write a model folder of ours whose image tower and projection have CLIP's weights."""
    tokenizer = Tokenizer.train(["a photo"], vocab_size=120)
    vision = VisionConfig(
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        embed_dim=tower.width,
        depth=tower.depth,
        num_heads=tower.width // 64,
    )
    text = TextConfig(
        vocab_size=tokenizer.vocab_size, embed_dim=tower.width, num_heads=tower.width // 64
    )
    config = MPLUGConfig(
        vision=vision,
        text=text,
        text_depth=1,
        fusion="none",
        decoder_depth=1,
        proj_dim=clip.config.projection_dim,
    )
    model = MPLUG(config)
    init_vision(model, clip.state_dict(), clip.config.to_dict())
    with torch.no_grad():
        model.image_projection.weight.copy_(clip.visual_projection.weight)
        model.image_projection.bias.zero_()
    return save_model_folder(
        folder,
        config={
            "model": to_dict(config, tagged=True),
            "trained_for": ["pretraining"],
            "task": {"kind": "pretraining"},
            "text": {"max_text_tokens": 20},
        },
        state_dict=model.state_dict(),
        tokenizer_json=tokenizer.to_json(),
        preprocess=to_dict(ImageTransformConfig(image_size=tower.image_size)),
        card="# Random\n",
    )


def write_photos(folder: Path, number: int) -> list[str]:
    """Write JPEGs of 640 x 480, of which a few differ."""
    folder.mkdir()
    different = [photo(KINDS[0], seed) for seed in range(min(number, 16))]
    paths = [folder / f"{index:05d}.jpg" for index in range(number)]
    for index, path in enumerate(paths):
        path.write_bytes(different[index % len(different)])
    return list(map(str, paths))


def embed_files(number: int = FILES, tower: Tower | None = None) -> Work:
    """Return vectors of JPEGs from files."""
    from sentence_transformers import SentenceTransformer

    tower = tower or Tower()
    folder = Path(tempfile.mkdtemp(prefix="triptych_peers_"))
    clip = clip_folder(folder / "clip", tower)
    model = mplug_folder(folder / "mplug", clip, tower)
    paths = write_photos(folder / "photos", number)
    source = DataSourceConfig(path=str(folder / "photos"))
    names = {"fp32": "float32"} | ({"bf16": "bfloat16"} if cpu_has_bf16() else {})
    loaded = {name: load_model(model, device="cpu", precision=name, rounded=True) for name in names}
    sentences = {
        name: SentenceTransformer(
            str(folder / "clip"),
            device="cpu",
            local_files_only=True,
            model_kwargs={"dtype": getattr(torch, dtype)},
        )
        for name, dtype in names.items()
    }

    def index(precision: str) -> Tensor:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            build_index(loaded[precision], source, Path(out))
            state = read_state(Path(out))
            assert state is not None and state.num_images == number
            vectors = map_vectors(Path(out) / state.generation / VECTORS, state.width)
            return torch.cat([torch.tensor(part) for part in vectors])

    def encode(precision: str) -> Any:
        return sentences[precision].encode(paths, batch_size=64, show_progress_bar=False)

    facts = {
        "images": number,
        "pixels": f"{KINDS[0].width} x {KINDS[0].height} to {tower.image_size} px",
        "largest_gap": same_vectors(loaded["fp32"].model, clip, tower.image_size),
    }
    return Work(in_precisions(index), in_precisions(encode), facts)


@torch.inference_mode()
def same_vectors(ours: MPLUG, clip: Any, image_size: int) -> float:
    """Return how far embeddings of the same pixels are apart; fail if it is more than rounding."""
    image = torch.randn(2, 3, image_size, image_size)
    found = clip.eval().get_image_features(pixel_values=image)
    theirs = found if isinstance(found, Tensor) else found.pooler_output
    own = ours.eval().embed_image(ours.encode_image(image))
    gap = float((own - nn.functional.normalize(theirs, dim=-1)).abs().max())
    assert gap < LARGEST_GAP, gap
    return float(f"{gap:.1g}")
