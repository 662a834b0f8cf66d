"""The fuzzer: hostile files of every kind, each read in a process with limits.

`python -m tests.fuzz` runs it and says what it found; `make fuzz MINUTES=30` is a long round. A
kind of file is a module in `kinds/` with a list `KINDS`; see `kind.Kind`.
"""
