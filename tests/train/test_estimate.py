"""Memory, traffic and time on paper against real tensors, and against sums by hand."""

from dataclasses import replace

import pytest
import torch

from tests.train.test_work import make_batch
from triptych.core.errors import ConfigError
from triptych.models.base import num_parameters
from triptych.models.families import create_model
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.train.config import OptimConfig
from triptych.train.estimate import (
    ScaleSetting,
    StateCount,
    UnitCount,
    choose_parallel,
    contrast_memory,
    count_state,
    estimate_memory,
    estimate_network,
    estimate_time,
    with_parallel,
)
from triptych.train.hardware import HARDWARE, Hardware, find_hardware
from triptych.train.optim import build_optimizer, group_parameters, is_block_matrix
from triptych.train.work import ContrastWork, Cost, StackPass, StepWork

STATE = StateCount(
    units={"model.blocks.0": UnitCount(trained=600), "model.blocks.1": UnitCount(trained=300)},
    root=UnitCount(trained=100),
)
WORK = StepWork(
    passes=(
        StackPass(
            name="blocks",
            cost=Cost(flops=1e6, inputs=10, products=100),
            largest=Cost(products=60),
            blocks="model.blocks",
        ),
    ),
    contrast=ContrastWork(embed_dim=16),
)
MACHINE = Hardware(
    name="made up",
    memory_bytes=1e6,
    peak_flops=1e9,
    peak_flops_fp32=1e8,
    node_link=1e6,
    link=1e5,
    gpus_per_node=4,
)


def setting(parallel="ddp", world_size=4, **changes):
    values = {"global_batch_size": 8 * world_size, "precision": "fp32"} | changes
    return ScaleSetting(world_size=world_size, parallel=parallel, **values)


# ---------------------------------------------------------------------------- against real tensors


def test_parameters_of_flava_are_those_of_the_released_model():
    """facebook/flava-full: 357,645,303 parameters, 303,859,063 of them trainable, by transformers;
    the three poolers (1,771,776) are trained by no loss and are frozen here."""
    with torch.device("meta"):
        model = create_model("flava_full")
    found = count_state(torch.nn.ModuleDict({"model": model})).all()
    assert found.parameters == 357_645_303
    assert found.trained == 303_859_063 - 1_771_776


@pytest.mark.parametrize("name", ["mplug_large_patch14_224", "vlmo_large_patch16", "flava_10b"])
def test_every_parameter_is_counted_once(name):
    with torch.device("meta"):
        model = create_model(name)
    state = count_state(torch.nn.ModuleDict({"model": model}))
    assert state.all().parameters == num_parameters(model)
    depth = sum(hasattr(module, "shard_entries") for module in model.modules())
    assert len(state.units) == depth > 20


@pytest.fixture(scope="module")
def trained():
    """Return a function that takes one step of a tiny mPLUG: its task and its optimizer."""

    def step(muon):
        task = MPLUGPretraining(
            create_model("mplug_tiny", vocab_size=500),
            MPLUGPretrainingConfig(queue_size=32, distill_mlm=True, distill_prefix_lm=True),
        )
        config = OptimConfig(muon_learning_rate=1e-3 if muon else None)
        groups = group_parameters(task.modules.named_parameters(), config, lambda name: False)
        optimizer = build_optimizer(groups, config)
        sum(task.losses(make_batch(64, 16)).values()).backward()
        optimizer.step()
        return task, optimizer

    return step


def size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("muon", [False, True])
def test_the_state_of_a_real_run_has_the_bytes_of_the_estimate(trained, muon):
    task, optimizer = trained(muon)
    state = count_state(task.modules, is_block_matrix) if muon else count_state(task.modules)
    found = estimate_memory(state, setting("none", 1))
    learned = [p for p in task.modules.parameters() if p.requires_grad]
    moments = [
        value
        for stored in optimizer.state.values()
        for value in stored.values()
        if isinstance(value, torch.Tensor) and value.ndim > 0
    ]
    own_scalars = 2 * 4  # the temperature's two moments have no dimension
    assert found.weights == size(learned)
    assert found.gradients == size(p.grad for p in learned if p.grad is not None)
    assert found.optimizer == size(moments) + own_scalars
    assert found.teacher == size(task.modules["teacher"].parameters())
    assert found.queue == size(task.modules.buffers())
    assert (found.copies, found.activations) == (0, 0)


# ---------------------------------------------------------------------------------- memory by hand


