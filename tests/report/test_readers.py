import pytest

from triptych.core.errors import DataError
from triptych.report.curves import read_curves


def test_losses_are_read_by_name_and_other_keys_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 10, "loss/itc": 2.5, "loss/total": 3.0, "samples_per_s": 800.0}\n'
        '{"step": 20, "loss/total": 2.0, "learning_rate": 0.1}\n'
        '{"step": 30, "loss/itc": 1.5, "loss/tot'
    )
    assert read_curves(path) == {"itc": [(10, 2.5)], "total": [(10, 3.0), (20, 2.0)]}


@pytest.mark.parametrize("line", ["{oops", '{"loss/itc": 1.0}', "[1]"])
def test_a_broken_line_before_the_last_is_an_error_with_its_place(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: not a line of metrics"):
        read_curves(path)


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_curves(tmp_path / "metrics.jsonl")
