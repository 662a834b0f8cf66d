"""What a GPU makes of a training step and of captions, in ten minutes; writes its results file.

`step`: mPLUG's pre-training step by the trainer itself, in fp32, bf16 and fp16 (with the loss
scale), each without and with `train.compile_blocks`: pairs a second, peak memory, losses, and how
often a step waits for the GPU, as torch's own debug mode counts it. AdamW is the fused one, as the
library's always is; `optimizer` compares it with the one without.
`attention`: which kernels of `scaled_dot_product_attention` a step ran, and whether any softmax
over scores was computed apart from it.
`caption`: beam search of mPLUG with caches, captions a second by precision and batch size, without
and with a compiled decoder.

Parts run in this order until the minutes are over; what was not run is named.

    python -m benchmarks.gpu                                  # on a GPU
    python -m benchmarks.gpu --device cpu --smoke --out /tmp/gpu.json   # the same code, tiny
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.mplug_batch import CLS_ID, SEP_ID, VOCAB_SIZE, make_batch
from triptych.core.files import write_json
from triptych.core.machine import describe_machine
from triptych.generation.decoding import CachedDecoder
from triptych.generation.search import BeamConfig, beam_search
from triptych.models.mplug.config import MPLUGConfig
from triptych.models.mplug.family import MPLUG_FAMILY, mplug_base_patch16_256, mplug_tiny
from triptych.models.mplug.model import MPLUG
from triptych.recipes.mplug import pretrain
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.train.optim import build_optimizer, group_parameters
from triptych.train.precision import autocast
from triptych.train.step import to_device
from triptych.train.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "gpu.json"
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is computed.

    Attributes:
        model: Sizes of the model.
        scale: Of the recipe whose task and optimizer are used.
        pairs: Of a step.
        warm_up: Steps before the clock starts.
        steps: Steps that are timed.
        captions: Batch sizes of captioning.
        max_tokens: Of a caption.
    """

    model: MPLUGConfig
    scale: str
    pairs: int
    warm_up: int
    steps: int
    captions: tuple[int, ...]
    max_tokens: int


def sizes(smoke: bool) -> Sizes:
    """Return base size, or one that a CPU computes in seconds."""
    if smoke:
        model = mplug_tiny(image_size=32, vocab_size=VOCAB_SIZE)
        return Sizes(model, "smoke", pairs=4, warm_up=0, steps=1, captions=(2,), max_tokens=4)
    model = mplug_base_patch16_256()
    return Sizes(model, "base", pairs=64, warm_up=5, steps=20, captions=(1, 32), max_tokens=20)


class GPU:
    """The device, and what can be asked of it; on a CPU what there is to ask."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.is_cuda = self.device.type == "cuda"

    def wait(self) -> None:
        """Return when the device has done everything."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def clear(self) -> None:
        """Free what earlier parts left, and set the peak of memory back."""
        gc.collect()
        if self.is_cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> float | None:
        """Return the most memory that was allocated since `clear`."""
        return round(torch.cuda.max_memory_allocated() / 2**30, 2) if self.is_cuda else None

    def waits(self, run: Callable[[], Any]) -> int | None:
        """Return how often `run` waits for the device, as torch's debug mode warns."""
        if not self.is_cuda:
            run()
            return None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run()
            finally:
                torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught)


def task_of(size: Sizes) -> MPLUGPretraining:
    """Return the task of the paper's pre-training, from random weights."""
    torch.manual_seed(0)
    config = pretrain(size.scale).task
    assert isinstance(config, MPLUGPretrainingConfig)
    return MPLUGPretraining(MPLUG(size.model), config)


def batches(size: Sizes, image_size: int, *, pin: bool) -> Iterator[Mapping[str, Tensor]]:
    """Yield two batches in turn, in pinned memory as the loader does for a GPU."""
    generator = torch.Generator().manual_seed(0)
    made = [make_batch(size.pairs, image_size, generator) for _ in range(2)]
    if pin:
        made = [{name: tensor.pin_memory() for name, tensor in batch.items()} for batch in made]
    while True:
        yield from made


