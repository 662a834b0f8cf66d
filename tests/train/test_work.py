"""Operations and kept bytes of a step against torch's counter and what stays allocated."""

from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from triptych.models.families import build_model, model_config
from triptych.nn import attention
from triptych.nn.block import Block, BlockConfig
from triptych.tasks.pretraining.flava import FLAVAPretraining, FLAVAPretrainingConfig
from triptych.tasks.pretraining.mplug import MPLUGPretraining, MPLUGPretrainingConfig
from triptych.tasks.pretraining.vlmo import VLMoPretraining, VLMoPretrainingConfig
from triptych.tasks.pretraining.work import flava_work, mplug_work, vlmo_work
from triptych.train.step import set_recompute
from triptych.train.work import BlockShape, Cost, StackPass, StepWork

BATCH, LENGTH = 4, 20
FLOPS_WITHIN = 0.02
KEPT_WITHIN = {"none": 0.1, "selective": 0.1, "full": 0.3}
"""Under full recomputation a tiny model keeps mostly what lies outside blocks, and for each block
torch's random state."""


@pytest.fixture
def as_on_a_gpu(monkeypatch, packed_at_any_width):
    """Project every memory, as on a GPU; returns a function that chooses the attention kernel."""
    monkeypatch.setattr(attention.CrossAttention, "_reads_states", lambda self, *sizes: False)

    def choose(fused_kernel):
        monkeypatch.setattr(attention, "use_sdpa", lambda *tensors: fused_kernel)

    return choose


