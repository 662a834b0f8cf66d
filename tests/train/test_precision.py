"""`auto` follows what the processor can do, and nothing else."""

import time

import pytest
import torch

from triptych.core.errors import NonFiniteError
from triptych.serving import engine, loading
from triptych.train import precision
from triptych.train.precision import LossScale, autocast, explain_precision, resolve_precision
from triptych.workflows import evaluate, frozen

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(True, True, "bf16"), (True, False, "bf16"), (False, True, "bf16"), (False, False, "fp32")],
)
def test_auto_on_a_cpu_follows_its_instructions(monkeypatch, avx512, amx, expected):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_on_a_gpu_does_not_count_emulation(monkeypatch, native, expected):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: native or including_emulation
    )
    assert resolve_precision("auto", torch.device("cuda")) == expected


def test_auto_reads_no_clock_and_leaves_the_random_state_alone(monkeypatch):
    for clock in ("perf_counter", "time", "monotonic", "process_time"):
        monkeypatch.setattr(time, clock, None)  # a measurement would fail
    state = torch.get_rng_state()
    with torch.inference_mode():
        assert len({resolve_precision("auto", CPU) for _ in range(3)}) == 1
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("choice", ["bf16", "fp32"])
def test_a_choice_is_obeyed(choice):
    assert resolve_precision(choice, CPU) == choice
    assert explain_precision(choice, choice, CPU) == "as the config asks"


def test_load_eval_and_probe_share_one_rule():
    assert loading.resolve_precision is resolve_precision
    for user in (engine, evaluate, frozen):
        assert user.load_model is loading.load_model


@pytest.mark.parametrize(
    ("native", "chosen", "reason"),
    [
        (True, "bf16", "auto: this cpu has bf16 instructions"),
        (False, "fp32", "auto: this cpu has no bf16 instructions"),
        (False, "bf16", "as the run began, though this cpu only emulates it"),
        (True, "fp32", "as the run began"),
    ],
)
def test_the_reason_is_told(monkeypatch, native, chosen, reason):
    monkeypatch.setattr(precision, "has_bf16", lambda _: native)
    assert explain_precision("auto", chosen, CPU) == reason


@pytest.mark.parametrize(("choice", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast_sets_the_dtype_of_products(choice, dtype):
    weight = torch.ones(2, 2)
    with autocast(CPU, choice):
        assert (weight @ weight).dtype is dtype


def test_the_loss_scale_grows_and_shrinks_and_resumes(monkeypatch):
    monkeypatch.setattr(LossScale, "GROWTH_STEPS", 2)
    scale = LossScale(4.0)
    values = []
    for finite in (True, True, False, True):
        assert scale.update(finite=finite) == finite
        values.append(scale.value)
    assert values == [4.0, 8.0, 4.0, 4.0]
    again = LossScale()
    again.load_state(scale.state())
    assert again.update(finite=True) and again.value == 8.0


def test_no_scale_helps_losses_that_are_not_finite():
    with pytest.raises(NonFiniteError, match=r"fp16: .* loss scale of 1; lower the learning rate"):
        LossScale(1.0).update(finite=False)
