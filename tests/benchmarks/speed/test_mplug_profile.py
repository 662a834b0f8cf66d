from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.speed.mplug_profile import (
    KINDS,
    UPDATE,
    ProfiledStepper,
    kind_of,
    seconds_by_kind,
    summarise,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::mm", "products"),
        ("aten::addmm", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "products"),
        ("aten::convolution_backward", "products"),
        ("aten::copy_", "copies"),
        ("aten::index_select", "copies"),
        ("aten::embedding_dense_backward", "copies"),
        ("aten::_softmax", "element_wise"),
        ("aten::mul", "element_wise"),
        ("autograd::engine::evaluate_function: AddmmBackward0", "element_wise"),
    ],
)
def test_kind_of_an_operation(name: str, kind: str) -> None:
    assert kind_of(name) == kind


class SmallStepper(ProfiledStepper):
    """Multiplies, draws dropout, and updates one layer."""

    def __init__(self) -> None:
        self.layer = nn.Linear(256, 256)
        self.optimizer = torch.optim.AdamW(self.layer.parameters())
        self.parameters = list(self.layer.parameters())

        class Task:
            modules = nn.ModuleDict()

            def after_step(self, step: int) -> None:
                del step

        self.fast = Task()  # type: ignore[assignment]

    def step(self, name: str, precision: str) -> None:
        del precision
        x = torch.ones(256, 256)
        for _ in range(20 if name == "plain" else 10):
            x = F.gelu(self.layer(x))
        x.sum().backward()
        self.finish_step()


def test_a_step_is_split_by_kind() -> None:
    stepper = SmallStepper()
    seconds = {
        name: [seconds_by_kind(partial(stepper.step, name, "fp32"))] for name in ("fast", "plain")
    }

    for rounds in seconds.values():
        assert set(rounds[0]) == set(KINDS)
        assert all(rounds[0][kind] > 0 for kind in ("products", "element_wise", UPDATE))


def test_figures_of_a_profile() -> None:
    fast = {"products": 6.0, "copies": 1.0, "element_wise": 2.0, UPDATE: 1.0}
    plain = {"products": 9.0, "copies": 1.0, "element_wise": 3.0, UPDATE: 1.0}

    found = summarise({"fast": [fast], "plain": [plain]})

    assert found["step_outside_products"] == 0.4
    assert found["limit_over_plain"] == 3.5
    assert found["seconds"]["fast"] == fast