def make_batch(size, patches):
    torch.manual_seed(0)
    ids = torch.randint(5, 500, (BATCH, LENGTH))
    masked, hidden = torch.zeros_like(ids, dtype=torch.bool), torch.zeros(BATCH, patches) > 0
    masked[:, 1:4], hidden[:, : round(patches * 75 / 196)] = True, True  # 15 %, BEiT's share
    prefix, own = LENGTH // 2, torch.arange(BATCH)
    return {
        "image": torch.randn(BATCH, 3, size, size),
        "hidden_patches": hidden,
        "codebook_image": torch.rand(BATCH, 3, size // 2, size // 2) * 0.8 + 0.1,
        "token_ids": ids,
        "text_mask": torch.ones_like(ids, dtype=torch.bool),
        "mlm_token_ids": ids.masked_fill(masked, 4),
        "mlm_labels": ids.masked_fill(~masked, -100),
        "prefix_token_ids": ids[:, :prefix],
        "prefix_mask": torch.ones(BATCH, prefix, dtype=torch.bool),
        "target_token_ids": ids[:, : LENGTH - prefix + 1],
        "target_mask": torch.ones(BATCH, LENGTH - prefix + 1, dtype=torch.bool),
        "itm_labels": torch.ones(BATCH, dtype=torch.int64),
        "image_key": own,
        "caption_key": own,
        "index": own,
    }


def mplug(*, teacher=False, **changes):
    sizes = replace(model_config("mplug_tiny"), **changes)
    settings = MPLUGPretrainingConfig(
        queue_size=0,
        momentum=0.995 * teacher,
        alpha=0.4 * teacher,
        distill_mlm=teacher,
        distill_prefix_lm=teacher,
    )
    work = mplug_work(sizes, LENGTH, queue_size=0, teacher=teacher, taught=teacher, remote=False)
    return MPLUGPretraining(build_model(sizes), settings), work


def vlmo(*, fused_itc, **changes):
    sizes = replace(model_config("vlmo_tiny"), fused_contrast=fused_itc, **changes)
    task = VLMoPretraining(build_model(sizes), VLMoPretrainingConfig(fused_itc=fused_itc))
    return task, vlmo_work(sizes, LENGTH, fused_itc=fused_itc, remote=False)


def flava(**changes):
    sizes = replace(model_config("flava_tiny"), **changes)
    task = FLAVAPretraining(build_model(sizes), FLAVAPretrainingConfig())
    task.model.set_recompute_cheap(False)  # its hooks would hide from those of a test
    work = flava_work(sizes, LENGTH, matched_share=1.0, codes=True, chunk_size=None)
    return task, replace(work, recomputes_cheap=False)


CASES = {
    "mplug": mplug,
    "mplug with a teacher": lambda: mplug(teacher=True),
    "mplug, asymmetric": lambda: mplug(connected_layers=()),
    "mplug, a wider image encoder": lambda: mplug(
        vision=replace(model_config("mplug_tiny").vision, embed_dim=192, stem_widths=())
    ),
    "vlmo": lambda: vlmo(fused_itc=False),
    "vlmo, as released": lambda: vlmo(fused_itc=True, positions="relative", layer_scale=0.1),
    "flava": flava,
    "flava, padding attended": lambda: flava(pad_attention="attended", padded_text_len=24),
}


@pytest.mark.parametrize("case", CASES)
def test_operations_are_those_that_torch_counts(case, as_on_a_gpu):
    as_on_a_gpu(fused_kernel=False)  # the counter does not know the CPU's
    task, work = CASES[case]()
    batch = make_batch(64, 16)
    with FlopCounterMode(display=False) as counter:
        losses = task.losses(batch)
        forward = counter.get_total_flops()
        sum(losses.values()).backward()
    counted = work.forward_flops(trained=True) + work.forward_flops(trained=False)
    assert BATCH * counted == pytest.approx(forward, rel=FLOPS_WITHIN)
    assert BATCH * work.model_flops() == pytest.approx(counter.get_total_flops(), rel=FLOPS_WITHIN)


def kept_bytes(run):
    """Return the bytes that are allocated while something runs and not freed at its end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        result = run()
    kept = sum(event.self_cpu_memory_usage for event in watched.events())
    del result
    return kept


@pytest.mark.parametrize(("recompute", "within"), KEPT_WITHIN.items())
@pytest.mark.parametrize("case", ["mplug", "mplug, asymmetric", "vlmo, as released", "flava"])
def test_kept_bytes_are_those_that_stay_allocated(case, recompute, within, as_on_a_gpu):
    as_on_a_gpu(fused_kernel=True)
    task, work = CASES[case]()
    set_recompute(task.modules, recompute)
    batch = make_batch(64, 16)
    kept = kept_bytes(lambda: task.losses(batch))
    assert BATCH * work.kept_bytes(recompute, 4, 4) == pytest.approx(kept, rel=within)


@pytest.mark.parametrize("recompute", KEPT_WITHIN)
def test_a_block_keeps_exactly_what_is_counted(recompute, as_on_a_gpu):
    as_on_a_gpu(fused_kernel=True)
    sizes = BlockConfig(
        embed_dim=64, num_heads=4, pre_norm=True, dropout=0.0, attention_dropout=0.0
    )
    blocks = torch.nn.Sequential(*(Block(sizes) for _ in range(3)))
    for block in blocks:
        block.recompute = recompute
    x = torch.randn(40, 50, 64, requires_grad=True)
    counted = BlockShape(width=64, mlp_dim=256, heads=4).block(50, 2500) * (3 * 40)
    # the first input exists before, the last output stays: one of them is an input in the count
    assert kept_bytes(lambda: blocks(x)) == pytest.approx(
        counted.kept_bytes(recompute, 4, 4), rel=0.02
    )


def test_bytes_by_hand():
    """Of 10 tokens of width 8, FFN 32, in mixed precision: 36 bytes a token and width."""
    block = BlockShape(width=8, mlp_dim=32, heads=2).block(10, 100)
    assert block.kept_bytes("none", 2, 4) == 36 * 10 * 8
    assert block.kept_bytes("selective", 2, 4) == 24 * 10 * 8
    assert block.kept_bytes("full", 2, 4) == 4 * 10 * 8
    assert block.flops == 24 * 10 * 8**2 + 4 * 100 * 8


def test_selective_recomputation_keeps_products_alone():
    """In fp32: the input, qkv (3 widths), attention, its projection, FFN (4) and its projection."""
    block = BlockShape(width=8, mlp_dim=32, heads=2, dropout=True, packed=True).block(10, 100)
    assert block.kept_bytes("selective", 4, 4) == 4 * (1 + 3 + 1 + 1 + 4 + 1) * 10 * 8


def test_blocks_may_recompute_what_is_cheap_by_themselves():
    block = BlockShape(width=8, mlp_dim=32, heads=2).block(10, 100)
    work = StepWork(passes=(StackPass(name="blocks", cost=block),))
    cheap = replace(work, recomputes_cheap=True)
    assert cheap.kept_bytes("none", 4, 4) == block.kept_bytes("none", 4, 4)  # outside blocks
    inside = replace(cheap, passes=(replace(work.passes[0], blocks="model.blocks"),))
    assert inside.kept_bytes("none", 4, 4) == 4 * (1 + 1 + 4 + 4) * 10 * 8
    assert inside.kept_bytes("full", 4, 4) == 4 * 10 * 8


def test_recomputation_repeats_the_trained_forward_pass():
    work = StepWork(
        passes=(
            StackPass(name="trained", cost=Cost(flops=10)),
            StackPass(name="frozen", cost=Cost(flops=7), trained=False),
        )
    )
    assert work.model_flops() == 37
    assert [work.computed_flops(way) for way in ("none", "selective", "full")] == [37, 37, 47]
    chunked = replace(work, chunk_size=4)
    assert [chunked.computed_flops(way) for way in ("none", "full")] == [47, 57]
