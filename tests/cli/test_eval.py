"""eval: what is handed to the evaluator, and how its numbers are shown and stored."""

import json
from dataclasses import replace

import pytest

from triptych.cli.main import main
from triptych.core.outputs import MetricValue
from triptych.data.source import DataSourceConfig
from triptych.workflows.evaluate import EvalSettings

VALUE = MetricValue(
    name="vqa", value=0.75, low=0.5, high=0.875, num_items=1200, protocol="VQAv2 accuracy [soft]."
)


class Loaded:
    """A loaded model, as the command line sees it."""

    def described(self):
        return "cpu in fp32; fp32 for a reason"


@pytest.fixture
def asked(monkeypatch):
    """Stand in for the evaluation; return the list of what was asked for."""
    calls = []

    def evaluate_model(folder, task, source, **options):
        options.pop("progress")
        options.pop("on_skipped")("1 of 2 samples skipped")
        options.pop("on_loaded")(Loaded())
        calls.append((str(folder), task, source, options))
        return [VALUE]

    monkeypatch.setattr("triptych.workflows.evaluate.evaluate_model", evaluate_model)
    return calls


def test_the_table_shows_value_interval_number_and_protocol(capsys, asked):
    assert main(["eval", "m", "--task", "vqa", "--data", "a.jsonl"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "vqa on a.jsonl" in lines[0]
    row = next(line for line in lines if "0.7500" in line)
    assert "vqa" in row and "0.5000 to 0.8750" in row and "1,200" in row
    assert "vqa: VQAv2 accuracy [soft]." in lines


def test_what_was_left_out_is_told_apart_from_the_table(capsys, asked):
    assert main(["eval", "m", "--task", "vqa", "--data", "a.jsonl"]) == 0
    shown = capsys.readouterr()
    assert "1 of 2 samples skipped" in shown.err and "skipped" not in shown.out
    assert "evaluating on cpu in fp32; fp32 for a reason" in shown.err


def test_options_reach_the_evaluator(asked, tmp_path):
    templates = tmp_path / "templates.txt"
    templates.write_text("one {}\ntwo {}\n")
    arguments = "m --task retrieval --data a.json b.json --image-root pics --split test --limit 9"
    arguments += " --rerank-top-k 0 --itm-score itm+itc --local-batch-size 4 --max-bad-share 0.5"
    arguments += f" --captions-per-image 5 --folds 2 --templates {templates} --label-pattern _(.+)"
    assert main(["eval", *arguments.split()]) == 0
    options = {
        "limit": 9,
        "rerank_top_k": 0,
        "itm_score": "itm+itc",
        "settings": EvalSettings(
            captions_per_image=5, folds=2, templates=("one {}", "two {}"), label_pattern="_(.+)"
        ),
        "local_batch_size": 4,
        "max_bad_share": 0.5,
    }
    sources = [
        DataSourceConfig(path=p, image_root="pics", split="test") for p in ("a.json", "b.json")
    ]
    assert asked == [("m", "retrieval", source, options) for source in sources]


def test_json_holds_every_number(asked, tmp_path):
    path = tmp_path / "deep" / "scores.json"
    arguments = ["m", "--task", "vqa", "--data", "a", "b", "--json", str(path), "--limit", "5"]
    assert main(["eval", *arguments]) == 0
    content = json.loads(path.read_text())
    assert [score["data"] for score in content["scores"]] == ["a", "b"]
    assert content["scores"][1]["metrics"] == [
        {
            "name": "vqa",
            "value": 0.75,
            "low": 0.5,
            "high": 0.875,
            "num_items": 1200,
            "protocol": "VQAv2 accuracy [soft].",
            "higher_is_better": True,
        }
    ]
    assert (content["model"], content["task"], content["limit"]) == ("m", "vqa", 5)


def test_json_is_printed_and_written_by_flags_of_their_own(capsys, asked, tmp_path):
    path = tmp_path / "scores.json"
    arguments = ["eval", "m", "--task", "vqa", "--data", "a"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["scores"][0]["metrics"][0]["value"] == 0.75
    assert main([*arguments, "--out", str(path), "--json"]) == 0
    assert json.loads(path.read_text()) == json.loads(capsys.readouterr().out) == printed
    assert main([*arguments, "--out", str(path)]) == 0
    assert "0.7500" in capsys.readouterr().out
    path.unlink()
    assert main([*arguments, f"--json={path}"]) == 0  # as earlier versions had it
    assert json.loads(path.read_text()) == printed


def test_a_protocol_is_said_once(capsys, asked, monkeypatch):
    words = {"i2t": "Image to text", "t2i": "Text to image"}
    values = [
        replace(VALUE, name=f"{key}_r{k}", protocol=f"{text} recall at {k}: first 16 by ITC, 9.")
        for key, text in words.items()
        for k in (1, 5, 10)
    ]
    monkeypatch.setattr("triptych.workflows.evaluate.evaluate_model", lambda *_, **__: values)
    assert main(["eval", "m", "--task", "retrieval", "--data", "a"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    names = "i2t_r1, i2t_r5, i2t_r10, t2i_r1, t2i_r5, t2i_r10"
    assert shown.count("first 16 by ITC") == 1 and f"{names}: first 16 by ITC, 9." in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["m", "--task", "vqa"], "--data"),
        (["m", "--data", "a"], "--task"),
        (["m", "--task", "vqq", "--data", "a"], "vqq"),
        (["m", "--task", "vqa", "--data", "a", "--limit", "0"], "limit = 0: must be at least 1"),
        (["m", "--task", "vqa", "--data", "a", "--readr", "csv"], "--reader"),
    ],
)
def test_mistakes_are_found_before_anything_is_loaded(capsys, asked, arguments, message):
    assert main(["eval", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert asked == []


def test_a_missing_model_folder_is_named(capsys):
    assert main(["eval", "nowhere", "--task", "vqa", "--data", "a.jsonl"]) == 2
    assert "no model folder at nowhere" in capsys.readouterr().err