def test_what_is_sharded():
    whole = estimate_memory(STATE, setting("ddp"))
    assert (whole.weights, whole.gradients, whole.optimizer) == (4000, 4000, 8000)
    assert whole.copies == 0
    for kind in ("zero2", "fsdp"):
        found = estimate_memory(STATE, setting(kind))
        assert (found.weights, found.gradients, found.optimizer) == (1000, 1000, 2000)
    group = estimate_memory(STATE, setting("hsdp", shard_size=2))
    assert (group.weights, group.gradients, group.optimizer) == (2000, 2000, 4000)


def test_what_is_gathered():
    """Of 100 parameters outside blocks and twice the largest block of 600."""
    gradients = (2 + 4) * 1300
    fsdp = estimate_memory(STATE, setting("fsdp", precision="bf16-params"))
    assert fsdp.copies == 2 * 1300 + gradients
    zero2 = estimate_memory(STATE, setting("zero2", precision="bf16-params"))
    assert zero2.copies == 2 * 1000 + gradients
    autocast = estimate_memory(STATE, setting("fsdp", precision="bf16"))
    assert autocast.copies == 2 * 1000 + 4 * 1300 + (4 + 4) * 1300
    assert estimate_memory(STATE, setting("ddp", precision="bf16")).copies == 2 * 1000
    selective = setting("ddp", precision="bf16", recompute="selective")
    assert estimate_memory(STATE, selective).copies == 2 * 100  # blocks cast again


def test_gradients_that_wait_are_whole():
    """For further micro-batches in fp32; for further entries of blocks as they are computed."""
    plain = setting("fsdp", precision="bf16-params")
    at_once = estimate_memory(STATE, plain, WORK).copies
    accumulated = replace(plain, micro_batch_size=4)
    assert estimate_memory(STATE, accumulated, WORK).copies == at_once + 4 * 1000
    again = replace(WORK, passes=(*WORK.passes, replace(WORK.passes[0], first=1)))
    assert estimate_memory(STATE, plain, again).copies == at_once + 2 * 300
    chunks = replace(WORK, chunk_size=2)
    assert estimate_memory(STATE, plain, chunks).copies == at_once + 2 * 900
    whole = setting("ddp", micro_batch_size=4)
    assert estimate_memory(STATE, whole, WORK).copies == 0


def test_entries_are_gathered_each():
    """As measured once on two processes: 6.0 times the parameters of VLMo's blocks, which
    images, texts and pairs enter; 3.0 times under ZeRO-2; one reduce-scatter in all."""
    thrice = replace(WORK, passes=WORK.passes * 3)
    for kind, ways in (("fsdp", 6), ("zero2", 3)):
        found = estimate_network(STATE, setting(kind), thrice, MACHINE)
        assert found.parameters == 4 * (ways * 900 + 100) * 3 / 4
        assert found.gradients == 4000 * 3 / 4


def test_activations_are_of_a_micro_batch_or_of_a_chunk():
    found = estimate_memory(STATE, setting(micro_batch_size=2), WORK)
    assert found.activations == 2 * 4 * 110
    assert found.workspace == 2 * 4 * 60
    assert estimate_memory(STATE, setting(recompute="full"), WORK).activations == 8 * 4 * 10
    chunked = replace(WORK, chunk_size=4)
    assert estimate_memory(STATE, setting(), chunked).activations == 4 * 4 * 110


def test_tiles_bound_the_matrices_but_not_the_embeddings():
    """B = 8 rows, G = 32 columns, E = 16; embeddings and their gradients are 4 matrices (G, E)."""
    embeddings = 4 * 32 * 16 * 4
    assert contrast_memory(setting(tile=None), WORK) == embeddings + 8 * 8 * 32 * 4
    assert contrast_memory(setting(tile=8), WORK) == embeddings + 4 * 8 * 8 * 4
    assert contrast_memory(setting(tile=64), WORK) == contrast_memory(setting(tile=None), WORK)


def test_untiled_matrices_are_as_measured():
    """A measured step took 1,020 MiB above its inputs at B = 1,024, G = 32,768, E = 256 (without
    gathers), so that eight matrices of 128 MiB are about right."""
    work = replace(WORK, contrast=ContrastWork(embed_dim=256))
    found = contrast_memory(ScaleSetting(world_size=32, global_batch_size=32_768, tile=None), work)
    matrices = found - 4 * 32_768 * 256 * 4
    assert matrices / 2**20 == pytest.approx(1020, rel=0.01)


# ------------------------------------------------------------------------- traffic and time by hand


def test_ddp_reduces_each_gradient_once_a_step():
    found = estimate_network(STATE, setting(micro_batch_size=1), WORK, MACHINE)
    assert found.gradients == 2 * 4000 * 3 / 4
    assert found.parameters == 0


