"""Exported encoders in onnxruntime against the models, and what an export's README tells."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest
import tokenizers
from PIL import Image

from tests.serving.tiny_folder import (
    IMAGE_SIZE,
    write_tiny_flava,
    write_tiny_folder,
    write_tiny_vlmo,
)
from triptych.cli.main import main
from triptych.core.errors import CapabilityError, CheckpointError
from triptych.nn import packing
from triptych.serving.engine import load
from triptych.serving.loading import load_model
from triptych.workflows import onnx_export
from triptych.workflows.onnx_export import CHECKED_BATCHES, MAX_ERROR, export_onnx, ready_tokenizer

WRITERS = {
    "mplug": lambda folder: write_tiny_folder(folder, "pretraining"),
    "vlmo": write_tiny_vlmo,
    "flava": write_tiny_flava,
}


@pytest.fixture(scope="module", params=WRITERS)
def exported(request, tmp_path_factory):
    """The model folder and its export; padding is skipped, as in wide models."""
    folder = tmp_path_factory.mktemp(request.param)
    model = WRITERS[request.param](folder / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "PACKED_FROM", 1)
        return model, export_onnx(model, folder / "out")


def test_embeddings_are_the_models_in_batches_of_any_size(exported):
    _, found = exported
    for encoder in ("image", "text"):
        errors = found.errors[encoder]
        assert tuple(errors) == CHECKED_BATCHES
        assert all(0 <= error <= MAX_ERROR for error in errors.values())
    assert found.width == 8 and found.max_error <= 1e-5


def test_the_graphs_say_what_they_take(exported):
    _, found = exported
    shapes = {}
    for path in found.folder.glob("*.onnx"):
        graph = onnx.load(path)
        onnx.checker.check_model(graph)
        assert graph.opset_import[0].version == found.opset
        for value in (*graph.graph.input, *graph.graph.output):
            sides = value.type.tensor_type.shape.dim
            shapes[value.name] = [side.dim_param or side.dim_value for side in sides]
        assert b".py" not in path.read_bytes()  # no paths of the machine that wrote it
    assert shapes == {
        "image": ["batch", 3, IMAGE_SIZE, IMAGE_SIZE],
        "image_embedding": ["batch", 8],
        "token_ids": ["batch", "length"],
        "text_mask": ["batch", "length"],
        "text_embedding": ["batch", 8],
    }


def test_the_readmes_code_does_without_triptych(exported):
    model, found = exported
    readme = (found.folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(code.splitlines()) <= 18 and "triptych" not in code
    pixels = np.random.default_rng(0).integers(0, 255, (2, 40, 30, 3), dtype=np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    paths = [str(found.folder / name) for name in ("1.jpg", "2.jpg")]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path, exif=turned)
    alone = "import sys; sys.modules.update(triptych=None, torch=None)\n"
    printed = subprocess.run(
        [sys.executable, "-c", f"{alone}{code}\nprint(json.dumps((images @ texts.T).tolist()))"],
        cwd=found.folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()[-1]
    engine = load(model, device="cpu", precision="fp32")
    texts = re.findall(r'encode_batch\(\["(.*)", "(.*)"\]\)', code)[0]
    own = engine.embed_images(paths) @ engine.embed_texts(list(texts)).T
    np.testing.assert_allclose(json.loads(printed), own, atol=1e-5)


TEXTS = [
    "A small red circle.",
    "  What   color is the star?! (yes/no) ",
    "blue-square, green: 'STAR' #1 ~ <person> [SEP] <PERSON>s",
    "ÉTOILE straße é\u0301\ta\nb",
    " ".join(["star"] * 50),
    " ".join(["a-b"] * 29 + ["last", "lost"]),
    "red\n" * 40,
]


@pytest.mark.parametrize("family", WRITERS)
def test_the_tokenizer_cleans_cuts_and_pads_as_the_engine(family, tmp_path):
    loaded = load_model(WRITERS[family](tmp_path / "model"), device="cpu")
    ready = tokenizers.Tokenizer.from_str(ready_tokenizer(loaded))
    own = load(tmp_path / "model", device="cpu")._texts.captions(TEXTS)
    found = ready.encode_batch(TEXTS)
    assert [[i for i, m in zip(e.ids, e.attention_mask) if m] for e in found] == own
    assert len({len(encoding.ids) for encoding in found}) == 1
    assert max(map(len, own)) == loaded.settings.limits.caption


def test_what_cannot_be_exported_is_refused_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    model = write_tiny_folder(tmp_path / "model", "pretraining")
    asked = write_tiny_folder(tmp_path / "vqa", "vqa")
    assert main(["export", "onnx", str(asked), str(tmp_path / "out")]) == 2
    assert "was trained for vqa, which does not teach `embed`" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="exists: choose another folder"):
        export_onnx(model, asked)
    with monkeypatch.context() as patch:
        patch.setattr(onnx_export, "MAX_ERROR", -1.0)
        patch.setattr(onnx_export, "_write_graphs", lambda *_: None)
        patch.setattr(onnx_export, "_compare", lambda *_: ({"image": {1: 0.5}}, 8))
        with pytest.raises(CapabilityError, match=r"differ by 5\.0e-01"):
            export_onnx(model, tmp_path / "out")
    with monkeypatch.context() as patch:
        branches = lambda self, image: image * 2 if image.sum() > 0 else image  # noqa: E731
        patch.setattr(onnx_export._ImageEncoder, "forward", branches)
        with pytest.raises(CapabilityError, match="MPLUG cannot be exported to ONNX"):
            export_onnx(model, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    message = r"onnxscript, which is not installed: pip install .triptych\[onnx"
    with pytest.raises(CapabilityError, match=message):
        export_onnx(model, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "vqa"]


def test_the_command_prints_the_differences(exported, tmp_path, monkeypatch, capsys):
    model, found = exported
    monkeypatch.setattr(onnx_export, "export_onnx", lambda *_: found)
    assert main(["export", "onnx", str(model), str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "image encoder: embeddings differ by" in said and "opset 18" in said
    assert main(["export", "onnx", str(model), str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["max_error"] == found.max_error
