"""Suites: averages by hand, what is missing, official layouts, and going on after a stop."""

import json
from dataclasses import replace

import pytest

from triptych.core.errors import ConfigError
from triptych.core.outputs import MetricValue
from triptych.data.formats import FORMATS
from triptych.data.manifest import read_records
from triptych.papers.benchmarks import BENCHMARKS, SUITES, find_benchmark
from triptych.recipes.changes import with_changes
from triptych.recipes.registry import build_recipe
from triptych.workflows import scoring as scoring_module
from triptych.workflows.official_data import DATASETS, OfficialData, Place, locate
from triptych.workflows.scoring import (
    Outcome,
    Scoring,
    Store,
    number_of,
    score_benchmark,
)
from triptych.workflows.suite import compute_averages, find_suite, run_suite


def value(name, number, low=0.0, high=1.0):
    return MetricValue(
        name=name, value=number, low=low, high=high, num_items=10, protocol="by hand"
    )


def scored(name, **values):
    """Return an outcome whose every part has these values."""
    found = tuple(value(metric, number) for metric, number in values.items())
    parts = dict.fromkeys(find_benchmark(name).splits, found)
    return Outcome(benchmark=name, status="scored", values=parts)


@pytest.fixture(scope="module")
def root(tmp_path_factory, scenes):
    """A folder of data sets in official layouts, which show scenes."""
    folder = tmp_path_factory.mktemp("root")
    (folder / "coco").mkdir()
    (folder / "coco" / "dataset_coco.json").symlink_to(scenes.karpathy)
    (folder / "coco" / "val2014").symlink_to(scenes.split_images("test"))
    for split in ("train", "test"):
        (folder / "coco" / split).symlink_to(scenes.split_images(split))
    (folder / "nlvr2" / "data").mkdir(parents=True)
    (folder / "nlvr2" / "data" / "dev.json").symlink_to(scenes.nlvr2("train"))
    (folder / "nlvr2" / "dev").symlink_to(scenes.nlvr2_images("train"))
    (folder / "nlvr2" / "train").symlink_to(scenes.nlvr2_images("train"))
    (folder / "glue" / "RTE").mkdir(parents=True)
    for part in ("train", "dev"):
        rows = ["index\tsentence1\tsentence2\tlabel"]
        labels = ("entailment", "not_entailment")
        rows += [f"{i}\ta red circle\ta circle\t{labels[i % 2]}" for i in range(8)]
        (folder / "glue" / "RTE" / f"{part}.tsv").write_text("\n".join(rows) + "\n")
    return folder


def test_glues_average_takes_the_mean_of_a_tasks_metrics_and_of_both_mnli_sets():
    outcomes = {
        "glue_mrpc": scored("glue_mrpc", accuracy=0.8, f1=0.9),
        "glue_cola": scored("glue_cola", matthews=0.5, accuracy=0.99),
        "glue_mnli": Outcome(
            benchmark="glue_mnli",
            status="scored",
            values={
                "dev_matched": (value("accuracy", 0.7),),
                "dev_mismatched": (value("accuracy", 0.8),),
            },
        ),
    }
    (average,) = compute_averages(SUITES["glue"], outcomes)
    assert average.value == pytest.approx((0.85 + 0.5 + 0.75) / 3)
    assert (average.num_scored, average.num_items, average.is_whole) == (3, 8, False)


def test_flavas_macro_average_is_the_mean_of_three_means_and_counts_each_recall():
    suite = SUITES["flava"]
    outcomes = {}
    for name in suite.benchmarks:
        names = {ours for found in find_benchmark(name).metrics.values() for ours in found}
        by_domain = {"vision": 0.8, "language": 0.6, "multimodal": 0.1}
        outcomes[name] = scored(
            name, **dict.fromkeys(names, by_domain[find_benchmark(name).domain])
        )
    recalls = {"i2t_r1": 0.5, "i2t_r5": 0.6, "t2i_r1": 0.7, "t2i_r5": 0.8}
    outcomes["coco_zero_shot_dual"] = scored("coco_zero_shot_dual", **recalls)
    outcomes["glue_stsb"] = scored("glue_stsb", pearson=0.9, spearman=0.1)
    averages = {average.name: average for average in compute_averages(suite, outcomes)}
    language = (7 * 0.6 + 0.9) / 8  # Pearson's correlation alone
    multimodal = (7 * 0.1 + 0.5 + 0.6 + 0.7 + 0.8) / 11
    assert averages["vision"].value == pytest.approx(0.8)
    assert averages["language"].value == pytest.approx(language)
    assert averages["multimodal"].value == pytest.approx(multimodal)
    assert averages["macro"].value == pytest.approx((0.8 + language + multimodal) / 3)
    assert all(average.is_whole for average in averages.values())


