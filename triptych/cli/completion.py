"""`triptych completion SHELL`: print a script that completes verbs, recipes, flags and files."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any

from triptych.core.errors import ConfigError

SHELLS = ("bash", "zsh", "fish", "tcsh")

HELP = """usage: triptych completion bash|zsh|fish|tcsh

Print a completion script for a shell: verbs, recipes, flags and files. Write it to a file once,
and again after an upgrade:
  bash  triptych completion bash > ~/.local/share/bash-completion/completions/triptych
  zsh   triptych completion zsh > ~/.triptych.zsh     and in ~/.zshrc:  source ~/.triptych.zsh
  fish  triptych completion fish > ~/.config/fish/completions/triptych.fish
  tcsh  triptych completion tcsh > ~/.triptych.tcsh   and in ~/.tcshrc: source ~/.triptych.tcsh"""

BASH = """\
_triptych() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" choices=""
  if [[ "$word" == -* ]]; then
    case "${{COMP_WORDS[1]}} ${{COMP_WORDS[2]}}" in
{flags}
    esac
  else
    case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
      1:*) choices="{verbs}" ;;
{seconds}
    esac
  fi
  COMPREPLY=($(compgen -W "$choices" -- "$word") $(compgen -f -- "$word"))
}}
complete -o filenames -F _triptych triptych
"""

ZSH = """\
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
autoload -Uz bashcompinit && bashcompinit
"""


def choices() -> tuple[list[str], dict[str, list[str]]]:
    """Return the first words of all verbs, and by first word what may follow it."""
    from triptych.cli.main import VERBS
    from triptych.cli.train import STAGEWISE
    from triptych.models.families import CONVERTERS
    from triptych.recipes.registry import RECIPES

    first = list(dict.fromkeys(name.split()[0] for name in VERBS))
    second: dict[str, list[str]] = {}
    for name in VERBS:
        if " " in name:
            verb, rest = name.split()
            second.setdefault(verb, []).append(rest)
    second["plan"] = sorted(RECIPES)
    second["train"] = sorted([*RECIPES, *STAGEWISE])
    second["import"] = sorted(CONVERTERS)
    second["export"] = [*second["export"], *second["import"]]
    second["completion"] = list(SHELLS)
    return first, second


def flags() -> dict[str, list[str]]:
    """Return the flags of each verb that has any; `train` has those of all recipes."""
    from triptych.cli.main import VERBS
    from triptych.cli.train import LABELS, STAGEWISE
    from triptych.recipes.registry import RECIPES, build_recipe

    found = {name: _flags_in_help(name.split()) for name in VERBS if name != "completion"}
    for recipe in STAGEWISE:
        found["train"] |= _flags_in_help(["train", recipe])
    for recipe in RECIPES:
        found["train"] |= set(_config_flags(build_recipe(recipe, "smoke")))
    found["train"] -= {f"--{label}" for label in LABELS if label != "scale"}
    found["plan"] |= found["train"]
    return {name: sorted(names) for name, names in found.items()}


def _flags_in_help(words: Sequence[str]) -> set[str]:
    """Return the flags that a verb's `--help` lists."""
    from triptych.cli.main import main

    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        main([*words, "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][\w.-]*\w", text.getvalue()))


def _config_flags(config: Any, prefix: str = "--") -> Iterator[str]:
    """Yield the flag of each field of a config, and of the configs in it."""
    for field in dataclasses.fields(config):
        name, value = prefix + field.name.replace("_", "-"), getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _config_flags(value, f"{name}.")
        else:
            yield name


def script(shell: str) -> str:
    """Return the completion script of a shell."""
    first, second = choices()
    if shell == "fish":
        return _fish(first, second)
    if shell == "tcsh":
        return _tcsh(first, second)
    seconds = "\n".join(
        f'      2:{verb}) choices="{" ".join(words)}" ;;' for verb, words in second.items()
    )
    listed = "\n".join(
        f'      "{name}{"" if " " in name else " "}"*) choices="{" ".join(names)}" ;;'
        # The longest name first: `export onnx` is no `export` of a family.
        for name, names in sorted(flags().items(), key=lambda found: -len(found[0].split()))
    )
    body = BASH.format(verbs=" ".join(first), seconds=seconds, flags=listed)
    return ZSH + body if shell == "zsh" else body


def _fish(first: Sequence[str], second: dict[str, list[str]]) -> str:
    lines = [f"complete -c triptych -n __fish_use_subcommand -f -a '{' '.join(first)}'"]
    lines += [
        f"complete -c triptych -n '__fish_seen_subcommand_from {verb}' -a '{' '.join(words)}'"
        for verb, words in second.items()
    ]
    for name, names in flags().items():
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in name.split())
        lines += [f"complete -c triptych -n '{seen}' -l {flag[2:]}" for flag in names]
    return "\n".join(lines) + "\n"


def _tcsh(first: Sequence[str], second: dict[str, list[str]]) -> str:
    """Return one `complete` command; it offers the flags of all verbs after each."""
    names = sorted({flag[2:] for found in flags().values() for flag in found})
    rules = [f"c/--/({' '.join(names)})/", f"p/1/({' '.join(first)})/"]
    rules += [f"n/{verb}/({' '.join(words)})/" for verb, words in second.items()]
    return f"complete triptych {' '.join(repr(rule) for rule in rules)}\n"


def run(argv: Sequence[str]) -> int:
    """Print the script of the shell that is named."""
    if list(argv) in ([], ["-h"], ["--help"]):
        print(HELP)
        return 0
    if len(argv) > 1 or argv[0] not in SHELLS:
        wanted = " ".join(argv)
        raise ConfigError(f"no completion for {wanted!r}: choose one of {', '.join(SHELLS)}")
    print(script(argv[0]), end="")
    return 0
