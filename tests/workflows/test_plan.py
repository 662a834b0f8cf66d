"""A plan of a small run: its forecasts against a real run, its choices, and what it refuses."""

import io
from dataclasses import replace

import pytest
from torch.autograd.profiler import profile

from triptych.core.console import Console
from triptych.core.errors import ConfigError
from triptych.recipes.registry import build_recipe
from triptych.train.forecast import Line, StateBytes, StepLines
from triptych.workflows.plan import DataFacts, _Around, _best, _given, _row, make_plan
from triptych.workflows.rehearsal import Rehearsed, Setting
from triptych.workflows.run import train_run

from .small_runs import small_run, source_of

PLAIN = Setting("fp32", "none", False)


@pytest.fixture(scope="module")
def run(scenes):
    """Eight steps of eight samples; the plan may measure batches of 2 and 4 alone."""
    source = source_of(scenes, "mplug.retrieval")
    return small_run("mplug.retrieval", source, max_steps=8, checkpoint_every_steps=4)


@pytest.fixture(scope="module")
def plan(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plan")
    return make_plan(run, folder, as_given=True, most_samples=4, limit=4e9)


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """The run folder, and the most bytes that torch's allocator had given out at a time."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch, profile(profile_memory=True) as watched:
        patch.setenv("KINETO_LOG_LEVEL", "99")
        train_run(run, folder, console=Console(file=io.StringIO()))
    events = [e for e in watched.kineto_results.events() if e.name() == "[memory]"]
    taken = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        taken += event.nbytes()
        peak = max(peak, taken)
    return folder, peak


def test_a_batch_that_was_not_measured_takes_the_memory_that_is_forecast(plan, trained):
    assert plan.rehearsed.sizes == (1, 4) and plan.given.samples == 8
    assert plan.given.memory.tensors == pytest.approx(trained[1], rel=0.1)


def test_the_run_folder_has_the_size_that_is_forecast(plan, trained):
    size = sum(path.stat().st_size for path in trained[0].rglob("*") if path.is_file())
    kept = plan.disk.peak - plan.disk.writing
    assert kept == pytest.approx(size, rel=0.05)


def test_passes_and_parts_are_named(plan):
    assert list(plan.rehearsed.parts) == ["data", "forward", "backward", "update", "after_step"]
    stacks = {name.partition(",")[0] for name in plan.rehearsed.passes}
    assert {"visual_encoder", "text_encoder", "fusion", "outside blocks"} <= stacks
    assert sum(plan.rehearsed.passes.values()) == pytest.approx(plan.rehearsed.parts["forward"])


def test_what_the_data_means_is_told(plan):
    facts = plan.data
    assert facts.samples % 32 == 0
    assert facts.epochs == pytest.approx(64 / facts.samples)
    assert 3 < facts.mean_tokens <= facts.longest_tokens
    assert facts.decoded_bytes == 64 * 64 * 3


# ------------------------------------------------------------------------------------------ choice


def around(limit=1e6, batch=64, micro=None, recipe="mplug.pretrain"):
    """100 kB of state; a process of nothing; the data is small."""
    config = build_recipe(recipe, "tiny")
    train = replace(config.train, global_batch_size=batch, micro_batch_size=micro)
    config = replace(config, train=train, data=replace(config.data, cache_mib=0))
    facts = DataFacts(
        samples=1000,
        epochs=1.0,
        mean_tokens=9.0,
        longest_tokens=9,
        cut_share=0.0,
        read_mb_per_s=1.0,
        read_gb=1.0,
        images_per_s=1.0,
        decoded_bytes=0.0,
    )
    state = StateBytes(weights=4e4, optimizer=4e4, teacher=0, queue=0, checkpoint=2e4)
    return _Around(config, state, facts, 0.0, limit, batch)


def measured(per_sample, setting=PLAIN, seconds=0.1, held=0.0):
    """A setting that keeps so many bytes of each sample (of a chunk, if there is a cache)."""
    line = Line(0.0, held, per_sample) if setting.cached else Line(0.0, per_sample)
    none = Line(0.0, 0.0)
    lines = StepLines(
        first=line,
        later=line,
        update=none,
        alone_s=Line(0.0, seconds),
        micro_s=Line(0.0, seconds),
        data_s=none,
        update_s=0.0,
    )
    return Rehearsed(setting=setting, lines=lines, sizes=(2, 4), parts={}, passes={})


def test_the_largest_micro_batch_is_a_divisor_that_fits():
    """Of 900 kB, 100 are taken: 80 samples of 10 kB would fit, 64 are there; of 20 kB 32."""
    assert _row(around(), measured(1e4), 64).largest == 64
    half = _row(around(), measured(2e4), 64)
    assert (half.largest, half.samples, half.accumulate, half.fits) == (32, 32, 2, True)
    assert not half.same_batches
    odd = _row(around(batch=60), measured(2e4), 60)
    assert (odd.largest, odd.accumulate) == (30, 2)


def test_a_run_takes_no_more_at_a_time_than_it_asks_for():
    row = _row(around(micro=16), measured(1e4), 16)
    assert (row.largest, row.samples, row.same_batches) == (64, 16, True)


def test_a_gradient_cache_keeps_the_batch_and_halves_its_chunks():
    cached = Setting("fp32", "none", True)
    row = _row(around(), measured(1e5, cached), 64)
    assert (row.largest, row.chunk, row.samples, row.same_batches) == (8, 8, 64, True)


def test_a_task_without_contrast_may_take_any_micro_batch():
    row = _row(around(recipe="mplug.vqa"), measured(2e4), 64)
    assert (row.samples, row.same_batches) == (32, True)


def test_the_fastest_that_fits_and_compares_as_many_is_suggested():
    world = around()
    rows = [
        _row(world, measured(2e4, PLAIN, 0.1), 64),  # fits with half of the batch alone
        _row(world, measured(1e4, Setting("fp32", "selective", False), 0.12), 64),
        _row(world, measured(5e3, Setting("fp32", "full", False), 0.14), 64),
    ]
    given = _given(world, measured(2e4, PLAIN, 0.1), 64)
    assert not given.fits
    assert _best(given, rows, world.limit).setting.recompute == "selective"


def test_a_run_that_fits_stays_as_it_is_unless_others_are_clearly_faster():
    world = around()
    given = _given(world, measured(1e3, PLAIN, 0.100), 64)
    other = Setting("bf16", "none", False)
    near = [_row(world, measured(1e3, other, 0.099), 64)]
    assert _best(given, near, world.limit) is given
    fast = [_row(world, measured(1e3, other, 0.050), 64)]
    assert _best(given, fast, world.limit).setting == other


def test_where_not_one_sample_fits_it_says_so():
    world = around()
    given = _given(world, measured(1e6), 64)
    with pytest.raises(ConfigError, match="not enough memory for even one sample: fp32, recom"):
        _best(given, [_row(world, measured(1e6), 64)], world.limit)


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("change", "limit", "message"),
    [
        ({"max_steps": 3}, 4e9, "the run is shorter than the 4 steps"),
        ({}, 1e7, "mplug_tiny takes .* GB before any activation"),
        ({"global_batch_size": 9, "num_processes": 2}, 4e9, "2 processes must share it equally"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_anything_is_done(
    run, tmp_path, change, limit, message
):
    with pytest.raises(ConfigError, match=message):
        make_plan(replace(run, train=replace(run.train, **change)), tmp_path, limit=limit)
    assert list(tmp_path.iterdir()) == []


def test_the_papers_scales_need_data(tmp_path):
    config = replace(build_recipe("mplug.vqa", "base"), recipe="mplug.vqa")
    with pytest.raises(ConfigError, match=r"at scale base has no data .* --data PATH"):
        make_plan(config, tmp_path, limit=1e12)