@pytest.mark.parametrize(("kind", "ways"), [("fsdp", 2), ("zero2", 1)])
def test_sharding_gathers_blocks_and_the_rest(kind, ways):
    found = estimate_network(STATE, setting(kind, micro_batch_size=4), WORK, MACHINE)
    assert found.gradients == 4000 * 3 / 4  # once, after two micro-batches
    assert found.parameters == 2 * 4 * (ways * 900 + 100) * 3 / 4
    half = setting(kind, micro_batch_size=4, precision="bf16-params")
    assert estimate_network(STATE, half, WORK, MACHINE).parameters == found.parameters / 2


def test_hsdp_shards_within_a_machine_and_reduces_between_machines():
    found = estimate_network(STATE, setting("hsdp", 8, shard_size=4), WORK, MACHINE)
    between = 2 * 1000 * 1 / 2
    assert found.gradients == 4000 * 3 / 4 + between
    inside = 4000 * 3 / 4 + found.parameters
    rest = between + found.contrast
    assert found.seconds == pytest.approx(inside / 1e6 + rest / 1e5)


def test_embeddings_travel_both_ways():
    """8 rows of 2 x 16 numbers from each of 3 others, and their gradients back."""
    found = estimate_network(STATE, setting(), WORK, MACHINE)
    assert found.contrast == 2 * 2 * 8 * 3 * 16 * 4
    constant = replace(WORK, contrast=ContrastWork(embed_dim=16, gathers=1))
    assert estimate_network(STATE, setting(), constant, MACHINE).contrast == found.contrast / 2


def test_time_is_operations_over_what_the_hardware_does():
    found = estimate_time(STATE, setting(), WORK, MACHINE, utilisation=0.5)
    assert found.compute_s == pytest.approx(3e6 * 8 / (1e8 * 0.5))
    assert found.overlapped_s == max(found.compute_s, found.network_s)
    assert found.hours(32 * 3600, setting()) == pytest.approx(found.overlapped_s)
    half = estimate_time(STATE, setting(precision="bf16"), WORK, MACHINE, utilisation=0.5)
    assert half.compute_s == pytest.approx(found.compute_s / 10)


# ------------------------------------------------------------------------------------------ choice


def test_auto_shards_only_what_does_not_fit():
    """Of 50 blocks alike, what is gathered is little beside what is sharded."""
    many = StateCount(units={f"b.{i}": UnitCount(trained=100) for i in range(50)}, root=UnitCount())
    needs = {
        kind: estimate_memory(many, setting(kind), WORK).total for kind in ("ddp", "zero2", "fsdp")
    }
    assert needs["ddp"] > needs["zero2"] > needs["fsdp"]
    for kind, below in (("ddp", "zero2"), ("zero2", "fsdp")):
        enough = needs[kind] / 0.9  # a tenth stays free
        assert choose_parallel(many, setting(), 1.001 * enough, WORK) == kind
        assert choose_parallel(many, setting(), 0.999 * enough, WORK) == below
    assert choose_parallel(many, setting(), 1.0, WORK) == "fsdp"
    assert choose_parallel(many, setting("none", 1), 1.0) == "none"


def test_bf16_parameters_are_sharded_whatever_fits():
    wanted = setting("fsdp", precision="bf16-params")
    assert choose_parallel(STATE, wanted, 1e12) == "zero2"


def test_without_sharding_bf16_parameters_are_autocast():
    sharded = setting("fsdp", precision="bf16-params")
    assert with_parallel(sharded, "ddp").precision == "bf16"
    assert with_parallel(sharded, "zero2").precision == "bf16-params"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_batch_size": 10}, "global_batch_size = 10: must be a multiple of 4 GPUs"),
        ({"micro_batch_size": 3}, "micro_batch_size = 3: must divide the 8 samples of a GPU"),
        ({"parallel": "hsdp", "shard_size": 3}, "shard_size = 3: must divide 4 GPUs"),
        ({"parallel": "none"}, "parallel = 'none': must share the work of several GPUs"),
        ({"precision": "bf16-params"}, "must be bf16 where no parameter is sharded"),
    ],
)
def test_a_setting_that_does_not_divide_says_what_to_change(changes, message):
    with pytest.raises(ConfigError, match=message):
        setting(**changes)


def test_hardware_is_found_by_either_name():
    assert find_hardware("H100") is find_hardware("h100-80gb") is HARDWARE["h100"]
    assert all("data sheet" in hardware.source for hardware in HARDWARE.values())
    with pytest.raises(ConfigError, match="unknown hardware 'h300'; did you mean 'h"):
        find_hardware("h300")
