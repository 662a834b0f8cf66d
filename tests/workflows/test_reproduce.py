"""Tables beside our numbers: settings, counts, stored results, what is missing, and the scenes."""

import json
from dataclasses import replace

import pytest

from triptych.core.errors import ConfigError
from triptych.data.records import ImageSource, Record
from triptych.models.families import model_config
from triptych.papers.benchmarks import BENCHMARKS
from triptych.papers.tables import Number, TableModel, all_tables, find_table
from triptych.recipes.registry import build_recipe
from triptych.workflows.official_data import DATASETS, OfficialData, SceneData
from triptych.workflows.reproduce import (
    Request,
    count_records,
    missing_of,
    pretraining_run,
    reproduce,
    sizes,
    slug,
)
from triptych.workflows.scoring import Scoring


def request(out, **changes):
    scoring = Scoring(data=OfficialData(out / "ROOT"), out=out / "out", scale="smoke")
    return replace(Request(scoring=scoring), **changes)


@pytest.mark.parametrize(
    "name", ["mplug.table11", "mplug.pretraining", "vlmo.pretraining", "flava.table3"]
)
def test_the_recipes_have_the_papers_settings(name, tmp_path):
    rows = reproduce(find_table(name), request(tmp_path))
    assert rows
    assert {row.what: row.ours for row in rows} == {row.what: row.paper for row in rows}


@pytest.mark.parametrize(
    "name", [n for n, t in all_tables().items() if t.kind in ("evaluation", "ablation", "data")]
)
def test_without_anything_every_number_says_what_it_needs(name, tmp_path):
    rows = reproduce(find_table(name), request(tmp_path))
    assert len(rows) == find_table(name).num_numbers
    for row in rows:
        assert row.ours is None
        assert row.reasons, row


def test_missing_data_weights_and_models_are_named(tmp_path):
    (tmp_path / "ROOT").mkdir()
    rows = reproduce(find_table("mplug.table5"), request(tmp_path, root=tmp_path / "ROOT"))
    reasons = missing_of(rows)
    assert reasons[0].startswith("weights of mplug_large_patch14_224")
    assert f"{tmp_path}/ROOT/nlvr2/data/dev.json [or nlvr2/dev.json] (nlvr2, dev)" in reasons
    assert f"{tmp_path}/ROOT/snli_ve/snli_ve_test.jsonl (snli_ve, test)" in reasons
    assert "a model fine-tuned for nlvr2: MODELS/nlvr2/model" in reasons


def test_what_cannot_be_reproduced_says_why(tmp_path):
    rows = reproduce(find_table("vlmo.table1"), request(tmp_path, only="large++"))
    assert {row.reasons for row in rows} == {
        ("it was trained on a billion pairs from the web that were never released",)
    }
    with pytest.raises(ConfigError, match="fits no system of vlmo"):
        reproduce(find_table("vlmo.table1"), request(tmp_path, only="huge"))


def test_weights_of_another_size_or_family_are_refused(tmp_path, pretrained):
    weights = pretrained / "model"
    rows = reproduce(find_table("mplug.table5"), request(tmp_path, weights=weights))
    assert f"weights of mplug_large_patch14_224: {weights} has other sizes" in rows[0].reasons
    rows = reproduce(find_table("vlmo.table3"), request(tmp_path, weights=weights))
    assert f"weights of VLMo: {weights} is of mplug" in rows[0].reasons
    gone = tmp_path / "gone"
    rows = reproduce(find_table("mplug.table5"), request(tmp_path, weights=gone))
    assert f"{gone}: there is no such file" in rows[0].reasons


def test_sizes_are_those_of_the_variant_whatever_the_image_and_the_vocabulary():
    small = model_config("mplug_small", image_size=160, vocab_size=999)
    assert sizes(small) == sizes(model_config("mplug_small"))
    assert sizes(small) != sizes(model_config("mplug_tiny"))
    assert sizes(small)


