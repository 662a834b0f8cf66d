"""A model's image and text encoders as ONNX: embeddings whose dot product is the similarity.

`onnxruntime` and all that reads ONNX then need neither Triptych nor torch. What prepares the inputs
lies beside the graphs: `preprocess.json`, and a `tokenizer.json` that cleans captions as training
does, adds [CLS] and [SEP], cuts and pads.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray
from tokenizers import Regex, normalizers, processors
from torch import Tensor, nn

from triptych.core.errors import CapabilityError, CheckpointError
from triptych.core.extras import import_extra
from triptych.core.files import make_folder, write_atomic, write_json, writing
from triptych.data.transforms.pipeline import resize
from triptych.models.families import model_sizes
from triptych.scenes.config import SceneConfig
from triptych.scenes.language import caption_scene
from triptych.scenes.render import render_scene
from triptych.scenes.world import generate_scene
from triptych.serving.engine import Engine
from triptych.serving.loading import LoadedModel, load_model
from triptych.text import CLS, PAD, SEP

OPSET = 18
IMAGE, TEXT = "image_encoder.onnx", "text_encoder.onnx"
MAX_ERROR = 1e-4
"""Of an embedding, whose length is 1, against the model's own in float32."""
CHECKED_BATCHES = (1, 3, 8)
CHECKED_PX = 96
Arrays = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class OnnxExport:
    """What was written, and how far onnxruntime's embeddings are from the model's own.

    Attributes:
        folder: The files.
        opset: Of both graphs.
        width: Of an embedding, E.
        errors: Largest absolute difference by encoder ("image", "text") and number of inputs in a
            batch.
    """

    folder: Path
    opset: int
    width: int
    errors: Mapping[str, Mapping[int, float]]

    @property
    def max_error(self) -> float:
        """The largest difference of all."""
        return max(error for found in self.errors.values() for error in found.values())


