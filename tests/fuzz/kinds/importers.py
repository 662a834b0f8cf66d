"""Weights that other software wrote: torch files, TorchScript, safetensors, folders, DALL-E's."""

import io
import json
import pickletools
import random
import struct
import sys
import types
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tests.fuzz.kind import Kind
from tests.fuzz.kinds.model_folders import mutate_safetensors
from tests.fuzz.mutators import (
    changed,
    mutate_bytes,
    mutate_json,
    mutate_zip,
    special,
    unzipped,
    whole,
    zip_bomb,
)
from triptych.checkpoint.foreign import read_foreign
from triptych.checkpoint.pickles import read_dalle_module

CANARY = b"ctests.fuzz.canary\nran\n"
RUN = CANARY + b"(S'code'\ntR"
"""Pickle code that calls the canary."""

GADGETS = (
    RUN,
    b"cos\nsystem\n(S'true'\ntR",
    b"cbuiltins\nexec\n(S'import tests.fuzz.canary; tests.fuzz.canary.ran()'\ntR",
    b"cbuiltins\neval\n(S'__import__(\"tests.fuzz.canary\").fuzz.canary.ran()'\ntR",
    b"csubprocess\nPopen\n(S'true'\ntR",
    b"ctorch\nload\n(S'/dev/zero'\ntR",
    b"cbuiltins\ngetattr\n(ctests.fuzz\ncanary\nS'ran'\ntR(tR",
    b"ctorch._utils\n_rebuild_tensor_v2\n(NNNNNNtR",
    b"ccollections\nOrderedDict\n)R(S'__class__'\nI1\ntb",
)


def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "blocks.0.weight": torch.randn(4, 3, generator=generator),
        "blocks.0.bias": torch.randn(4, generator=generator).half(),
        "count": torch.tensor(7),
    }


def saved(payload: Any, *, old: bool = False) -> bytes:
    """Return what torch.save writes."""
    out = io.BytesIO()
    torch.save(payload, out, _use_new_zipfile_serialization=not old)
    return out.getvalue()


