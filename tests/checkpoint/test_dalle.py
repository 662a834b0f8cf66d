"""Pickled modules of a stand-in for the `dall_e` package, laid out as OpenAI's."""

import sys
import types

import pytest
import torch
from torch import nn

from triptych.checkpoint.pickles import read_dalle_module
from triptych.core.errors import CheckpointError
from triptych.models.dvae.convert import config_for, import_encoder
from triptych.models.dvae.model import DVAE


def dalle_classes(monkeypatch):
    """Return classes that pickle under the names of OpenAI's package."""
    classes = {
        "dall_e.utils": ["Conv2d"],
        "dall_e.encoder": ["Encoder", "EncoderBlock"],
    }
    found = {}
    monkeypatch.setitem(sys.modules, "dall_e", types.ModuleType("dall_e"))
    for module_name, names in classes.items():
        module = types.ModuleType(module_name)
        for name in names:
            made = type(name, (nn.Module,), {"__module__": module_name})
            setattr(module, name, made)
            found[name] = made
        monkeypatch.setitem(sys.modules, module_name, module)
    return found


@pytest.fixture
def dall_e(monkeypatch):
    return dalle_classes(monkeypatch)


def encoder(dall_e, width=4, codes=9):
    """Build the published layout: 4 groups of 2 blocks, `w` and `b` in each convolution."""

    def conv(n_in, n_out, kernel):
        made = dall_e["Conv2d"]()
        made.w = nn.Parameter(torch.randn(n_out, n_in, kernel, kernel))
        made.b = nn.Parameter(torch.randn(n_out))
        made.device = torch.device("cpu")
        return made

    def block(n_in, n_out):
        made, narrow = dall_e["EncoderBlock"](), n_out // 4
        made.id_path = conv(n_in, n_out, 1) if n_in != n_out else nn.Identity()
        path = nn.Sequential()
        dims = [n_in, narrow, narrow, narrow, n_out]
        for i, kernel in enumerate((3, 3, 3, 1)):
            path.add_module(f"relu_{i + 1}", nn.ReLU())
            path.add_module(f"conv_{i + 1}", conv(dims[i], dims[i + 1], kernel))
        made.res_path = path
        return made

    made = dall_e["Encoder"]()
    made.blocks = nn.Sequential()
    made.blocks.add_module("input", conv(3, width, 7))
    for g, (n_in, n_out) in enumerate([(1, 1), (1, 2), (2, 4), (4, 8)], start=1):
        group = nn.Sequential()
        group.add_module("block_1", block(n_in * width, n_out * width))
        group.add_module("block_2", block(n_out * width, n_out * width))
        group.add_module("pool", nn.MaxPool2d(2))
        made.blocks.add_module(f"group_{g}", group)
    output = nn.Sequential()
    output.add_module("relu", nn.ReLU())
    output.add_module("conv", conv(8 * width, codes, 1))
    made.blocks.add_module("output", output)
    return made


def test_a_pickled_encoder_gives_its_parameters(tmp_path, dall_e):
    torch.manual_seed(0)
    module = encoder(dall_e)
    path = tmp_path / "encoder.pkl"
    torch.save(module, path)
    found = read_dalle_module(path)
    expected = dict(module.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    model = DVAE(config_for(found, image_size=16))
    assert import_encoder(found, model).is_complete


def test_a_file_with_other_classes_is_refused(tmp_path):
    path = tmp_path / "encoder.pkl"
    torch.save({"x": nn.Linear(2, 2)}, path)
    with pytest.raises(CheckpointError, match="no encoder or decoder of DALL-E"):
        read_dalle_module(path)


def test_damage_and_absence_are_named(tmp_path):
    path = tmp_path / "encoder.pkl"
    path.write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match="damaged"):
        read_dalle_module(path)
    with pytest.raises(CheckpointError, match="there is no such file"):
        read_dalle_module(tmp_path / "absent.pkl")