class _ImageEncoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Embed pixels (B, 3, S, S): (B, E), of length 1."""
        return self.model.embed_image(self.model.encode_image(image))  # type: ignore[no-any-return]


class _TextEncoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, token_ids: Tensor, text_mask: Tensor) -> Tensor:
        """Embed texts (B, L): (B, E), of length 1."""
        features = self.model.encode_text(token_ids, text_mask)
        return self.model.embed_text(features)  # type: ignore[no-any-return]


def export_onnx(model_folder: str | Path, out: Path) -> OnnxExport:
    """Write both encoders of a model, and compare them with the model in onnxruntime.

    The comparison goes all the way, from images and sentences of the built-in world to embeddings,
    in batches of several sizes.

    Args:
        model_folder: What `triptych.load` takes.
        out: The new folder; it appears whole or not at all.

    Raises:
        CapabilityError: The model does not embed, its code cannot be exported, the libraries are
            missing, or the embeddings differ by more than 1e-4.
        CheckpointError: The model folder is damaged, or `out` exists.
    """
    for name in ("onnx", "onnxscript"):  # torch writes graphs with them
        import_extra(name, "onnx", "the export")
    runtime = import_extra("onnxruntime", "onnx", "the export")
    if out.exists():
        raise CheckpointError(f"{out} exists: choose another folder, or remove it")
    loaded = load_model(model_folder, device="cpu", precision="fp32")
    loaded.check_trained("embed")
    make_folder(out.parent)
    with (
        writing(str(out), out.parent, kind=CheckpointError),
        tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary,
    ):
        folder = Path(temporary)
        _write_graphs(loaded, folder)
        write_atomic(folder / "tokenizer.json", ready_tokenizer(loaded))
        image = loaded.image
        settings = {"image_size": image.image_size, "mean": image.mean, "std": image.std}
        write_json(folder / "preprocess.json", settings | {"resample": "bicubic", "mode": "RGB"})
        errors, width = _compare(Engine(loaded), folder, runtime)
        found = OnnxExport(out, OPSET, width, errors)
        if not found.max_error <= MAX_ERROR:
            raise CapabilityError(
                f"{model_folder}: in onnxruntime its embeddings differ by {found.max_error:.1e}, "
                f"more than {MAX_ERROR:.0e}: please report it"
            )
        write_atomic(folder / "README.md", _readme(loaded, found))
        kept = folder / "whole"
        kept.mkdir()
        for path in [path for path in folder.iterdir() if path != kept]:
            shutil.move(path, kept)
        kept.rename(out)
    return found


def _write_graphs(loaded: LoadedModel, folder: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    # Two is the shortest text: [CLS] and [SEP]. Torch takes lengths of 0 and 1 for constants.
    length = torch.export.Dim("length", min=2, max=model_sizes(loaded.model.config).max_tokens)
    side = loaded.model.image_size
    image = (torch.rand(3, 3, side, side),)
    _write_graph(_ImageEncoder(loaded.model), image, {"image": {0: batch}}, folder / IMAGE)
    texts = (torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 5, dtype=torch.bool))
    shape = {0: batch, 1: length}
    shapes = {"token_ids": shape, "text_mask": shape}
    _write_graph(_TextEncoder(loaded.model), texts, shapes, folder / TEXT)


def _write_graph(
    encoder: nn.Module, inputs: tuple[Tensor, ...], shapes: dict[str, Any], path: Path
) -> None:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    output = f"{path.stem.removesuffix('_encoder')}_embedding"
    try:
        with _quiet(), torch.inference_mode():
            program = torch.export.export(
                encoder.eval(), inputs, dynamic_shapes=shapes, strict=False
            )
            exported = torch.onnx.export(
                program,
                inputs,
                input_names=list(shapes),
                output_names=[output],
                opset_version=OPSET,
                dynamic_shapes={  # names of the sizes, which a traced program has lost
                    name: {axis: size.__name__ for axis, size in sizes.items()}
                    for name, sizes in shapes.items()
                },
                verbose=False,
            )
            assert exported is not None
            ClearMetadataAndDocStringPass()(exported.model)  # lines of code, with their paths
            exported.save(path)
    except Exception as error:  # torch raises what it likes on code that it cannot trace
        model = type(encoder.model).__name__
        detail = (str(error).strip().splitlines() or [""])[0]
        raise CapabilityError(
            f"{model} cannot be exported to ONNX: its code cannot be traced for batches and texts "
            f"of any size ({type(error).__name__}: {detail[:300]})"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back what the exporter says about torch itself."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def ready_tokenizer(loaded: LoadedModel) -> str:
    """Return a `tokenizer.json` that does all that this library does to a caption.

    It cleans it as `clean_caption` does, adds [CLS] and [SEP], cuts to the model's longest text and
    pads; of its encodings `ids` and `attention_mask` are the text encoder's inputs.
    """
    limits, tokenizer = loaded.settings.limits, loaded.tokenizer
    ready = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    steps: list[Any] = [normalizers.Lowercase()]
    if limits.max_words is not None:
        steps += [
            normalizers.Replace(Regex(r"[,.'!?\"()*#:;~]"), ""),
            normalizers.Replace(Regex(r"[-/]"), " "),
            normalizers.Replace("<person>", "person"),
            # All behind the last word that is kept; \K keeps what was matched before it.
            normalizers.Replace(
                Regex(rf"\A\s*(?:\S+\s+){{{limits.max_words - 1}}}\S+\K[\s\S]*"), ""
            ),
        ]
    ready.normalizer = normalizers.Sequence([*steps, ready.normalizer])
    ready.post_processor = processors.TemplateProcessing(
        single=f"{CLS} $A {SEP}",
        special_tokens=[(CLS, tokenizer.cls_id), (SEP, tokenizer.sep_id)],
    )
    ready.enable_truncation(limits.caption)
    ready.enable_padding(pad_id=tokenizer.pad_id, pad_token=PAD)
    return str(ready.to_str(pretty=True)) + "\n"


def _compare(engine: Engine, folder: Path, runtime: Any) -> tuple[dict[str, dict[int, float]], int]:
    """Return the largest differences by encoder and batch, and the width of an embedding."""
    world = SceneConfig()
    scenes = [generate_scene(world, "test", number) for number in range(max(CHECKED_BATCHES))]
    images = [render_scene(scene, CHECKED_PX) for scene in scenes]
    texts = [caption_scene(scene, world, number) for number, scene in enumerate(scenes)]
    texts[0] = " ".join(texts)  # longer than any model reads
    sessions = {
        path: runtime.InferenceSession(folder / path, providers=["CPUExecutionProvider"])
        for path in (IMAGE, TEXT)
    }
    settings = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    errors: dict[str, dict[int, float]] = {"image": {}, "text": {}}
    for size in CHECKED_BATCHES:
        (seen,) = sessions[IMAGE].run(None, {"image": _pixels(images[:size], settings)})
        (read,) = sessions[TEXT].run(None, _tokens(texts[:size], tokenizer))
        errors["image"][size] = _difference(seen, engine.embed_images(images[:size]))
        errors["text"][size] = _difference(read, engine.embed_texts(texts[:size]))
    return errors, int(seen.shape[1])


def _pixels(images: Sequence[NDArray[np.uint8]], settings: Mapping[str, Any]) -> Arrays:
    """Return (B, 3, S, S), as the README has it."""
    side, mean, std = settings["image_size"], settings["mean"], settings["std"]
    pixels = np.stack([resize(image, side, side) for image in images]).astype(np.float32) / 255
    found = (pixels - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(found.transpose(0, 3, 1, 2), dtype=np.float32)


def _tokens(texts: Sequence[str], tokenizer: tokenizers.Tokenizer) -> dict[str, NDArray[Any]]:
    found = tokenizer.encode_batch(list(texts))
    return {
        "token_ids": np.array([encoding.ids for encoding in found], dtype=np.int64),
        "text_mask": np.array([encoding.attention_mask for encoding in found], dtype=np.bool_),
    }


def _difference(found: Arrays, own: Arrays) -> float:
    if found.shape != own.shape:
        raise CapabilityError(f"embeddings of shape {found.shape} instead of {own.shape}")
    return float(np.abs(found - own).max())


USE = """\
import json
import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

