"""`python -m tests.fuzz`: a round of the fuzzer; prints JSON, exits 1 where it found a fault."""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.damage import count_refused
from tests.fuzz.kind import all_kinds
from tests.fuzz.rounds import Samples, run_round
from tests.fuzz.worker import Outcome

OWN_MEMORY = 6 << 30
"""Address space of the process that makes the cases; it reads none of them."""


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, help="how long; with --cases, what ends first")
    parser.add_argument("--cases", type=int, help="how many cases")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the changes")
    parser.add_argument("--workers", type=int, default=2, help="processes that read")
    parser.add_argument("--kinds", nargs="+", choices=list(all_kinds()), help="only these kinds")
    parser.add_argument("--damaged-models", type=int, help="instead: this many damaged folders")
    asked = parser.parse_args()
    if asked.damaged_models is not None:
        return _damage_models(asked.damaged_models, asked.seed)
    if asked.minutes is None and asked.cases is None:
        asked.cases = 1000
    chosen = {n: k for n, k in all_kinds().items() if asked.kinds is None or n in asked.kinds}

    def tell(name: str, outcome: Outcome, kept: Path | None) -> None:
        print(f"{name}: {outcome.signature}", file=sys.stderr)
        print(f"  {kept or 'not kept: large, or there are cases like it'}", file=sys.stderr)
        if kept is not None:
            print(outcome.detail, file=sys.stderr)

    resource.setrlimit(resource.RLIMIT_AS, (OWN_MEMORY, resource.RLIM_INFINITY))
    with tempfile.TemporaryDirectory(prefix="triptych_fuzz_") as folder:
        result = run_round(
            Samples(Path(folder), chosen),
            seed=asked.seed,
            num_cases=asked.cases,
            minutes=asked.minutes,
            num_workers=asked.workers,
            on_fault=tell,
        )
    print(json.dumps(result))
    return 1 if result["fuzz_unclean"] else 0


def _damage_models(num_folders: int, seed: int) -> int:
    with tempfile.TemporaryDirectory(prefix="triptych_fuzz_") as folder:
        refused, missed = count_refused(Path(folder), num_folders, seed)
    for line in missed:
        print(line, file=sys.stderr)
    print(json.dumps({"damaged_models": refused, "damaged_models_of": num_folders, "seed": seed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
