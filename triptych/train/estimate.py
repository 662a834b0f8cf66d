"""Memory, network traffic and time of a training step on paper, for one GPU of many.

Parameters are counted on modules that may lie on the meta device; what a step computes and keeps
comes from a `StepWork`. Nothing is measured here: docs/scale.md derives each formula and says which
of them are tested against real tensors. Bytes are bytes, GB are 10⁹ of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import nn

from triptych.core.config import check
from triptych.distributed.engine import Parallel
from triptych.train.hardware import Hardware
from triptych.train.precision import Precision
from triptych.train.work import Recompute, StepWork

USABLE_SHARE = 0.9
"""Share of a GPU's memory that a run may plan with: the rest is CUDA's context, NCCL's buffers and
what the allocator cannot use."""

TILE_MATRICES = 4
"""(B, tile) matrices that exist at once in a tiled contrastive loss."""


# ------------------------------------------------------------------------------------- parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitCount:
    """Parameters of a block, or of what lies outside blocks.

    Attributes:
        trained: With a gradient.
        matrices: Those of them that Muon trains.
        teacher: Of a momentum model.
        frozen: Without a gradient, teachers apart.
    """

    trained: int = 0
    matrices: int = 0
    teacher: int = 0
    frozen: int = 0

    @property
    def parameters(self) -> int:
        """All of them."""
        return self.trained + self.teacher + self.frozen

    def __add__(self, other: UnitCount) -> UnitCount:
        """Return both together."""
        return UnitCount(
            trained=self.trained + other.trained,
            matrices=self.matrices + other.matrices,
            teacher=self.teacher + other.teacher,
            frozen=self.frozen + other.frozen,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StateCount:
    """The parameters and buffers that a task trains with.

    Attributes:
        units: By the names of the blocks, which are the units of sharding.
        root: What lies outside blocks: it is whole on each GPU during a step.
        buffer_bytes: Of buffers, such as a feature queue; each process holds all of them.
    """

    units: Mapping[str, UnitCount]
    root: UnitCount
    buffer_bytes: int = 0

    def all(self) -> UnitCount:
        """Return all parameters together."""
        return sum(self.units.values(), start=self.root)

    def largest_unit(self) -> int:
        """Return the parameters of the largest block."""
        return max((unit.parameters for unit in self.units.values()), default=0)


def _no_matrix(name: str, parameter: nn.Parameter) -> bool:
    del name, parameter
    return False


def count_state(
    modules: nn.Module, uses_muon: Callable[[str, nn.Parameter], bool] = _no_matrix
) -> StateCount:
    """Count the parameters of a task's modules, tied ones once.

    Args:
        modules: Task.modules, on any device; `teacher` in it is a momentum model.
        uses_muon: Whether Muon trains the parameter of a name, see `is_block_matrix`.
    """
    blocks = [name for name, module in modules.named_modules() if hasattr(module, "shard_entries")]
    units = {name: UnitCount() for name in blocks}
    root = UnitCount()
    for name, parameter in modules.named_parameters():
        own = UnitCount(
            trained=parameter.numel() if parameter.requires_grad else 0,
            matrices=parameter.numel()
            if parameter.requires_grad and uses_muon(name, parameter)
            else 0,
            teacher=parameter.numel() if _is_teacher(name) and not parameter.requires_grad else 0,
            frozen=parameter.numel()
            if not _is_teacher(name) and not parameter.requires_grad
            else 0,
        )
        holder = _holder(name, units)
        if holder is None:
            root += own
        else:
            units[holder] += own
    buffers = sum(b.numel() * b.element_size() for b in modules.buffers())
    return StateCount(units=units, root=root, buffer_bytes=buffers)


def _is_teacher(name: str) -> bool:
    return name.startswith("teacher.")


def _holder(name: str, units: Mapping[str, UnitCount]) -> str | None:
    """Return the unit that a parameter lies in."""
    parts = name.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return next((prefix for prefix in prefixes if prefix in units), None)


# ---------------------------------------------------------------------------------------- settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleSetting:
    """How a run is spread over GPUs; the fields are those of `train.*`.

    Attributes:
        world_size: GPUs.
        global_batch_size: Samples of all GPUs for one optimizer step.
        micro_batch_size: Samples of one GPU at a time; None is all of its own.
        parallel: What is sharded over GPUs: nothing (none, ddp), gradients and optimizer (zero2),
            and parameters (fsdp), within groups of `shard_size` GPUs (hsdp).
        shard_size: GPUs that share one copy of the state under hsdp; None is a machine.
        precision: fp32; bf16 or fp16 by autocast; bf16-params, of sharded parameters, gathers them
            and computes in bf16.
        recompute: What the backward pass computes again.
        tile: Columns of a tile of the contrastive loss; None computes all at once.
    """

    world_size: int
    global_batch_size: int
    micro_batch_size: int | None = None
    parallel: Parallel = "ddp"
    shard_size: int | None = None
    precision: Precision = "bf16"
    recompute: Recompute = "none"
    tile: int | None = 4096

    def __post_init__(self) -> None:
        """Reject batches and groups that do not divide."""
        for name in ("world_size", "global_batch_size"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "be at least 1")
        size, local = self.global_batch_size, self.global_batch_size // self.world_size
        fits = size % self.world_size == 0
        check(fits, "train.global_batch_size", size, f"be a multiple of {self.world_size} GPUs")
        micro = self.micro_batch_size
        fits = micro is None or (micro >= 1 and local % micro == 0)
        check(fits, "train.micro_batch_size", micro, f"divide the {local} samples of a GPU")
        alone = self.parallel != "none" or self.world_size == 1
        check(alone, "train.parallel", self.parallel, "share the work of several GPUs")
        fits = self.parallel != "hsdp" or self.world_size % self._group() == 0
        check(fits, "train.shard_size", self._group(), f"divide {self.world_size} GPUs")
        sharded = self.precision != "bf16-params" or self.shards > 1
        check(sharded, "train.precision", self.precision, "be bf16 where no parameter is sharded")

    def _group(self) -> int:
        return self.shard_size or min(8, self.world_size)

    @property
    def local_batch_size(self) -> int:
        """Samples of one GPU for one optimizer step."""
        return self.global_batch_size // self.world_size

    @property
    def micro(self) -> int:
        """Samples of one GPU at a time."""
        return self.micro_batch_size or self.local_batch_size

    @property
    def accumulate(self) -> int:
        """Micro-batches of an optimizer step."""
        return self.local_batch_size // self.micro

    @property
    def shards(self) -> int:
        """GPUs that share one copy of the optimizer's state."""
        if self.parallel in ("none", "ddp"):
            return 1
        return self._group() if self.parallel == "hsdp" else self.world_size

    @property
    def half(self) -> int:
        """Bytes of a number that a matrix product reads."""
        return 4 if self.precision == "fp32" else 2

    @property
    def stream(self) -> int:
        """Bytes of a number of the residual stream, which autocast keeps in fp32."""
        return 2 if self.precision == "bf16-params" else 4

    @property
    def gathered(self) -> int:
        """Bytes of a parameter that is gathered."""
        return 2 if self.precision == "bf16-params" else 4

    @property
    def copied(self) -> int:
        """Bytes of autocast's copy of a parameter."""
        return 2 if self.precision in ("bf16", "fp16") else 0