def test_a_macro_average_without_one_of_its_parts_has_no_value():
    averages = compute_averages(SUITES["flava"], {"glue_cola": scored("glue_cola", matthews=0.5)})
    assert [(a.name, a.value, a.num_scored) for a in averages] == [
        ("vision", None, 0),
        ("language", 0.5, 1),
        ("multimodal", None, 0),
        ("macro", None, 0),
    ]


def test_a_number_after_re_ranking_comes_before_that_of_the_first_stage():
    values = {"i2t_r1": 0.4, "i2t_r1_itm": 0.6}
    reranked = scored("coco_retrieval", **values)
    assert number_of(find_benchmark("coco_retrieval"), "TR R@1", reranked) == 0.6
    dual = scored("coco_retrieval_dual", **values)
    assert number_of(find_benchmark("coco_retrieval_dual"), "TR R@1", dual) == 0.4
    assert number_of(find_benchmark("coco_retrieval"), "TR R@5", reranked) is None


def test_missing_files_are_named_with_all_places_where_they_were_looked_for(tmp_path):
    place = locate(tmp_path, "flickr30k", "test")
    assert place.source is None
    file, images = place.missing
    assert file.startswith(f"{tmp_path}/flickr30k/dataset_flickr30k.json [or flickr30k/karpathy/")
    assert images.startswith(f"{tmp_path}/flickr30k/flickr30k-images [or ")
    (tmp_path / "flickr30k" / "images").mkdir(parents=True)
    assert len(locate(tmp_path, "flickr30k", "test").missing) == 1
    (tmp_path / "flickr30k" / "dataset_flickr30k.json").touch()
    source = locate(tmp_path, "flickr30k", "test").source
    assert (source.image_root, source.split) == (f"{tmp_path}/flickr30k/images", "test")


def test_official_layouts_are_found_and_read(root, scenes):
    found = read_records(locate(root, "coco", "test").source).records
    assert len(found) == len(read_records(locate(root, "coco", "test").source).records) > 0
    assert all(record.caption for record in found)
    statements = read_records(locate(root, "nlvr2", "dev").source).records
    assert len(statements) == len(scenes.nlvr2("train").read_text().splitlines())
    assert len(read_records(locate(root, "glue/RTE", "dev").source).records) == 8


def test_folders_are_those_that_the_list_of_formats_shows():
    shown = {layout.folder for name in FORMATS.names() for layout in FORMATS.get(name).layouts}
    for name in ("coco", "flickr30k", "vqav2", "nlvr2", "snli_ve", "hateful_memes", "glue/RTE"):
        assert name in shown
        places = DATASETS[name]["train"]
        place = places if isinstance(places, Place) else places[0]
        assert any(file.startswith(f"{name}/") for file in place.files)


def test_every_benchmarks_parts_have_a_place():
    for benchmark in BENCHMARKS.values():
        for part in (*benchmark.splits, *(benchmark.train if benchmark.recipe else ())):
            if benchmark.num_frames is None or part != "train":  # clips are scored, not trained on
                assert part in DATASETS[benchmark.dataset] or benchmark.dataset == "nocaps"


def test_a_suite_scores_what_it_can_and_says_what_is_missing(root, pretrained, tmp_path):
    told = []
    scoring = Scoring(data=OfficialData(root), out=tmp_path / "out", limit=4)
    suite = replace(
        SUITES["mplug"], benchmarks=("nlvr2_dev", "vqav2_test_dev", "flickr30k_zero_shot")
    )
    result = run_suite(suite, pretrained / "model", scoring, on_outcome=told.append)
    assert [outcome.status for outcome in told] == ["missing", "impossible", "missing"]
    assert result.outcomes["nlvr2_dev"].reasons == (
        "a model fine-tuned for nlvr2: MODELS/nlvr2/model, or fine-tune it with --train",
    )
    assert "EvalAI" in result.outcomes["vqav2_test_dev"].reasons[0]
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["suite"] == "mplug"
    assert stored["outcomes"]["nlvr2_dev"]["status"] == "missing"