def test_an_ablation_names_the_config_that_pre_trains_it(tmp_path):
    rows = reproduce(find_table("vlmo.table6"), request(tmp_path))
    path = tmp_path / "out" / "configs" / "local_hard_negatives.yaml"
    assert f"`triptych train {path} --data PAIRS`" in rows[0].reasons[0]
    assert "negatives: local" in path.read_text()


def test_overrides_reach_the_run():
    (itc, shared, whole) = find_table("vlmo.table5").models
    weights = {w.name: w.weight for w in pretraining_run(itc, "smoke").weights}
    assert weights == {"itc": 1.0, "mlm": 0.0, "itm": 0.0}
    changed = model_config(pretraining_run(shared, "smoke").model.name)
    assert changed.experts == "shared"
    assert pretraining_run(whole, "smoke") == build_recipe("vlmo.pretrain", "smoke")


def test_data_are_counted_as_the_papers_count_them():
    image = ImageSource("a.jpg")
    records = [
        Record(record_id="0", image=image, caption="a red circle"),
        Record(record_id="1", image=image, caption="a circle"),
        Record(record_id="2", image=ImageSource("b.jpg")),
    ]
    counts = count_records(records)
    assert counts == {"images": 0.002, "texts": 0.002, "million pairs": 2e-6, "words": 2.5}


def test_stored_results_are_read_and_a_missing_one_names_its_command(tmp_path):
    table = find_table("mplug.table6")
    rows = reproduce(table, request(tmp_path, results=tmp_path))
    assert rows[-1].reasons == (
        f"{tmp_path}/engine_ladder.json: measure it in a checkout of the repository with "
        "`python -m benchmarks.speed.engine_step --only ladder`",
    )
    output = {"table6": [{"rung": "fp32", "samples_per_s": 7.0, "peak_mib": 2000}]}
    stored = {"output": output, "command": "python -m x", "machine": {"CPU": "C"}}
    (tmp_path / "engine_ladder.json").write_text(json.dumps(stored))
    rows = reproduce(table, request(tmp_path, results=tmp_path))
    assert [(row.model, row.what, row.paper, row.ours) for row in rows] == [
        ("nothing switched on", "samples/s", 124.0, None),
        ("everything switched on", "samples/s", 422.0, None),
        ("fp32", "samples_per_s", None, 7.0),
        ("fp32", "peak_mib", None, 2000.0),
    ]


def test_the_scenes_stand_in_and_the_rows_say_so(tmp_path):
    data = SceneData(tmp_path / "out" / "scenes", "smoke")
    scoring = Scoring(data=data, out=tmp_path / "out", train=True, scale="smoke", num_threads=1)
    table = find_table("mplug.table5")
    names = ("flickr30k_zero_shot.TR R@1", "nlvr2_dev.accuracy", "hateful_memes.AUROC")
    numbers = tuple(Number(name, None, "") for name in names)
    model = TableModel(model="mPLUG", variant="mplug_large_patch14_224", numbers=numbers)
    table = replace(table, models=(model,))
    told = []
    asked = Request(scoring=scoring, scenes=True, tell=told.append)
    retrieval, nlvr2, memes = reproduce(table, asked)
    assert retrieval.model == "mPLUG [on the built-in scenes, scale smoke]"
    assert 0 <= retrieval.ours <= 100
    assert 0 <= nlvr2.low <= nlvr2.ours <= nlvr2.high <= 100
    assert memes.reasons == ("the built-in scenes have nothing like hateful_memes",)
    assert told[0] == "pre-training mplug_pretrain on the built-in scenes"
    told.clear()
    assert reproduce(table, asked) == [retrieval, nlvr2, memes]
    assert told == []  # nothing is trained or scored again


def test_folders_have_plain_names():
    assert slug("FLAVA, all objectives: 100 %") == "flava_all_objectives_100"


def test_tables_of_data_name_places_that_are_known():
    for table in all_tables().values():
        for model in table.models if table.kind == "data" else ():
            assert model.dataset is None or model.split in DATASETS[model.dataset]
    assert all(b.dataset in DATASETS for b in BENCHMARKS.values())