# ------------------------------------------------------------------------------------------ memory


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one GPU at the peak of a step.

    Attributes:
        weights: Trained parameters in fp32.
        gradients: Their gradients in fp32.
        optimizer: AdamW's two moments, or Muon's one.
        teacher: A momentum model and other frozen parameters, in fp32.
        queue: Buffers.
        copies: Autocast's copies, and what is gathered of sharded parameters and gradients.
        activations: What the backward pass reads, of one micro-batch or chunk.
        workspace: One more block's results, for their gradients, and the input tensors.
        contrast: Embeddings of all GPUs and the matrices of the contrastive loss.
    """

    weights: float
    gradients: float
    optimizer: float
    teacher: float
    queue: float
    copies: float
    activations: float = 0.0
    workspace: float = 0.0
    contrast: float = 0.0

    @property
    def state(self) -> float:
        """What does not depend on the batch."""
        return (
            self.weights + self.gradients + self.optimizer + self.teacher + self.queue + self.copies
        )

    @property
    def total(self) -> float:
        """All of it."""
        return self.state + self.activations + self.workspace + self.contrast


def estimate_memory(
    state: StateCount, setting: ScaleSetting, work: StepWork | None = None
) -> MemoryEstimate:
    """Return the memory of one GPU.

    Args:
        state: Parameters and buffers.
        setting: How they are spread.
        work: What a step computes; None leaves activations and the contrastive loss at 0.
    """
    counts, shards = state.all(), setting.shards
    frozen = counts.teacher + counts.frozen
    found = MemoryEstimate(
        weights=4 * counts.trained / shards,
        gradients=4 * counts.trained / shards,
        optimizer=(8 * counts.trained - 4 * counts.matrices) / shards,
        teacher=4 * frozen / shards,
        queue=state.buffer_bytes,
        copies=_copies(state, setting, work),
    )
    if work is None:
        return found
    samples = min(setting.micro, work.chunk_size or setting.micro)
    half, stream = setting.half, setting.stream
    return replace(
        found,
        activations=samples * work.kept_bytes(setting.recompute, half, stream),
        workspace=samples * work.largest(half, stream)
        + setting.micro * (work.input_bytes + (work.held_bytes if work.chunk_size else 0)),
        contrast=contrast_memory(setting, work),
    )


def _copies(state: StateCount, setting: ScaleSetting, work: StepWork | None) -> float:
    """Return the bytes of casts, and of parameters and gradients that are whole for a while.

    Whole gradients wait for the last micro-batch; and those of a block that is entered several
    times, or once a chunk, for the backward pass of the first entry.
    """
    counts = state.all()
    # autograd keeps the cast weights for the backward pass, of frozen blocks too, since gradients
    # pass through them; selective recomputation casts those of blocks again
    cast = state.root.trained
    if setting.recompute != "selective":
        cast += sum(unit.trained + unit.frozen for unit in state.units.values())
    casts = float(setting.copied * cast)
    if setting.parallel in ("none", "ddp"):
        return casts
    wide, two = setting.gathered, 2 * state.largest_unit()
    waiting = 0.0
    if setting.accumulate > 1:
        waiting = 4.0 * counts.trained
    elif work is not None:
        chunks = _chunks(work, setting)
        again = (
            unit.trained
            for name, unit in state.units.items()
            if chunks * work.entries(name, trained=True) > 1
        )
        waiting = float(wide * sum(again))
    reduced = (wide + 4) * (state.root.trained + two)  # as computed, and in fp32 to be reduced
    whole = counts.parameters if setting.parallel == "zero2" else state.root.parameters + two
    return casts + wide * whole + waiting + reduced


def _chunks(work: StepWork, setting: ScaleSetting) -> int:
    """Return the chunks of a micro-batch."""
    return 1 if work.chunk_size is None else math.ceil(setting.micro / work.chunk_size)


def contrast_memory(setting: ScaleSetting, work: StepWork) -> float:
    """Return the bytes of the contrastive loss: gathered embeddings, and (B, G) matrices.

    With a gradient cache the rows are those of the whole step, otherwise of a micro-batch.
    """
    loss = work.contrast
    if loss is None:
        return 0.0
    rows = contrast_rows(setting, work)
    gathered = rows * setting.world_size
    columns, matrices = gathered + loss.queue, loss.matrices
    if setting.tile is not None and setting.tile < columns:
        columns, matrices = setting.tile, TILE_MATRICES
    embeddings = loss.gathers * 2 * gathered * loss.embed_dim * 4
    return float(embeddings + loss.branches * 4 * matrices * rows * columns)


def contrast_rows(setting: ScaleSetting, work: StepWork) -> int:
    """Return the rows B of one GPU in the contrastive loss."""
    return setting.micro if work.chunk_size is None else setting.local_batch_size


# ----------------------------------------------------------------------------------------- network


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkEstimate:
    """Bytes that one GPU sends in an optimizer step, and the seconds that they take.

    Attributes:
        gradients: All-reduce, or reduce-scatter, of gradients.
        parameters: All-gathers of sharded parameters.
        contrast: Gathers of embeddings, and the way back of their gradients.
        exchanged: What samples send beside embeddings.
        seconds: On the links of the hardware, nothing being hidden behind computation.
    """

    gradients: float
    parameters: float
    contrast: float
    exchanged: float
    seconds: float

    @property
    def total(self) -> float:
        """All bytes."""
        return self.gradients + self.parameters + self.contrast + self.exchanged


def estimate_network(
    state: StateCount, setting: ScaleSetting, work: StepWork, hardware: Hardware
) -> NetworkEstimate:
    """Return what one GPU sends in a step.

    Ring algorithms: of S bytes, an all-gather or a reduce-scatter over n GPUs sends S·(n-1)/n from
    each, an all-reduce twice that.
    """
    world, shards, times = setting.world_size, setting.shards, setting.accumulate
    trained = 4.0 * state.all().trained
    everywhere = hardware.node_link if world <= hardware.gpus_per_node else hardware.link
    gradients = parameters = seconds = 0.0
    if shards > 1:
        inside = hardware.node_link if shards <= hardware.gpus_per_node else hardware.link
        gradients = trained * (shards - 1) / shards
        parameters = times * _gathered_bytes(state, setting, work) * (shards - 1) / shards
        seconds = (gradients + parameters) / inside
    copies = world // shards
    if copies > 1:  # an all-reduce of each shard over the copies; DDP's only one
        reduced = 2 * trained / shards * (copies - 1) / copies
        gradients += reduced
        seconds += reduced / everywhere
    contrast = 0.0
    if work.contrast is not None:
        rows, loss = contrast_rows(setting, work), work.contrast
        rounds = times if work.chunk_size is None else 1
        contrast = rounds * loss.gathers * 2 * rows * (world - 1) * loss.embed_dim * 4.0
    exchanged = setting.local_batch_size * work.exchanged_bytes if world > 1 else 0.0
    return NetworkEstimate(
        gradients=gradients,
        parameters=parameters,
        contrast=contrast,
        exchanged=exchanged,
        seconds=seconds + (contrast + exchanged) / everywhere,
    )


def _gathered_bytes(state: StateCount, setting: ScaleSetting, work: StepWork) -> float:
    """Return the bytes of parameters that one micro-batch gathers.

    Fully sharded blocks are gathered each time that they are entered, and once more for the
    backward pass of each entry; ZeRO-2 keeps them from the first entry to the first backward pass.
    What has no backward pass, and what lies outside blocks, is gathered once.
    """
    ways = 1 if setting.parallel == "zero2" else 2
    gathered, chunks = state.root.parameters, _chunks(work, setting)
    for name, unit in state.units.items():
        times = ways * chunks * work.entries(name, trained=True)
        gathered += (times + work.entries(name, trained=False)) * unit.parameters
    return float(setting.gathered * gathered)


# -------------------------------------------------------------------------------------------- time


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeEstimate:
    """Seconds of an optimizer step.

    Attributes:
        compute_s: Of the operations, at the assumed utilisation.
        network_s: Of the traffic.
    """

    compute_s: float
    network_s: float

    @property
    def overlapped_s(self) -> float:
        """Where the shorter of both is hidden behind the longer."""
        return max(self.compute_s, self.network_s)

    @property
    def serial_s(self) -> float:
        """Where nothing is hidden."""
        return self.compute_s + self.network_s

    def hours(self, samples: float, setting: ScaleSetting) -> float:
        """Return the hours of so many samples, the traffic being hidden as far as it can be."""
        return samples / setting.global_batch_size * self.overlapped_s / 3600


def estimate_time(
    state: StateCount,
    setting: ScaleSetting,
    work: StepWork,
    hardware: Hardware,
    *,
    utilisation: float = 0.3,
) -> TimeEstimate:
    """Return the time of a step.

    Args:
        state: Parameters.
        setting: How they are spread.
        work: What a step computes.
        hardware: On what.
        utilisation: Assumed share of the hardware's peak, over all operations that are computed.
    """
    check(0 < utilisation <= 1, "utilisation", utilisation, "be in (0, 1]")
    flops = work.computed_flops(setting.recompute) * setting.local_batch_size
    return TimeEstimate(
        compute_s=flops / (hardware.peak(setting.precision) * utilisation),
        network_s=estimate_network(state, setting, work, hardware).seconds,
    )


# ------------------------------------------------------------------------------------------ choice


def choose_parallel(
    state: StateCount,
    setting: ScaleSetting,
    memory_bytes: float,
    work: StepWork | None = None,
) -> Parallel:
    """Return what `train.parallel: auto` takes: the first of DDP, ZeRO-2 and FSDP that fits.

    A single process takes none. Where nothing fits, FSDP is the one that lacks least. Under
    bf16-params something must be sharded, so that ZeRO-2 is the first.

    Args:
        state: Parameters and buffers.
        setting: Batches and precision; its own `parallel` is not read.
        memory_bytes: Of one GPU; a tenth of it stays free.
        work: What a step computes; None compares the state alone.
    """
    if setting.world_size == 1:
        return "none"
    kinds: tuple[Parallel, ...] = ("ddp", "zero2")
    for kind in kinds[setting.precision == "bf16-params" :]:
        needed = estimate_memory(state, with_parallel(setting, kind), work).total
        if needed <= USABLE_SHARE * memory_bytes:
            return kind
    return "fsdp"


def with_parallel(setting: ScaleSetting, kind: Parallel) -> ScaleSetting:
    """Return a setting under another kind; where nothing is sharded, bf16-params becomes bf16."""
    whole = kind in ("none", "ddp") and setting.precision == "bf16-params"
    precision = "bf16" if whole else setting.precision
    size = setting.shard_size if kind == "hsdp" else None
    return replace(setting, parallel=kind, precision=precision, shard_size=size)  # type: ignore[arg-type]