def test_an_interrupted_suite_goes_on_and_repeats_nothing(root, pretrained, tmp_path, monkeypatch):
    scored_now = []
    whole = scoring_module.evaluate_part

    def counted(benchmark, *rest):
        if stop_at == benchmark.name:
            raise KeyboardInterrupt
        scored_now.append(benchmark.name)
        return whole(benchmark, *rest)

    monkeypatch.setattr(scoring_module, "evaluate_part", counted)
    suite = replace(
        SUITES["flava"], benchmarks=("coco_zero_shot_dual", "glue_rte"), averages={}, macro=()
    )
    scoring = Scoring(
        data=OfficialData(root), out=tmp_path / "out", train=True, scale="smoke", num_threads=1
    )
    stop_at = "glue_rte"
    with pytest.raises(KeyboardInterrupt):
        run_suite(suite, pretrained / "model", scoring)
    assert scored_now == ["coco_zero_shot_dual"]
    run = tmp_path / "out" / "models" / "glue_rte"
    trained = (run / "metrics.jsonl").read_text()
    stop_at = ""
    result = run_suite(suite, pretrained / "model", scoring)
    assert scored_now == ["coco_zero_shot_dual", "glue_rte"]
    assert (run / "metrics.jsonl").read_text() == trained  # the fine-tuning was not repeated
    assert {o.status for o in result.outcomes.values()} == {"scored"}
    run_suite(suite, pretrained / "model", scoring)
    assert len(scored_now) == 2
    run_suite(suite, pretrained / "model", replace(scoring, limit=4))  # other inputs
    assert len(scored_now) == 4


def test_what_a_family_cannot_do_is_said(root, pretrained, tmp_path):
    scoring = Scoring(data=OfficialData(root), out=tmp_path)
    other = replace(find_benchmark("nlvr2_dev"), recipe="nothing", fallback="")
    outcome = score_benchmark(other, pretrained / "model", scoring)
    assert outcome.status == "impossible"
    assert outcome.reasons == ("no recipe teaches nlvr2 to models of mplug",)
    unknown = replace(find_benchmark("nlvr2_dev"), task="smell")
    assert score_benchmark(unknown, None, scoring).reasons == ("this version has no task 'smell'",)


def test_errors_of_one_benchmark_are_reasons(root, pretrained, tmp_path):
    (tmp_path / "coco" / "val2014").mkdir(parents=True)
    (tmp_path / "coco" / "dataset_coco.json").write_text("{broken")
    scoring = Scoring(data=OfficialData(tmp_path), out=tmp_path / "out")
    outcome = score_benchmark(find_benchmark("coco_zero_shot_dual"), pretrained / "model", scoring)
    assert outcome.status == "failed"
    assert "dataset_coco.json" in outcome.reasons[0]


def test_a_folder_with_another_models_fine_tuning_is_refused(root, pretrained, tmp_path):
    scoring = Scoring(
        data=OfficialData(root), out=tmp_path, train=True, scale="smoke", num_threads=1, max_steps=1
    )
    rte = find_benchmark("glue_rte")
    assert score_benchmark(rte, pretrained / "model", scoring).status == "scored"
    (tmp_path / "models" / "glue_rte" / "model" / "config.json").unlink()
    text = (tmp_path / "models" / "glue_rte" / "config.yaml").read_text()
    changed = text.replace(str(pretrained / "model"), "/elsewhere/model")
    (tmp_path / "models" / "glue_rte" / "config.yaml").write_text(changed)
    outcome = score_benchmark(rte, pretrained / "model", scoring)
    assert outcome.status == "failed"
    assert "run from /elsewhere/model" in outcome.reasons[0]


def test_changes_reach_nested_fields_and_unknown_ones_are_errors():
    config = build_recipe("vlmo.retrieval", "base")
    changed = with_changes(config, {"train.max_steps": 1500, "optim.warmup_steps": 150})
    assert (changed.train.max_steps, changed.optim.warmup_steps) == (1500, 150)
    with pytest.raises(ConfigError, match="max_stepz"):
        with_changes(config, {"train.max_stepz": 1})


def test_a_file_that_is_no_result_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ConfigError, match="no file of results"):
        Store(tmp_path / "results.json", {})


def test_an_unknown_suite_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match="no suite 'flva'; did you mean 'flava'"):
        find_suite("flva")
