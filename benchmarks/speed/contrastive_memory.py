"""Peak memory of ITC in tiles over whole matrices, at a large global batch: `contrastive_memory`.

Each way runs in a process of its own: one process's 1,024 pairs against the 32,768 of all, loss and
gradients of both directions, where every caption belongs to two images. The figure compares the
highest resident memory above that of the inputs, which both need. Losses and gradients must agree
to 1e-5. `--teacher` adds a momentum encoder's soft targets. Prints JSON.

    python -m benchmarks.speed.contrastive_memory
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from triptych.core.errors import DataError
from triptych.objectives.tiled import TILE, Teacher, contrastive_rows

MIB = 2**20
WIDTH = 256
TOLERANCE = 1e-5


def peak_mib() -> float:
    """Return the highest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MIB


def measure(rows: int, columns: int, tile: int, *, teacher: bool, path: Path) -> dict[str, float]:
    """Compute the loss and its gradients, store them, and return memory and time.

    Args:
        rows: Pairs of this process.
        columns: Pairs of all processes.
        tile: Columns of a tile; as many as there are for whole matrices.
        teacher: Whether there are soft targets.
        path: Receives the loss and the gradients.
    """
    generator = torch.Generator().manual_seed(0)
    sides = [
        F.normalize(torch.randn(columns, WIDTH, generator=generator), dim=-1).requires_grad_()
        for _ in range(2)
    ]
    temperature = torch.tensor(0.07, requires_grad=True)
    keys = torch.stack([torch.arange(columns), torch.arange(columns) // 2], dim=1)
    noise = torch.randn(rows, WIDTH, generator=generator)
    before, start = peak_mib(), time.perf_counter()
    per_row = [
        contrastive_rows(
            own[:rows],
            (others,),
            temperature,
            keys[:rows],
            (keys,),
            teacher=Teacher(F.normalize(own[:rows].detach() + noise), 0.4) if teacher else None,
            tile=tile,
        )
        for own, others in (sides, sides[::-1])
    ]
    loss = (per_row[0].mean() + per_row[1].mean()) / 2
    loss.backward()
    found = {"peak_mib": round(peak_mib() - before, 1)}
    found["seconds"] = round(time.perf_counter() - start, 3)
    inputs = (*sides, temperature)
    gradients = [tensor.grad for tensor in inputs if tensor.grad is not None]
    stored = {f"gradient_{i}": gradient for i, gradient in enumerate(gradients)}
    save_file(stored | {"loss": loss.detach()}, path)
    return found


def largest_difference(first: Path, second: Path) -> float:
    """Return by how much a loss or a gradient differs, over the largest number of its kind."""
    one, other = load_file(first), load_file(second)
    return max(
        float((tensor - other[name]).abs().max() / other[name].abs().max())
        for name, tensor in one.items()
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1024, help="pairs of one process")
    parser.add_argument("--columns", type=int, default=32_768, help="pairs of all processes")
    parser.add_argument("--tile", type=int, default=TILE, help="columns of a tile")
    parser.add_argument("--teacher", action="store_true", help="with soft targets")
    parser.add_argument("--child", type=Path, help="measure this tile only, and store there")
    options = parser.parse_args(arguments)
    sizes = (options.rows, options.columns)
    if options.child is not None:
        found = measure(*sizes, options.tile, teacher=options.teacher, path=options.child)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, dict[str, Any]] = {}
        for name, tile in (("whole", options.columns), ("tiled", options.tile)):
            command = ["-m", "benchmarks.speed.contrastive_memory", "--tile", str(tile)]
            command += ["--rows", str(options.rows), "--columns", str(options.columns)]
            command += ["--child", str(Path(folder) / name), *["--teacher"] * options.teacher]
            done = subprocess.run(
                [sys.executable, *command], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise DataError(f"python {' '.join(command)} failed:\n{done.stderr[-2000:]}")
            ways[name] = json.loads(done.stdout.splitlines()[-1])
        difference = largest_difference(Path(folder) / "tiled", Path(folder) / "whole")
    if not difference <= TOLERANCE:
        raise DataError(f"losses or gradients differ by {difference:.1e}, above {TOLERANCE:.0e}")
    whole, tiled = ways["whole"], ways["tiled"]
    print(
        json.dumps(
            {
                "contrastive_memory": round(tiled["peak_mib"] / whole["peak_mib"], 3),
                "time_ratio": round(tiled["seconds"] / whole["seconds"], 2),
                "largest_difference": difference,
                "protocol": f"ITC of {options.rows:,} pairs against {options.columns:,}, width "
                f"{WIDTH}, tiles of {options.tile:,} over whole matrices: peak resident memory "
                "above the inputs, forward and backward",
                **{name: dict(way) for name, way in ways.items()},
                "teacher": options.teacher,
                "num_threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
