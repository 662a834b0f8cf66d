"""`metrics.jsonl` is exact and rewinds."""

import json
from pathlib import Path

import pytest

from triptych.core.errors import CheckpointError
from triptych.train.metrics_log import MetricsLog, StepMeans, read_metrics


def test_floats_are_written_so_that_they_read_equal(tmp_path):
    values = {"loss/itc": 0.1 + 0.2, "grad_norm": 1e-310, "loss/mlm": 1 / 3}
    log = MetricsLog(tmp_path)
    log.write(1, values)
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, **values}]


@pytest.mark.parametrize("tail", ["", '{"step": 4, "loss', '{"step": 4, "loss/a": 4.0}'])
def test_resuming_drops_later_and_half_written_lines(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": step, "loss/a": step / 7}) for step in (1, 2, 2, 3)]
    path.write_text("\n".join(lines) + "\n" + tail)
    log = MetricsLog(tmp_path, start_step=2)
    log.write(3, {"loss/a": 9.0})
    log.close()
    assert path.read_text().splitlines() == [*lines[:3], '{"step": 3, "loss/a": 9.0}']


def test_a_log_that_is_removed_ends_the_run(tmp_path):
    log = MetricsLog(tmp_path)
    log.write(1, {"loss/a": 1.0})
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"metrics.jsonl was removed while the run"):
        log.write(2, {"loss/a": 1.0})
    log.close()


def test_means_survive_a_checkpoint():
    whole, means = StepMeans(), StepMeans()
    numbers = [{"a": 0.1, "b": 5.0}, {"a": 0.7}, {"a": 0.2, "b": 6.0}]
    for values in numbers:
        whole.add(values)
        means.add(values)
        restored = StepMeans()
        restored.load_state(json.loads(json.dumps(means.state())))
        means = restored
    assert means.pop() == whole.pop() == {"a": pytest.approx(1 / 3), "b": 5.5}
    assert means.pop() == {}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_says_what_to_do(tmp_path):
    log = MetricsLog(tmp_path)
    log._file.close()
    log._file = Path("/dev/full").open("a", encoding="utf-8")  # noqa: SIM115 - the log closes it
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: No space left.*free space.*resume"):
        log.write(1, {"loss": 1.0})
    with pytest.raises(CheckpointError, match="free space"):
        log.close()
