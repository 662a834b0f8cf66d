"""The gatherer, and what it is asked for in foundation.json, without running any benchmark."""

import json
from functools import partial

import pytest

from benchmarks.pages import foundation, gather
from benchmarks.pages.foundation import DEMO_KEYS, FOUNDATION, demo_figures, read_own_data
from benchmarks.pages.gather import Part, load_json, part_figures, read_json_line, result_table
from benchmarks.pages.results_page import readme_table
from benchmarks.speed import flava_step, precision
from triptych.core.errors import DataError
from triptych.demo.page import TARGETS as DEMO_BARS

BARS, PARTS = FOUNDATION.bars, FOUNDATION.parts
MACHINE = {"CPU": "one", "cores": "2"}
assemble = partial(gather.assemble, FOUNDATION)
GOOD = {
    "demo_minutes": 14.2,
    "i2t_r1": 0.81,
    "t2i_r1": 0.82,
    "i2t_r1_itm": 0.9,
    "t2i_r1_itm": 0.91,
    "caption_objects": 0.7,
    "vqa": 0.75,
    "vqa_blind": 0.5,
    "grounding": 0.6,
    "bf16_speedup": 1.9,
    "beam_cache_speedup": 9.0,
    "scenes_per_s": 2500,
    "resume_kills": 10,
    "own_data": "yes",
} | {f"compositional_{key}": 0.1 for key in foundation.SCORES}


def figures(values, **changes):
    """Return figures as the parts give them."""
    values = values | changes
    return {
        key: {"value": value, "command": f"do {key}", "commit": "abc", "machine": MACHINE}
        for key, value in values.items()
    }


def demo_file(scale="tiny"):
    keys = [*DEMO_KEYS, "bleu_4"]
    values = GOOD | {"bleu_4": 0.3}
    return {
        "machine": MACHINE,
        "commit": "abc",
        "scale": scale,
        "figures": {
            key: {"value": values[key], "command": "triptych demo", "low": 0.0} for key in keys
        },
    }


def reached(key, **changes):
    return assemble(figures(GOOD, **changes), MACHINE, "abc")["figures"][key]["reached"]


def test_the_asked_figures_are_those_of_the_table():
    compositional = {key for key in DEMO_KEYS if key.startswith("compositional_")}
    assert len(compositional) == 8
    assert set(DEMO_KEYS) | set(BARS) == set(GOOD)
    given = [key for part in PARTS for key in part.keys]
    assert len(given) == len(set(given))
    assert set(given) == set(GOOD) - set(DEMO_KEYS)


def test_bars_of_the_demo_agree_with_its_own():
    for key, limit in DEMO_BARS.items():
        assert BARS[key].text == f">= {limit:g}"


def test_every_figure_has_value_command_bar_and_verdict():
    result = assemble(figures(GOOD), MACHINE, "abc")
    assert list(result) == ["machine", "commit", "figures"]
    assert (result["machine"], result["commit"]) == (MACHINE, "abc")
    for key, value in GOOD.items():
        figure = result["figures"][key]
        assert (figure["value"], figure["command"]) == (value, f"do {key}")
        assert figure["reached"] is (None if key.startswith("compositional_") else True)
        assert (figure["bar"] is None) == key.startswith("compositional_")
        assert not figure.keys() & {"commit", "machine"}


@pytest.mark.parametrize(
    ("key", "just", "not_quite"),
    [
        ("demo_minutes", 15, 15.01),
        ("i2t_r1", 0.8, 0.798),
        ("t2i_r1", 0.8, 0.798),
        ("i2t_r1_itm", 0.85, 0.848),
        ("t2i_r1_itm", 0.85, 0.848),
        ("caption_objects", 0.6, 0.599),
        ("vqa", 0.7, 0.699),
        ("vqa_blind", 0.55, 0.551),  # vqa is 0.75
        ("grounding", 0.5, 0.499),
        ("bf16_speedup", 1.8, 1.79),
        ("beam_cache_speedup", 6, 5.99),
        ("scenes_per_s", 2000, 1999),
        ("resume_kills", 10, 9),
        ("own_data", "yes", "no"),
    ],
)
def test_bar(key, just, not_quite):
    assert reached(key, **{key: just}) is True
    assert reached(key, **{key: not_quite}) is False


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), "", True, [0.5]])
def test_a_figure_without_value_is_an_error(bad):
    with pytest.raises(DataError, match=r"no value for vqa, bf16_speedup$"):
        assemble(figures(GOOD, vqa=bad, bf16_speedup=bad), MACHINE, "abc")


