"""The GPU script: its code on a CPU, with a compiler that changes nothing; all of it on a GPU."""

import json
from functools import partial

import pytest
import torch

from benchmarks import gpu

PARTS = {"step_fp32", "step_bf16", "step_fp16", "caption_fp32", "caption_bf16"}


@pytest.mark.filterwarnings("ignore")
def test_every_part_runs_on_a_cpu(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda module, **options: setattr(
            module, "_compiled_call_impl", partial(module._call_impl)
        ),
    )
    out = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--smoke", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found == json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["failed"] == {} and found["not_run"] == []
    assert PARTS | {"attention", "optimizer"} <= found.keys()
    for name in ("step_fp32", "step_bf16", "step_fp16"):
        plain = found[name]["plain"]
        assert plain["pairs_per_s"] > 0 and set(plain["losses"]) > {"itc", "itm"}
        assert plain["losses"] == found[name]["compiled"]["losses"]
    assert found["step_fp16"]["plain"]["loss_scale"] > 1
    assert set(found["attention"]) == {"kernels", "softmax_apart"}
    assert found["caption_fp32"]["batch_2"]["plain"]["captions_per_s"] > 0


def test_no_part_starts_after_the_minutes(monkeypatch, tmp_path):
    out = tmp_path / "gpu.json"
    gpu.main(["--device", "cpu", "--smoke", "--minutes", "-1", "--out", str(out)])
    assert set(json.loads(out.read_text())["not_run"]) >= PARTS
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cpu", "--smoke"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_on_a_gpu_waits_no_more_than_twice(tmp_path):
    device, size = gpu.GPU("cuda"), gpu.sizes(smoke=True)
    found = gpu.step(device, size, "bf16", compiled=False)
    assert found["waits"] <= 2  # the numbers of the step, and how many texts read an image
    scaled = gpu.step(device, size, "fp16", compiled=False)
    assert scaled["loss_scale"] >= 1
    assert gpu.attention(device, size)["kernels"]
