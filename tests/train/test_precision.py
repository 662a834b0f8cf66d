"""The probe measures, remembers, and leaves the random state alone."""

import pytest
import torch
from torch import nn

from triptych.train import precision
from triptych.train.precision import autocast, probe_precision, resolve_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("bf16_s", "expected"), [(0.5, "bf16"), (0.95, "fp32"), (1.0, "fp32"), (3.0, "fp32")]
)
def test_bf16_must_win_clearly(monkeypatch, bf16_s, expected):
    seconds = {"fp32": 1.0, "bf16": bf16_s}
    monkeypatch.setattr(precision, "_time_mlp", lambda tensors, choice: seconds[choice])
    assert probe_precision.__wrapped__(CPU, width=4, rows=2) == expected


def test_the_measurement_is_real_and_made_once(monkeypatch):
    state = torch.get_rng_state()
    first = probe_precision(CPU, width=12, rows=5)
    assert first in ("bf16", "fp32")
    monkeypatch.setattr(precision, "_time_mlp", None)  # a second measurement would fail
    assert probe_precision(CPU, width=12, rows=5) == first
    assert torch.equal(torch.get_rng_state(), state)


def test_the_measurement_works_for_who_only_infers():
    with torch.inference_mode():
        assert probe_precision(CPU, width=8, rows=3) in ("bf16", "fp32")


def test_auto_probes_the_width_of_the_model_and_a_choice_is_obeyed(monkeypatch):
    modules = nn.Sequential(nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(32, 2))
    monkeypatch.setattr(precision, "probe_precision", lambda device, width: f"width {width}")
    assert resolve_precision("auto", CPU, modules) == "width 32"
    assert resolve_precision("fp32", CPU, modules) == "fp32"


@pytest.mark.parametrize(("choice", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast_sets_the_dtype_of_products(choice, dtype):
    weight = torch.ones(2, 2)
    with autocast(CPU, choice):
        assert (weight @ weight).dtype is dtype
