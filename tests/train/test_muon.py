"""Muon against torch's own, singular values against the SVD, several processes against one."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from triptych.core.errors import ConfigError
from triptych.distributed.engine import shard_like
from triptych.distributed.env import run_processes
from triptych.train import muon
from triptych.train.config import OptimConfig
from triptych.train.muon import orthogonalise
from triptych.train.optim import build_optimizer, group_parameters, is_block_matrix

from .toy import is_vision


def _network():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "wide": nn.Linear(12, 5),
            "tall": nn.Linear(5, 12),
            "same": nn.Linear(12, 5),
            "word_embedding": nn.Embedding(7, 5),
            "head": nn.Linear(5, 3),
        }
    )


def _optimizer(network, **options):
    config = OptimConfig(
        learning_rate=1e-2,
        vision_learning_rate=1e-2,
        muon_learning_rate=3e-2,
        weight_decay=0.1,
        **options,
    )
    return build_optimizer(group_parameters(network.named_parameters(), config, is_vision), config)


def _give_gradients(network, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("bf16", [True, False])
def test_singular_values_become_about_one_and_vectors_stay(bf16, monkeypatch):
    monkeypatch.setattr(muon, "cpu_has_bf16", lambda: bf16)
    matrices = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(1))
    out = orthogonalise(matrices)
    assert out.dtype == torch.bfloat16
    out = out.float()
    for before, after in zip(matrices, out, strict=True):
        values = torch.linalg.svdvals(after)
        assert values.min() > 0.65
        assert values.max() < 1.25
        left, _, right = torch.linalg.svd(before, full_matrices=False)
        core = left.T @ after @ right.T  # diagonal if the singular vectors are the same
        assert (core - torch.diag(core.diag())).abs().max() < 0.05


def test_a_processor_without_bf16_is_not_made_to_emulate_it(monkeypatch):
    seen, multiply = set(), torch.baddbmm
    monkeypatch.setattr(
        torch, "baddbmm", lambda x, *rest, **kw: seen.add(x.dtype) or multiply(x, *rest, **kw)
    )
    for bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        seen.clear()
        monkeypatch.setattr(muon, "cpu_has_bf16", lambda bf16=bf16: bf16)
        orthogonalise(torch.ones(1, 2, 3))
        assert seen == {dtype}


def test_matrices_inside_blocks_and_nothing_else():
    network = _network()
    chosen = {n for n, p in network.named_parameters() if is_block_matrix(n, p)}
    assert chosen == {"wide.weight", "tall.weight", "same.weight"}
    groups = _optimizer(network).param_groups
    assert {g["name"]: g["muon"] for g in groups} == {
        "rest_decay": False,
        "rest_no_decay": False,
        "matrix": True,
    } | {"head_decay": False, "head_no_decay": False}


def test_updates_equal_those_of_torch_muon_and_adamw():
    network = _network()
    reference = copy.deepcopy(network)
    ours = _optimizer(network)
    named = dict(reference.named_parameters())
    matrices = [named[n] for n in ("wide.weight", "tall.weight", "same.weight")]
    tables = [named[n] for n in ("word_embedding.weight", "head.weight")]
    vectors = [p for p in named.values() if p.ndim == 1]
    muon = torch.optim.Muon(
        matrices, lr=3e-2, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [{"params": tables, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-2,
        fused=True,
    )
    for step in range(4):
        for each in (network, reference):
            _give_gradients(each, step)
        ours.step()
        muon.step()
        adamw.step()
    for name, parameter in network.named_parameters():
        # bf16 products in another order: a share of the four updates, each of RMS 0.2 · 3e-2
        tolerance = 1e-3 if is_block_matrix(name, parameter) else 1e-7
        torch.testing.assert_close(parameter, named[name], atol=tolerance, rtol=0)
    assert (network["wide"].weight - _network()["wide"].weight).abs().mean() > 5e-3  # it moved


def test_a_matrix_without_gradient_is_left_alone():
    network = _network()
    optimizer = _optimizer(network)
    _give_gradients(network, 0)
    network["wide"].weight.grad = None
    before = network["wide"].weight.clone()
    optimizer.step()
    assert torch.equal(network["wide"].weight, before)
    assert network["same"].weight.grad is not None  # gradients stay until zero_grad


def _trained(network, optimizer):
    for step in range(2):
        _give_gradients(network, step)
        for parameter in network.parameters():
            parameter.grad = shard_like(parameter.grad, parameter)
        optimizer.step()
    named = {name: parameter.detach() for name, parameter in network.named_parameters()}
    return {n: (p.full_tensor() if isinstance(p, DTensor) else p).numpy() for n, p in named.items()}


def _together():
    network = _network()
    return _trained(network, _optimizer(network))


def test_processes_that_share_the_work_equal_one():
    shared, alone = run_processes(_together, 3), _together()
    for name, value in alone.items():
        assert abs(shared[name] - value).max() < 1e-3, name  # bf16, batches of other sizes


def _by_rows():
    """Return what two processes have after some steps, by rows and in pairs that are alike."""
    found = []
    for shape, names in (((2,), ("rows",)), ((1, 2), ("copies", "rows"))):
        network = _network()
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for part in network.values():
            fully_shard(part, mesh=mesh)
        optimizer = _optimizer(network)
        found.append(_trained(network, optimizer))
        momenta = [state["momentum"] for state in optimizer.state.values() if "momentum" in state]
        assert len(momenta) == 3
        assert all(isinstance(momentum, DTensor) for momentum in momenta)
    columns = nn.ModuleDict({"same": nn.Linear(4, 6, bias=False)})
    fully_shard(columns["same"], mesh=mesh["rows"], shard_placement_fn=lambda parameter: Shard(1))
    with pytest.raises(ConfigError, match=r"matrix \(6, 4\) is placed .*split by rows"):
        _trained(columns, _optimizer(columns))
    return found


def test_processes_that_share_the_rows_equal_one():
    """5 and 12 rows on two processes: uneven parts among them."""
    alone = _together()
    for shared in run_processes(_by_rows, 2):
        for name, value in alone.items():
            assert abs(shared[name] - value).max() < 1e-3, name


def test_rows_are_spread_as_by_chunks_and_work_by_cost():
    for rows in range(1, 12):
        for size in range(1, 5):
            chunks = [len(chunk) for chunk in torch.arange(rows).chunk(size)]
            assert muon._rows_of_each(rows, size) == chunks + [0] * (size - len(chunks))
    assert muon._owners([(2, 2), (8, 8), (4, 4), (4, 4)], 2) == [1, 0, 1, 1]
