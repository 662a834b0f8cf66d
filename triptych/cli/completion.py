"""`triptych completion SHELL`: print a script that completes verbs, recipes and files."""

from __future__ import annotations

from collections.abc import Sequence

from triptych.core.errors import ConfigError

SHELLS = ("bash", "zsh", "fish")

HELP = """usage: triptych completion bash|zsh|fish

Print a completion script for a shell. To load it in every new shell, put the line into the file:
  bash  ~/.bashrc                    source <(triptych completion bash)
  zsh   ~/.zshrc                     source <(triptych completion zsh)
  fish  ~/.config/fish/config.fish   triptych completion fish | source"""

BASH = """\
_triptych() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" choices=""
  case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
    1:*) choices="{verbs}" ;;
{seconds}
  esac
  COMPREPLY=($(compgen -W "$choices" -- "$word") $(compgen -f -- "$word"))
}}
complete -o filenames -F _triptych triptych
"""

ZSH = "autoload -Uz bashcompinit && bashcompinit\n"


def choices() -> tuple[list[str], dict[str, list[str]]]:
    """Return the first words of all verbs, and by first word what may follow it."""
    from triptych.cli.main import VERBS
    from triptych.models.families import CONVERTERS
    from triptych.recipes.registry import RECIPES

    first = list(dict.fromkeys(name.split()[0] for name in VERBS))
    second: dict[str, list[str]] = {}
    for name in VERBS:
        if " " in name:
            verb, rest = name.split()
            second.setdefault(verb, []).append(rest)
    second["train"] = second["estimate"] = sorted(RECIPES)
    second["import"] = second["export"] = sorted(CONVERTERS)
    second["completion"] = list(SHELLS)
    return first, second


def script(shell: str) -> str:
    """Return the completion script of a shell."""
    first, second = choices()
    if shell == "fish":
        lines = [
            f"complete -c triptych -n __fish_use_subcommand -f -a '{' '.join(first)}'",
        ]
        lines += [
            f"complete -c triptych -n '__fish_seen_subcommand_from {verb}' -a '{' '.join(words)}'"
            for verb, words in second.items()
        ]
        return "\n".join(lines) + "\n"
    seconds = "\n".join(
        f'    2:{verb}) choices="{" ".join(words)}" ;;' for verb, words in second.items()
    )
    body = BASH.format(verbs=" ".join(first), seconds=seconds)
    return ZSH + body if shell == "zsh" else body


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
