"""Completion scripts: bash accepts them, and they hold every verb and recipe."""

import shutil
import subprocess

import pytest

from triptych.cli.completion import SHELLS, script
from triptych.cli.main import VERBS, main
from triptych.recipes.registry import RECIPES


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_verb_and_recipe(shell, capsys):
    assert main(["completion", shell]) == 0
    words = set(capsys.readouterr().out.replace('"', " ").replace("'", " ").split())
    assert {word for verb in VERBS for word in verb.split()} <= words
    assert set(RECIPES) <= words


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_accepts_the_script_and_completes_verbs_and_recipes():
    subprocess.run(["bash", "-n"], input=script("bash"), text=True, check=True)
    calls = """
    COMP_WORDS=(triptych cap); COMP_CWORD=1; _triptych; echo "${COMPREPLY[0]}"
    COMP_WORDS=(triptych train mplug.vq); COMP_CWORD=2; _triptych; echo "${COMPREPLY[0]}"
    COMP_WORDS=(triptych data che); COMP_CWORD=2; _triptych; echo "${COMPREPLY[0]}"
    """
    done = subprocess.run(
        ["bash"], input=script("bash") + calls, text=True, check=True, capture_output=True
    )
    assert done.stdout.split() == ["caption", "mplug.vqa", "check"]


def test_an_unknown_shell_is_named_with_the_choices(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err
