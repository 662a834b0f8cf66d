"""What the fuzzer knows of a kind of file."""

import importlib
import pkgutil
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import kinds
from triptych.core.errors import TriptychError

Mutator = Callable[[random.Random, Path], None]
"""Changes files in a folder. What it cannot change, it leaves: an earlier one may have been there.
It draws from the given generator alone, so that a seed, or hypothesis, repeats it."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of file, or of files that are read together.

    Attributes:
        name: Letters, digits and underscores.
        build: Writes a valid sample into an empty folder: small, and equal in every call.
        mutators: One to three of them change a copy of the sample.
        use: Reads the changed sample, as a user would. It may write into the given folder alone.
        clean: What `use` may raise; all else is a fault, as are a process that dies, takes over
            10 s or 2 GB, runs code of a file, or writes elsewhere.
        seal: Writes the checksums of the sample anew; half the cases are sealed, as by an attacker.
    """

    name: str
    build: Callable[[Path], None]
    mutators: Sequence[Mutator]
    use: Callable[[Path], object]
    clean: tuple[type[BaseException], ...] = (TriptychError,)
    seal: Callable[[Path], None] | None = None

    def mutate(self, rng: random.Random, folder: Path) -> bool:
        """Change a copy of the sample, and return whether it was sealed afterwards."""
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            rng.choice(self.mutators)(rng, folder)
        sealed = self.seal is not None and rng.random() < 0.5
        if sealed:
            self.seal(folder)
        return sealed


def all_kinds() -> dict[str, Kind]:
    """Return every kind of the modules in `kinds/`, by name."""
    found = {}
    for module in pkgutil.iter_modules(kinds.__path__):
        for kind in importlib.import_module(f"{kinds.__name__}.{module.name}").KINDS:
            assert kind.name not in found, kind.name
            found[kind.name] = kind
    return found