def step(gpu: GPU, size: Sizes, precision: str, compiled: bool) -> dict[str, Any]:
    """Train some steps with the trainer; return their speed, and what they need."""
    gpu.clear()
    run, total = pretrain(size.scale), size.warm_up + size.steps + 1
    train = replace(
        run.train,
        device=gpu.device.type,
        precision=precision,
        compile_blocks=compiled,
        max_steps=total,
        global_batch_size=size.pairs,
        micro_batch_size=None,
        num_processes=1,
        checkpoint_every_steps=total,
        evaluate_every_steps=None,
        progress="off",
        tensorboard=False,
    )
    times: list[float] = []
    waits: list[int | None] = []

    class Timed(Trainer):
        """Notes the time of each step, and counts the waits of the last."""

        def _train_step(self, *arguments: Any) -> Any:
            found: list[Any] = []
            gpu.wait()
            began = time.perf_counter()

            def act() -> None:
                found.append(super(Timed, self)._train_step(*arguments))

            if self.step == total - 1:
                waits.append(gpu.waits(act))
            else:
                act()
            gpu.wait()
            times.append(time.perf_counter() - began)
            return found[0]

    task = task_of(size)
    made = batches(size, task.model.image_size, pin=gpu.is_cuda)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Timed(
            task,
            lambda start: made,
            config=train,
            optim=replace(run.optim, warmup_steps=1),
            weights=(),  # all objectives from the first step on
            run_folder=Path(folder),
            is_vision=MPLUG_FAMILY.is_vision_parameter,
        )
        result = trainer.fit()
    timed = times[size.warm_up : -1]
    return {
        "pairs_per_s": round(size.pairs / median(timed), 1),
        "ms": round(1e3 * median(timed), 1),
        "first_step_s": round(times[0], 1),
        "peak_gib": gpu.peak_gib(),
        "waits": waits[0],
        "losses": {name: round(value, 4) for name, value in result.losses.items()},
        "loss_scale": trainer.loss_scale.value,
    }


def steps(gpu: GPU, size: Sizes, precision: str) -> dict[str, Any]:
    """Return the step in a precision without and with compiled blocks."""
    return {
        "plain": step(gpu, size, precision, compiled=False),
        "compiled": step(gpu, size, precision, compiled=True),
    }


def optimizer(gpu: GPU, size: Sizes) -> dict[str, Any]:
    """Return milliseconds of AdamW's step, fused and not, on the same gradients."""
    gpu.clear()
    task = task_of(size)
    task.modules.to(gpu.device)
    run = pretrain(size.scale)
    config = replace(run.optim, muon_learning_rate=None)
    named = task.modules.named_parameters()
    groups = group_parameters(named, config, MPLUG_FAMILY.is_vision_parameter)
    for group in groups:
        for _, parameter in group.parameters:
            parameter.grad = torch.randn_like(parameter)
    fused = build_optimizer(groups, config)
    plain = torch.optim.AdamW([p for g in groups for _, p in g.parameters], fused=False)
    found = {}
    for name, kind in (("fused_ms", fused), ("foreach_ms", plain)):
        kind.step()
        times = []
        for _ in range(size.steps):
            gpu.wait()
            began = time.perf_counter()
            kind.step()
            gpu.wait()
            times.append(time.perf_counter() - began)
        found[name] = round(1e3 * median(times), 3)
    return found


def attention(gpu: GPU, size: Sizes) -> dict[str, Any]:
    """Return how often each attention kernel ran in a forward and backward pass."""
    gpu.clear()
    task = task_of(size)
    task.modules.to(gpu.device).train()
    batch = to_device(next(batches(size, task.model.image_size, pin=False)), gpu.device)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        with autocast(gpu.device, "bf16"):
            losses = task.losses(batch)
        torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    counts = {event.key: event.count for event in profile.key_averages()}
    kernels = {
        name.removeprefix("aten::"): count
        for name, count in counts.items()
        if name.startswith("aten::_scaled_dot_product") and "backward" not in name
    }
    return {"kernels": kernels, "softmax_apart": counts.get("aten::_softmax", 0)}


