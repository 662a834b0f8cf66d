"""Settings of a training run that do not depend on the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from triptych.core.config import MAX_BATCH_SIZE, MAX_WORKERS, check, check_range, renamed
from triptych.core.errors import ConfigError
from triptych.distributed.engine import Parallel
from triptych.train.metrics_log import TrackerName
from triptych.train.precision import PrecisionChoice
from triptych.train.work import Recompute

ParallelChoice = Literal["auto"] | Parallel


MOST = {
    "num_processes": 65_536,
    "num_threads": MAX_WORKERS,
    "micro_batch_size": MAX_BATCH_SIZE,
    "global_batch_size": 1 << 24,
}
"""The largest values of what takes memory or processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How long, how large and how carefully to train."""

    max_steps: int
    """Total number of optimizer steps; the learning-rate decay ends here."""

    global_batch_size: int
    """Samples of one optimizer step, all processes together."""

    micro_batch_size: int | None = None
    """Most samples that a process passes through the model at a time. A process that has more for
    one step accumulates their gradients. None: all at once."""

    parallel: ParallelChoice = "auto"
    """How several processes share the work. `ddp`: each has the whole model; `zero2`: gradients and
    optimizer state are split; `fsdp`: weights too (ZeRO-3); `hsdp`: as `fsdp` within groups of
    `shard_size` processes, and as `ddp` between them. `auto` is `ddp`; on GPUs, the first of
    `ddp`, `zero2` and `fsdp` whose estimated memory fits (docs/scale.md)."""

    shard_size: int | None = None
    """Processes of a group of `hsdp`; None: those of one machine."""

    max_grad_norm: float | None = 1.0
    """Global gradient norm above which gradients are scaled down; None disables clipping."""

    clip_per_parameter: bool = False
    """Whether `max_grad_norm` limits the gradient norm of each parameter separately instead of the
    global norm, as in DINO's released code."""

    log_every_steps: int = 10
    """Steps between lines of `metrics.jsonl`; a line holds means over the steps since the last."""

    evaluate_every_steps: int | None = None
    """Steps between evaluations, for tasks that have one (dvae); None disables them."""

    checkpoint_every_steps: int = 500
    """Steps between checkpoints; one is also written at the end and on Ctrl-C or SIGTERM."""

    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep."""

    keep_every_steps: int | None = None
    """Checkpoints of steps that are multiples of this stay on disk as well; None keeps no more."""

    async_checkpoints: bool = True
    """Write checkpoints in the background while training goes on; this takes memory for a copy of
    weights and optimizer."""

    precision: PrecisionChoice = "auto"
    """Precision of the forward pass; weights stay fp32. `auto` is bf16 if the processor has
    instructions for it, else fp32; `bf16-params` also gathers sharded weights in bf16 (zero2, fsdp,
    hsdp); `fp16` scales the loss, for GPUs without bf16."""

    recompute: Recompute = "none"
    """Which activations of blocks the backward pass computes again instead of keeping them.
    `selective`: all but the results of linear layers and of attention; `full`: all but the inputs
    of blocks, for a second forward pass. Losses are the same."""

    compile_blocks: bool = False
    """Whether `torch.compile` compiles each block; needs a C++ compiler on a CPU."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` uses the GPU if there is one."""

    num_threads: int | None = None
    """CPU threads for torch's kernels; None keeps torch's default."""

    num_processes: int = 1
    """Processes on this machine that train together, each on its part of the batch; a launcher
    such as `torchrun` sets its own number."""

    seed: int = 0
    """Seed of dropout and of every other random choice of the training process."""

    progress: Literal["auto", "live", "plain", "off"] = "auto"
    """How to show progress; `auto` is a live display on a terminal and plain lines elsewhere."""

    tensorboard: bool = True
    """Whether to write TensorBoard event files to `tensorboard/` in the run folder, if TensorBoard
    is installed."""

    trackers: tuple[TrackerName, ...] = ()
    """Services that also receive the curves, each an extra package: wandb (Weights & Biases),
    trackio."""

    def __post_init__(self) -> None:
        for field in (
            "max_steps",
            "num_processes",
            "global_batch_size",
            "log_every_steps",
            "checkpoint_every_steps",
            "keep_checkpoints",
        ):
            check(getattr(self, field) >= 1, field, getattr(self, field), "be at least 1")
        for field in (
            "evaluate_every_steps",
            "keep_every_steps",
            "num_threads",
            "micro_batch_size",
            "shard_size",
        ):
            value = getattr(self, field)
            check(value is None or value >= 1, field, value, "be at least 1, or absent")
        for field, most in MOST.items():
            check_range(field, getattr(self, field), 1, most)
        check(
            self.max_grad_norm is None or self.max_grad_norm > 0,
            "max_grad_norm",
            self.max_grad_norm,
            "be above 0, or absent for no clipping",
        )

    @staticmethod
    def upgrade_fields(plain: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a file that may be older than this class, as they are named now.

        `local_batch_size` was the batch of each of `num_processes`, in `accumulate` micro-batches;
        `activation_checkpointing`, whether `recompute` is `full`.
        """
        fields = renamed(
            plain,
            {"clip_apart": "clip_per_parameter", "activation_checkpointing": "recompute"},
        )
        if isinstance(fields.get("recompute"), bool):
            fields["recompute"] = "full" if fields["recompute"] else "none"
        if "local_batch_size" in fields:
            local, accumulate = fields.pop("local_batch_size"), fields.pop("accumulate", 1)
            fields["global_batch_size"] = local * fields.get("num_processes", 1)
            fields["micro_batch_size"] = local // accumulate if accumulate > 1 else None
        return fields

    def split_batch(self, world_size: int) -> BatchSplit:
        """Return how so many processes share the batch of a step.

        Raises:
            ConfigError: The batch cannot be split into equal parts.
        """
        local, rest = divmod(self.global_batch_size, world_size)
        if rest or not local:
            raise ConfigError(
                f"train.global_batch_size = {self.global_batch_size}: {world_size} processes must "
                "share it equally; choose a multiple, or another number of processes"
            )
        micro = min(self.micro_batch_size or local, local)
        if local % micro:
            raise ConfigError(
                f"train.micro_batch_size = {self.micro_batch_size}: each of {world_size} processes "
                f"has {local} samples a step, which it does not divide; choose a divisor of {local}"
            )
        return BatchSplit(micro, local // micro)


@dataclass(frozen=True, slots=True)
class BatchSplit:
    """One process's part of a step.

    Attributes:
        micro_batch_size: Samples that the loader yields at a time.
        accumulate: Micro-batches of a step.
    """

    micro_batch_size: int
    accumulate: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule; defaults: mPLUG base (arXiv:2205.12005)."""

    learning_rate: float = 1e-4
    """Peak learning rate of everything but the vision encoder."""

    vision_learning_rate: float = 1e-5
    """Peak learning rate of the vision encoder, which usually starts from pre-trained weights."""

    head_learning_rate_factor: float = 1.0
    """Peak learning rate of a randomly initialised classifier, as a multiple of `learning_rate`
    (VLMo's VQA: 20)."""

    lora_learning_rate_factor: float = 10.0
    """Peak learning rate of low-rank matrices, as a multiple of `learning_rate`, or of
    `vision_learning_rate` for those of the vision encoder; of `muon_learning_rate` where Muon
    trains them."""

    layer_decay: float = 1.0
    """Learning rate of a block relative to the block above it; 1 gives all blocks the same."""

    weight_decay: float = 0.02
    """Decoupled weight decay; norms, biases, position embeddings and temperature have none."""

    muon_learning_rate: float | None = None
    """Peak learning rate of Muon, which then trains the matrices inside blocks instead of AdamW;
    None trains everything with AdamW, as the papers do."""

    muon_momentum: float = 0.95
    """Decay rate of Muon's momentum (Jordan et al. 2024)."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW's first and second moment; torch's defaults, as in the released code."""

    eps: float = 1e-8
    """Small term that keeps AdamW's division finite."""

    warmup_steps: int = 1000
    """Steps of linear warm-up from `warmup_learning_rate` to the peak."""

    warmup_learning_rate: float = 1e-6
    """Learning rate of the first step, for every group."""

    min_learning_rate: float = 1e-6
    """Learning rate at the end of the decay, for every group."""

    decay: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after warm-up (VLMo: linear)."""

    def __post_init__(self) -> None:
        for field in (
            "learning_rate",
            "vision_learning_rate",
            "head_learning_rate_factor",
            "lora_learning_rate_factor",
            "eps",
        ):
            check(getattr(self, field) > 0, field, getattr(self, field), "be above 0")
        for field in ("weight_decay", "warmup_steps", "warmup_learning_rate", "min_learning_rate"):
            check(getattr(self, field) >= 0, field, getattr(self, field), "be at least 0")
        rate = self.muon_learning_rate
        check(rate is None or rate > 0, "muon_learning_rate", rate, "be above 0, or absent")
        check(0 < self.layer_decay <= 1, "layer_decay", self.layer_decay, "be in (0, 1]")
        check(0 <= self.muon_momentum < 1, "muon_momentum", self.muon_momentum, "lie in [0, 1)")
        for beta in self.betas:
            check(0 <= beta < 1, "betas", self.betas, "lie in [0, 1)")
        head_rate = self.learning_rate * self.head_learning_rate_factor
        lowest = min(self.learning_rate, self.vision_learning_rate, head_rate)
        check(
            self.min_learning_rate <= lowest,
            "min_learning_rate",
            self.min_learning_rate,
            f"not exceed the lowest peak learning rate, {lowest}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveWeight:
    """Weight of one objective over the run: zero, then a linear ramp, then constant, then zero.

    Steps count from 0: `start_step=0` is the first step of the run.
    """

    name: str
    """Objective, such as "itc"."""

    weight: float = 1.0
    """Factor on the loss after the ramp."""

    start_step: int = 0
    """First step with a weight above zero."""

    ramp_steps: int = 0
    """Steps of the linear ramp; the first of them has `weight / ramp_steps`."""

    end_step: int | None = None
    """First step at which the objective is off again; None keeps it to the end."""

    every_steps: int = 1
    """Period: the objective is computed at `start_step` and every `every_steps` after it."""

    def __post_init__(self) -> None:
        for field in ("weight", "start_step", "ramp_steps"):
            check(getattr(self, field) >= 0, field, getattr(self, field), "be at least 0")
        check(self.every_steps >= 1, "every_steps", self.every_steps, "be at least 1")
        check(
            self.end_step is None or self.end_step > self.start_step,
            "end_step",
            self.end_step,
            f"be above start_step = {self.start_step}, or absent",
        )