def test_a_figure_that_this_machine_cannot_give_says_why():
    part = next(part for part in PARTS if part.name == "precision")
    output = {"not_measured": "no bf16"}
    stored = {"machine": MACHINE, "commit": "abc", "command": part.command, "output": output}
    given = figures(GOOD) | part_figures(part, stored)
    result = assemble(given, MACHINE, "abc")
    figure = result["figures"]["bf16_speedup"]
    assert (figure["value"], figure["reached"], figure["not_measured"]) == (None, None, "no bf16")
    assert "not measured: no bf16" in result_table(FOUNDATION, result).columns[1].cells
    assert "| >= 1.8 not measured |" in readme_table(result)


@pytest.mark.parametrize("module", [precision, flava_step])
def test_nobody_waits_for_bf16_that_is_emulated(module, monkeypatch, capsys):
    monkeypatch.setattr(module, "cpu_has_bf16", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmark"])
    if module is flava_step:
        monkeypatch.setattr("sys.argv", ["benchmark", "--precision", "bf16"])
    module.main()
    assert json.loads(capsys.readouterr().out).keys() == {"not_measured"}


@pytest.mark.parametrize("key", sorted(GOOD))
def test_a_missing_figure_is_an_error(key):
    given = figures(GOOD)
    del given[key]
    with pytest.raises(DataError, match=f"no value for {key}$"):
        assemble(given, MACHINE, "abc")


def test_another_commit_or_machine_is_named_at_the_figure():
    given = figures(GOOD)
    given["vqa"] |= {"commit": "def"}
    given["beam_cache_speedup"] |= {"machine": {"CPU": "other"}}
    result = assemble(given, MACHINE, "abc")["figures"]
    assert result["vqa"]["commit"] == "def"
    assert "machine" not in result["vqa"]
    assert result["beam_cache_speedup"]["machine"] == {"CPU": "other"}
    assert "commit" not in result["beam_cache_speedup"]


def test_other_figures_of_the_demo_follow_with_their_intervals():
    given = demo_figures(demo_file())
    rest = {key: figure for key, figure in figures(GOOD).items() if key not in given}
    result = assemble(given | rest, MACHINE, "abc")["figures"]
    assert list(result)[-1] == "bleu_4"
    assert result["bleu_4"]["reached"] is None
    assert result["vqa"]["low"] == 0.0


def test_the_demo_must_be_the_tiny_one():
    with pytest.raises(DataError, match="scale 'smoke'"):
        demo_figures(demo_file("smoke"))
    with pytest.raises(DataError, match="a part of scale 'tiny'; the targets are for all"):
        demo_figures(demo_file() | {"whole": False})


def test_the_figure_of_a_part_carries_its_origin():
    part = Part(
        "beam",
        (
            "-m",
            "benchmarks.speed.beam",
        ),
        ("beam_cache_speedup",),
        read_json_line,
    )
    stored = {
        "machine": MACHINE,
        "commit": "abc",
        "command": part.command,
        "output": {"beam_cache_speedup": 7.5, "pairs": 3, "protocol": "so"},
    }
    assert part_figures(part, stored) == {
        "beam_cache_speedup": {
            "value": 7.5,
            "command": "python -m benchmarks.speed.beam",
            "commit": "abc",
            "machine": MACHINE,
            "protocol": "so",
        }
    }


def test_json_is_read_from_the_last_line_that_holds_it():
    assert read_json_line(0, 'warming up\n{"a": 1}\n{"b": 2}\ndone\n') == {"b": 2}


@pytest.mark.parametrize(("code", "output"), [(1, '{"a": 1}'), (0, "nothing")])
def test_a_failed_part_is_an_error(code, output):
    with pytest.raises(DataError, match=f"exit code {code}"):
        read_json_line(code, output)


@pytest.mark.parametrize(
    ("code", "output", "verdict"),
    [
        (0, "4 passed in 3.21s", "yes"),
        (1, "1 failed, 3 passed in 3.21s", "no"),
        (0, "3 passed, 1 skipped in 3.21s", "no"),
        (1, "3 passed, 1 error in 3.21s", "no"),
    ],
)
def test_own_data_is_yes_only_if_all_tests_passed(code, output, verdict):
    assert read_own_data(code, output)["own_data"] == verdict


def test_own_data_without_tests_is_an_error():
    with pytest.raises(DataError, match="no test was run"):
        read_own_data(5, "no tests ran in 0.01s")


@pytest.fixture
def stored_parts(tmp_path, monkeypatch):
    """Every part's file as of an earlier run, beside the file to be written."""
    monkeypatch.setattr(gather, "describe_machine", lambda: MACHINE)
    monkeypatch.setattr(gather, "current_commit", lambda: "abc")
    for part in PARTS:
        output = {key: GOOD[key] for key in part.keys}
        content = {"machine": MACHINE, "commit": "old", "command": part.command, "output": output}
        (tmp_path / f"{part.name}.json").write_text(json.dumps(content))
    demo = tmp_path / "results.json"
    demo.write_text(json.dumps(demo_file()))
    return demo


def run_main(demo, tmp_path, *, skip):
    return foundation.main(
        ["--demo", str(demo), "--out", str(tmp_path / "o.json"), "--skip", *skip]
    )


def test_stored_parts_and_the_demo_make_the_file(stored_parts, tmp_path, capsys):
    assert run_main(stored_parts, tmp_path, skip=[part.name for part in PARTS]) == 0
    result = load_json(tmp_path / "o.json")
    assert {key: result["figures"][key]["value"] for key in GOOD} == GOOD
    assert result["figures"]["bf16_speedup"]["commit"] == "old"
    assert "targets not met: none" in capsys.readouterr().out


def test_a_part_that_fails_leaves_the_others_stored_and_writes_no_result(
    stored_parts, tmp_path, monkeypatch, capsys
):
    skip = [part.name for part in PARTS if part.name not in ("scenes", "beam")]

    def run_part(part, machine, commit):
        if part.name == "scenes":
            raise DataError("scenes broke")
        output = {"beam_cache_speedup": 8.0}
        return {"machine": machine, "commit": commit, "command": part.command, "output": output}

    monkeypatch.setattr(gather, "run_part", run_part)
    assert run_main(stored_parts, tmp_path, skip=skip) == 1
    assert "scenes broke" in capsys.readouterr().out
    assert not (tmp_path / "o.json").exists()
    beam = load_json(tmp_path / "beam.json")
    assert (beam["commit"], beam["output"]["beam_cache_speedup"]) == ("abc", 8.0)


def test_a_part_to_skip_that_was_never_stored_is_an_error(stored_parts, tmp_path, capsys):
    (tmp_path / "precision.json").unlink()
    assert run_main(stored_parts, tmp_path, skip=[part.name for part in PARTS]) == 1
    assert "precision.json does not exist" in capsys.readouterr().out
    assert not (tmp_path / "o.json").exists()


def test_a_part_runs_with_this_python_in_the_root_and_shows_what_went_wrong(tmp_path, monkeypatch):
    monkeypatch.setattr(gather, "ROOT", tmp_path)
    good = Part("good", ("-c", "print('{\"cwd\": 1}')"), ("cwd",), read_json_line)
    assert gather.run_part(good, MACHINE, "abc")["output"] == {"cwd": 1}
    bad = Part("bad", ("-c", "raise SystemExit('out of luck')"), (), read_json_line)
    with pytest.raises(DataError, match="out of luck"):
        gather.run_part(bad, MACHINE, "abc")