def caption(gpu: GPU, size: Sizes, precision: str, batch: int, compiled: bool) -> dict[str, Any]:
    """Return captions a second of beam search with 5 beams."""
    gpu.clear()
    torch.manual_seed(0)
    model = MPLUG(size.model).eval().to(gpu.device)
    decoder = model.decoder
    image = torch.randn(batch, 3, model.image_size, model.image_size, device=gpu.device)
    starts = torch.full((batch, 1), CLS_ID, device=gpu.device)
    if compiled:
        for block in decoder.blocks:
            block.compile(dynamic=True)
    config = BeamConfig(num_beams=5, min_tokens=size.max_tokens - 1, max_tokens=size.max_tokens)

    def once() -> list[Any]:
        with torch.no_grad(), autocast(gpu.device, precision):
            seen = model.encode_image(image)
            fused = model.fuse(seen, model.encode_text(starts, starts > 0))
            memory = model.memory_states(seen, fused)
            cached = CachedDecoder(decoder, decoder.project_memory(*memory))
            return beam_search(cached, start_id=CLS_ID, end_id=SEP_ID, config=config)

    once()
    times = []
    for _ in range(max(2, size.steps // 4)):
        gpu.wait()
        began = time.perf_counter()
        once()
        gpu.wait()
        times.append(time.perf_counter() - began)
    return {"captions_per_s": round(batch / median(times), 2), "peak_gib": gpu.peak_gib()}


def captions(gpu: GPU, size: Sizes, precision: str) -> dict[str, Any]:
    """Return beam search at each batch size, without and with a compiled decoder."""
    return {
        f"batch_{batch}": {
            "plain": caption(gpu, size, precision, batch, compiled=False),
            "compiled": caption(gpu, size, precision, batch, compiled=True),
        }
        for batch in size.captions
    }


def parts(gpu: GPU, size: Sizes) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what is measured, by name, in order of importance."""
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    found["step_bf16"] = lambda: steps(gpu, size, "bf16")
    found["caption_bf16"] = lambda: captions(gpu, size, "bf16")
    found["attention"] = lambda: attention(gpu, size)
    found["step_fp16"] = lambda: steps(gpu, size, "fp16")
    found["optimizer"] = lambda: optimizer(gpu, size)
    found["step_fp32"] = lambda: steps(gpu, size, "fp32")
    found["caption_fp32"] = lambda: captions(gpu, size, "fp32")
    return found


def measure(gpu: GPU, size: Sizes, minutes: float) -> dict[str, Any]:
    """Run the parts that fit; a part that fails says so and does not cost the others."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    left_out, failed = [], {}
    for name, part in parts(gpu, size).items():
        if time.monotonic() - began > 60 * minutes:
            left_out.append(name)
            continue
        try:
            found[name] = part()
        except Exception as error:  # out of memory, no compiler, a kernel that is missing
            failed[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return found | {"not_run": left_out, "failed": failed}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print one line of JSON, and write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--smoke", action="store_true", help="sizes for a CPU and for tests")
    parser.add_argument("--minutes", type=float, default=9.0, help="after them no part starts")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.smoke and options.out == RESULTS:
        parser.error("--smoke needs --out: its numbers are no results")
    gpu = GPU(options.device)
    name = torch.cuda.get_device_name() if gpu.is_cuda else "cpu"
    size = sizes(options.smoke)
    found = measure(gpu, size, options.minutes) | {
        "gpu": name,
        "machine": describe_machine(),
        "pairs": size.pairs,
        "smoke": options.smoke,
    }
    print(json.dumps(found))
    write_json(options.out, found)


if __name__ == "__main__":
    main()
