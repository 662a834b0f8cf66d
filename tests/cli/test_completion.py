"""Completion scripts: shells accept them, and they have every verb, recipe and flag."""

import re
import shutil
import subprocess

import pytest

from triptych.cli.completion import SHELLS, flags, script
from triptych.cli.main import VERBS, main
from triptych.recipes.registry import RECIPES


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_verb_and_recipe(shell, capsys):
    assert main(["completion", shell]) == 0
    words = set(re.split(r"[\s\"'()]+", capsys.readouterr().out))
    assert {word for verb in VERBS for word in verb.split()} <= words
    assert set(RECIPES) <= words


def test_flags_are_those_of_the_help_texts():
    found = flags()
    assert {"--skipped", "--max-bad-share"} <= set(found["data check"])
    assert "--skipped" not in found["eval"]
    train = set(found["train"])
    assert {"--scale", "--data", "--resume", "--train.max-steps"} <= train
    assert {"--image-objective", "--task.smoothing-bins", "--task.out-dim"} <= train
    assert "--recipe" not in train


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_accepts_the_script_and_completes_verbs_recipes_and_flags():
    printed = script("bash")
    subprocess.run(["bash", "-n"], input=printed, text=True, check=True)
    calls = """
    complete_last() { COMP_WORDS=("$@"); COMP_CWORD=$(($#-1)); _triptych; echo "${COMPREPLY[0]}"; }
    complete_last triptych cap
    complete_last triptych train mplug.vq
    complete_last triptych data che
    complete_last triptych data check --sk
    complete_last triptych train mplug.vqa --train.max-s
    """
    done = subprocess.run(
        ["bash"], input=printed + calls, text=True, check=True, capture_output=True
    )
    assert done.stdout.split() == [
        "caption",
        "mplug.vqa",
        "check",
        "--skipped",
        "--train.max-steps",
    ]


@pytest.mark.parametrize("shell", ["zsh", "fish", "tcsh"])
def test_the_shell_accepts_its_script(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    (tmp_path / "script").write_text(script(shell))
    command = f"source {tmp_path / 'script'}"
    done = subprocess.run([shell, "-c", command], text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_unknown_shell_is_named_with_the_choices(capsys):
    assert main(["completion", "elvish"]) == 2
    assert "bash, zsh, fish, tcsh" in capsys.readouterr().err
