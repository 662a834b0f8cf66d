"""Our safetensors files: read bitwise by the library, hashed, and open to whom the umask lets."""

import hashlib
import os
import stat

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from triptych.checkpoint import tensor_file
from triptych.checkpoint.tensor_file import DTYPES, write_tensors
from triptych.core.errors import CheckpointError


def test_the_library_reads_every_dtype_and_layout_bitwise(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "_CHUNK", 7)  # tensors end within chunks
    whole = torch.arange(12).reshape(3, 4) % 3
    tensors = {str(dtype): whole.to(dtype) for dtype in DTYPES}
    tensors |= {"turned": whole.t(), "column": whole[1:, 1], "scalar": torch.tensor(0.5)}
    tensors |= {"empty": torch.zeros(0, 3), 'named \u00e4/"': torch.tensor([True])}
    written = write_tensors(tmp_path / "a.safetensors", tensors, {"note": "\u00e4"})
    back = load_file(tmp_path / "a.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (back[name].dtype, back[name].shape) == (tensor.dtype, tensor.shape)
        same = [t.contiguous().reshape(-1).view(torch.uint8) for t in (back[name], tensor)]
        assert torch.equal(*same), name
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert file.metadata() == {"note": "\u00e4"}
    content = (tmp_path / "a.safetensors").read_bytes()
    assert written == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_the_mode_is_what_the_umask_leaves(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_tensors(tmp_path / "a", {"w": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == mode


def test_a_dtype_that_the_format_lacks_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot save w: .*complex128"):
        write_tensors(tmp_path / "a", {"w": torch.zeros(2, dtype=torch.complex128)}, {})
