"""`triptych doctor` on logs: what it prints, its exit codes, and broken files."""

import json

import pytest

from triptych.cli.main import main
from triptych.core.config import save_yaml
from triptych.recipes.registry import build_recipe


def write(folder, lines, config=True):
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    if config:
        save_yaml(build_recipe("mplug.pretrain", "tiny"), folder / "config.yaml")
    return folder


def lines(itc=1.0, **more):
    return [
        {"step": step, "loss/itc": itc, "lr/rest": 1e-3, "loss/prefix_lm": 6 - step / 200} | more
        for step in range(10, 801, 10)
    ]


def test_a_healthy_run_exits_with_0(tmp_path, capsys):
    run = write(tmp_path, [{**line, "loss/itc": 1 / line["step"]} for line in lines()])
    assert main(["doctor", str(run)]) == 0
    said = capsys.readouterr().out
    assert "step 800 of 1,900: nothing found" in said
    assert "not looked for, since the log has no input/image_*" in said


def test_a_log_without_its_new_numbers_still_tells_of_chance(tmp_path, capsys):
    stuck = [{**line, "loss/itc": 4.15 + line["step"] % 20 / 1e4} for line in lines()]
    run = write(tmp_path, stuck)
    assert main(["doctor", str(run)]) == 1
    assert "ln 64" in capsys.readouterr().out  # the recipe's batch of 64
    assert main(["doctor", str(run), "--json"]) == 1
    (told,) = json.loads(capsys.readouterr().out)["runs"]
    (finding,) = [f for f in told["findings"] if f["name"] == "at_chance"]
    assert finding["where"] == "itc" and finding["chance"] == pytest.approx(4.1589, abs=1e-4)
    assert told["step"] == 800 and told["max_steps"] == 1900 and finding["next_step"]


def test_the_stages_of_a_folder_are_read_one_by_one(tmp_path, capsys):
    write(tmp_path / "text", [{"step": s, "loss/mlm": 1 / s} for s in range(1, 9)], config=False)
    write(tmp_path / "joint", lines(itc=0.5, data_wait_share=0.9), config=False)
    assert main(["doctor", str(tmp_path), "--json"]) == 1
    found = {run["run"]: run["findings"] for run in json.loads(capsys.readouterr().out)["runs"]}
    assert [f["name"] for f in found[str(tmp_path / "joint")]] == ["dead_loss", "data_starved"]
    assert found[str(tmp_path / "text")] == []


@pytest.mark.parametrize("content", [None, b"", b"{}\n[]\nnull\n", b"\xff\xfe\x00", b"{" * 100_000])
def test_without_a_line_of_numbers_it_exits_with_2(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_bytes(content)
    assert main(["doctor", str(tmp_path)]) == 2
    assert "metrics.jsonl" in capsys.readouterr().err


def test_broken_lines_are_skipped_and_counted(tmp_path, capsys):
    run = write(tmp_path, lines(data_wait_share=0.9))
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'[1]\n{"step": "x"}\n{"step": 5}\n{"step": 810, "loss/itc": 1e999}\n\xff{"st')
    assert main(["doctor", str(run)]) == 1
    said = capsys.readouterr()
    assert "4 lines are not lines of metrics" in said.err
    assert "data_starved" in said.out and "not_finite (loss/itc)" in said.out


@pytest.mark.parametrize("config", ["", "[", "recipe: 3", "task: {kind: nothing}"])
def test_a_config_that_cannot_be_read_costs_the_chance_values_alone(tmp_path, capsys, config):
    run = write(tmp_path, lines(data_wait_share=0.9), config=False)
    (run / "config.yaml").write_text(config)
    assert main(["doctor", str(run)]) == 1
    said = capsys.readouterr()
    assert "chance values are unknown" in said.err and "data_starved" in said.out
