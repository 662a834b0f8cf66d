"""The `triptych` command: one file a verb, each with `run(arguments) -> exit code`.

A verb's file imports torch and everything heavy inside its functions, after the command line is
known to be right, so that `--help` and a mistyped flag answer at once.
"""