def _hostile_payload(rng: random.Random) -> bytes:
    """Return a torch file whose objects are valid, and not what they seem."""
    loop: dict[str, Any] = {}
    loop[rng.choice(("model", "state_dict", "a"))] = loop
    wide: Any = {"w": torch.zeros(1)}
    for _ in range(40):
        wide = {"model": wide, "module": wide, "state_dict": wide}
    deep: Any = {"w": torch.zeros(1)}
    for _ in range(300):
        deep = {"model": deep}
    large = torch.zeros(1).expand(rng.choice((10**6, 10**9, 2**40)))
    many = {f"w{i}": torch.zeros(1).expand(10**7) for i in range(300)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # to be removed from torch, and still in files
        quantized = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8)
    payloads = (
        *(loop, wide, deep, {"w": large}, many, {"w": large[:, None].expand(-1, 100)}),
        *({}, [], None, 3, {"w": torch.zeros(0)}, {1: torch.ones(1)}, {"": torch.ones(1)}),
        *({"\ud800": torch.ones(1)}, {"w\x1b[31m": torch.ones(1)}, [torch.ones(2)] * 3),
        *({"w": torch.tensor([float("nan")])}, {"w": torch.tensor([-float("inf")])}),
        *({"w": torch.ones(3, dtype=torch.complex64)}, {"w": torch.ones(3).to_sparse()}),
        {"w": quantized},
        *({"w": torch.empty(3, device="meta")}, {"x" * 100_000: torch.ones(1)}),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return saved(rng.choice(payloads), old=rng.random() < 0.3)


def _gadget(rng: random.Random) -> bytes:
    """Return a bare pickle, or a torch file of it, that asks for code to run."""
    body = rng.choice(GADGETS)
    pickled = b"\x80\x02" + rng.choice((b"", b"}S'w'\n")) + body + rng.choice((b".", b"s."))
    if rng.random() < 0.5:
        return pickled
    return zipped({"x/data.pkl": pickled, "x/version": b"3\n", "x/data/0": b"\0" * 16})


def zipped(members: dict[str, bytes]) -> bytes:
    """Return a zip archive of these members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def mutate_pickle(rng: random.Random, data: bytes) -> bytes:
    """Put code, or a wrong opcode, between two opcodes of a pickle; also of one in an archive."""
    if data[:2] == b"PK":
        members = unzipped(data)
        for name in members:
            if name.endswith(("data.pkl", "constants.pkl")) and rng.random() < 0.8:
                members[name] = mutate_pickle(rng, members[name])
        return zipped(members) if members else data
    places = []
    try:
        for _, _, place in pickletools.genops(data):
            places.append(place)
    except Exception:  # a damaged one ends somewhere
        pass
    at = rng.choice(places) if places else 0
    piece = rng.choice(
        (
            *(opcode + b"0" for opcode in GADGETS),  # run, and drop the result
            *GADGETS,
            b"2",
            b"0",
            b"(",
            b"1",
            b"h\0",
            b"j\xff\xff\xff\x7f",
            b"K\xff",
            b"J\xff\xff\xff\xff",
            b"M\xff\xff",
            b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
            b"N",
            b"]",
            b"}",
            b")",
            b"R",
            b"b",
            b"Q",
            b"a",
            b"s",
            b"u",
            b"(" * 5000,
            b"]" * 5000,
            b"\x8c\x03abc",
            b"\x96" + b"\xff" * 8,
            b"B\xff\xff\xff\x7f",
            b"X\xff\xff\xff\x7f",
            b"]2a" * 2000,
            b"F1e400\n",
            b"\x81",
        )
    )
    how = rng.randint(0, 2)
    end = at if how == 0 else at + rng.randint(0, 12)
    if how == 2:
        return mutate_bytes(rng, data)
    return data[:at] + piece + data[end:]


def _torchscript(folder: Path) -> None:
    """Write what torch.jit.save writes of the parts that are read; its program is never needed."""
    named = {"weight": torch.ones(2, 3), "bias": torch.zeros(2), "steps": torch.arange(4)}
    members = {"m/data.pkl": _ScriptPickle().dump(named), "m/constants.pkl": b"\x80\x02)."}
    for number, tensor in enumerate(named.values()):
        members[f"m/data/{number}"] = tensor.numpy().tobytes()
    (folder / "clip.pt").write_bytes(zipped(members))


class _ScriptPickle:
    """Writes the description of a module as torch.jit.save does, in protocol 2."""

    def dump(self, tensors: dict[str, torch.Tensor]) -> bytes:
        out = b"\x80\x02c__torch__\nPart\n)\x81}("
        for number, (name, tensor) in enumerate(tensors.items()):
            storage = {torch.float32: b"FloatStorage", torch.int64: b"LongStorage"}[tensor.dtype]
            out += self._text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
            out += self._text("storage") + b"ctorch\n" + storage + b"\n" + self._text(str(number))
            out += self._text("cpu") + self._int(tensor.numel()) + b"tQ" + self._int(0)
            for sizes in (tensor.shape, tensor.stride()):
                out += b"(" + b"".join(map(self._int, sizes)) + b"t"
            out += b"\x89ccollections\nOrderedDict\n)RtR"
        return out + b"ub."

    @staticmethod
    def _text(text: str) -> bytes:
        return b"X" + struct.pack("<I", len(text)) + text.encode()

    @staticmethod
    def _int(number: int) -> bytes:
        return b"J" + struct.pack("<i", number)


def _shared_records(rng: random.Random) -> bytes:
    """Return an archive whose objects hold one another: in a circle, or ever more names."""
    depth = rng.choice((3, 60, 5000))
    out = b"\x80\x02c__torch__\nPart\n)\x81"
    if rng.random() < 0.3:
        out += b"q\x00}X\x01\x00\x00\x00ah\x00sb."
    else:
        for _ in range(depth):
            out += (
                b"q\x000c__torch__\nPart\n)\x81}(X\x01\x00\x00\x00ah\x00X\x01\x00\x00\x00bh\x00ub"
            )
        out += b"."
    return zipped({"m/data.pkl": out, "m/constants.pkl": b"\x80\x02).", "m/version": b"3\n"})


def _bomb(*names: str) -> Callable[[random.Random], bytes]:
    made: list[bytes] = []

    def build(rng: random.Random) -> bytes:
        if not made:
            made.append(zip_bomb(*names))
        return made[0]

    return build


BOMBS = (
    _bomb("m/data.pkl", "m/constants.pkl"),
    _bomb("m/constants.pkl"),
    _bomb("m/data.pkl", "m/version"),
)


def _dalle(folder: Path) -> None:
    """Write a pickled module under the names of OpenAI's package."""
    names = ("dall_e", "dall_e.encoder", "dall_e.utils")
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update({name: types.ModuleType(name) for name in names})
    try:
        encoder = type("Encoder", (nn.Module,), {"__module__": "dall_e.encoder"})
        conv = type("Conv2d", (nn.Module,), {"__module__": "dall_e.utils"})
        sys.modules["dall_e.encoder"].Encoder = encoder
        sys.modules["dall_e.utils"].Conv2d = conv
        top, part = encoder(), conv()
        part.w, part.b = nn.Parameter(torch.ones(2, 3, 1, 1)), nn.Parameter(torch.zeros(2))
        top.blocks = nn.Sequential()
        top.blocks.add_module("input", part)
        torch.save(top, folder / "encoder.pkl")
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _folder(folder: Path) -> None:
    state = _state()
    save_file({"blocks.0.weight": state["blocks.0.weight"]}, folder / "model-1.safetensors")
    save_file({"count": state["count"]}, folder / "model-2.safetensors")
    places = {"blocks.0.weight": "model-1.safetensors", "count": "model-2.safetensors"}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "bert", "hidden_size": 4}')


def _read_first(folder: Path) -> None:
    """Read the one file of a case, and look at all its numbers."""
    for path in sorted(folder.iterdir()):
        for tensor in read_foreign(path).tensors.values():
            if not tensor.is_quantized:
                tensor.sum()  # no float of it: numbers may be complex


PICKLED = (
    changed("*", mutate_bytes),
    changed("*", mutate_pickle),
    changed("*", mutate_pickle),
    changed("*", mutate_zip),
    whole("*", _hostile_payload),
    whole("*", _gadget),
    special(),
)

KINDS = [
    Kind(
        name="torch_file",
        build=lambda folder: (folder / "x.pth").write_bytes(saved({"model": _state()})) and None,
        mutators=(*PICKLED, whole("*", *BOMBS)),
        use=_read_first,
    ),
    Kind(
        name="torch_file_before_zip",
        build=lambda folder: (folder / "x.bin").write_bytes(saved(_state(), old=True)) and None,
        mutators=PICKLED,
        use=_read_first,
    ),
    Kind(
        name="torchscript",
        build=_torchscript,
        mutators=(*PICKLED, whole("*", _shared_records), whole("*", *BOMBS)),
        use=_read_first,
    ),
    Kind(
        name="dalle_pickle",
        build=_dalle,
        mutators=PICKLED,
        use=lambda folder: [read_dalle_module(path) for path in folder.iterdir()],
    ),
    Kind(
        name="transformers_folder",
        build=_folder,
        mutators=(
            changed("*", mutate_bytes),
            changed("*.json", mutate_json),
            changed("*.safetensors", mutate_safetensors),
            special(),
        ),
        use=read_foreign,
    ),
]