settings, tokenizer = json.load(open("preprocess.json")), Tokenizer.from_file("tokenizer.json")
side, mean, std = settings["image_size"], np.float32(settings["mean"]), np.float32(settings["std"])
upright = [ImageOps.exif_transpose(Image.open(p)).convert("RGB") for p in ["1.jpg", "2.jpg"]]
resized = [image.resize((side, side), Image.Resampling.BICUBIC) for image in upright]
pixels = ((np.float32(resized) / 255 - mean) / std).transpose(0, 3, 1, 2)
found = tokenizer.encode_batch(["a dog on a beach", "two red circles"])
inputs = {"token_ids": np.int64([e.ids for e in found]),
          "text_mask": np.bool_([e.attention_mask for e in found])}
(images,) = onnxruntime.InferenceSession("image_encoder.onnx").run(None, {"image": pixels})
(texts,) = onnxruntime.InferenceSession("text_encoder.onnx").run(None, inputs)
print(images @ texts.T)  # similarity of each image with each text, -1 to 1
"""


def _readme(loaded: LoadedModel, found: OnnxExport) -> str:
    model, limits = loaded.model, loaded.settings.limits
    side = model.image_size
    rows = [
        f"| {encoder} | {size} | {error:.1e} |"
        for encoder, by_size in found.errors.items()
        for size, error in by_size.items()
    ]
    lines = [
        f"# {type(model).__name__}: image and text encoders in ONNX",
        "",
        "Embeddings have length 1: the dot product of an image's and a text's is their similarity.",
        f"Written by `triptych export onnx`, opset {found.opset}; batches of any size.",
        "",
        "| file | inputs | output |",
        "|---|---|---|",
        f"| {IMAGE} | `image` float32 (batch, 3, {side}, {side}) "
        f"| `image_embedding` float32 (batch, {found.width}) |",
        "| text_encoder.onnx | `token_ids` int64 (batch, length), `text_mask` bool, true = a token "
        f"| `text_embedding` float32 (batch, {found.width}) |",
        "",
        f"A text has 2 to {model_sizes(model.config).max_tokens} tokens; `tokenizer.json` cleans "
        f"it as in training, adds [CLS] and",
        f"[SEP], cuts it to {limits.caption} tokens and pads. `preprocess.json` has the size, mean "
        "and deviation of images.",
        "",
        "```sh",
        "pip install onnxruntime pillow tokenizers numpy",
        "```",
        "",
        "```python",
        *USE.splitlines(),
        "```",
        "",
        "Largest difference from the model's own embeddings in float32, measured by onnxruntime:",
        "",
        "| encoder | batch | difference |",
        "|---|---|---|",
        *rows,
        "",
    ]
    return "\n".join(lines)
