"""Imports that the processes of the fuzzer share; see `worker`."""

from tests.fuzz.kind import all_kinds

all_kinds()
