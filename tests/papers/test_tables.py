"""The papers' tables: their sizes and some numbers against a transcription by hand."""

import pytest

from triptych.core.errors import ConfigError
from triptych.models.families import VARIANTS
from triptych.papers.benchmarks import BENCHMARKS, PROBES, SUITES, find_benchmark
from triptych.papers.tables import all_tables, find_table, paper_tables
from triptych.recipes.registry import RECIPES

SIZES = {  # full name: systems or rows, numbers; counted by hand
    "mplug.table1": (4, 12),
    "mplug.table2": (2, 4),
    "mplug.table3": (1, 12),
    "mplug.table4": (1, 8),
    "mplug.table5": (1, 4),
    "mplug.table6": (2, 2),
    "mplug.table7": (2, 4),
    "mplug.table8": (2, 12),
    "mplug.table9": (2, 6),
    "mplug.table10": (1, 3),
    "mplug.table11": (7, 20),
    "mplug.table12": (5, 10),
    "mplug.pretraining": (2, 10),
    "mplug.figure3": (0, 0),
    "mplug.figure4": (0, 0),
    "vlmo.table1": (3, 12),
    "vlmo.table2": (3, 36),
    "vlmo.table3": (1, 2),
    "vlmo.table4": (2, 4),
    "vlmo.table5": (3, 6),
    "vlmo.table6": (2, 2),
    "vlmo.table7": (2, 4),
    "vlmo.figure3": (0, 0),
    "vlmo.pretraining": (2, 6),
    "flava.table1": (0, 0),
    "flava.table2": (10, 20),
    "flava.table3": (1, 4),
    "flava.table4": (6, 212),
    "flava.table5": (1, 8),
}

NUMBERS = [  # transcribed from the sources by hand, apart from the YAML files
    ("mplug.table1", "large, CIDEr", "coco_scst.CIDEr", 155.1),
    ("mplug.table1", "base, cross", "coco_caption.CIDEr", 137.5),
    ("mplug.table2", "base", "vqav2_test_std.accuracy", 79.98),
    ("mplug.table2", "large", "vqav2_test_dev.accuracy", 81.27),
    ("mplug.table3", "large", "flickr30k_retrieval.IR R@1", 88.4),
    ("mplug.table4", "large", "refcoco_testB.accuracy", 88.42),
    ("mplug.table4", "large", "refcocog_test.accuracy", 86.42),
    ("mplug.table5", "large", "nlvr2_test.accuracy", 84.95),
    ("mplug.table6", "nothing", "samples/s", 124),
    ("mplug.table6", "everything", "samples/s", 422),
    ("mplug.table8", "fine-tuned", "flickr30k_from_coco.IR R@1", 86.4),
    ("mplug.table9", "pre-trained", "msrvtt_retrieval.R@1", 38.1),
    ("mplug.table10", "large", "vatex_caption.CIDEr", 42.0),
    ("mplug.table12", "Visual Genome", "texts", 769),
    ("vlmo.table1", "VLMo base", "vqav2_test_std.accuracy", 76.89),
    ("vlmo.table1", "large++", "nlvr2_test.accuracy", 89.54),
    ("vlmo.table2", "VLMo base", "coco_retrieval_dual.IR R@5", 82.6),
    ("vlmo.table2", "large++", "flickr30k_retrieval_dual.IR R@10", 99.3),
    ("vlmo.table3", "VLMo base", "ade20k.mIoU", 53.4),
    ("vlmo.table4", "images, then texts", "nlvr2_dev.accuracy", 82.09),
    ("vlmo.table5", "standard", "nlvr2_test.accuracy", 79.27),
    ("vlmo.table6", "local", "nlvr2_dev.accuracy", 77.70),
    ("flava.table2", "RedCaps", "million pairs", 11.6),
    ("flava.table4", "FLAVA, all", "glue_cola.score", 50.65),
    ("flava.table4", "FLAVA_C", "imagenet.accuracy", 74.09),
    ("flava.table4", "MLM", "glue_stsb.score", 78.89),
    ("flava.table5", "FLAVA", "coco_zero_shot_dual.IR R@5", 67.5),
]


def system(table, part):
    (found,) = [model for model in find_table(table).models if part in model.model]
    return {number.name: number.value for number in found.numbers}


def test_every_table_has_the_rows_and_numbers_that_were_counted_by_hand():
    assert {n: (len(t.models), t.num_numbers) for n, t in all_tables().items()} == SIZES


@pytest.mark.parametrize(("table", "part", "name", "value"), NUMBERS)
def test_numbers_are_those_of_an_independent_transcription(table, part, name, value):
    assert system(table, part)[name] == value


def of_domain(numbers, domain):
    """Return the numbers of the benchmarks of a domain."""
    names = {name: name.split(".")[0] for name in numbers if name.split(".")[0] in BENCHMARKS}
    return [numbers[n] for n, own in names.items() if find_benchmark(own).domain == domain]


@pytest.mark.parametrize("part", ["MIM", "MLM", "FLAVA_C", "FLAVA_MM", "without", "FLAVA, all"])
def test_flavas_averages_are_the_means_of_its_columns(part):
    numbers = system("flava.table4", part)
    there = {}
    for domain, count in (("vision", 22), ("language", 8), ("multimodal", 11)):
        own = of_domain(numbers, domain)
        if own:
            there[domain] = numbers[f"average.{domain}"]
            assert len(own) == count
            assert there[domain] == pytest.approx(sum(own) / count, abs=0.0051)
    assert there
    if len(there) == 3:
        assert numbers["average.macro"] == pytest.approx(sum(there.values()) / 3, abs=0.0051)


def test_pmd_sums_to_seventy_million_pairs():
    pairs = [{n.name: n.value for n in m.numbers} for m in find_table("flava.table2").models]
    *parts, whole = [row["million pairs"] for row in pairs]
    assert sum(parts) == pytest.approx(whole)


def test_what_tables_name_is_there():
    for table in all_tables().values():
        for model in table.models:
            assert model.variant is None or model.variant in VARIANTS, model
            known = {*RECIPES.entries(), "vlmo.stagewise", "flava.stagewise"}
            assert model.recipe is None or model.recipe in known, model
            for number in model.numbers if table.kind in ("evaluation", "ablation") else ():
                name, _, metric = number.name.partition(".")
                if name == "average":
                    assert metric in (*SUITES[table.paper].averages, "macro")
                else:
                    assert metric in find_benchmark(name).metrics, number


def test_every_number_says_where_it_was_read():
    for table in all_tables().values():
        for model in table.models:
            for number in model.numbers:
                assert number.source
                assert (number.value is None) == (number.source == "in no source that we had")


def test_suites_name_benchmarks_and_average_what_is_in_them():
    assert len(PROBES) == 22
    for suite in SUITES.values():
        for name in suite.benchmarks:
            find_benchmark(name)
        for items in suite.averages.values():
            for item in items:
                name, _, metric = item.partition(".")
                assert name in suite.benchmarks
                assert metric in find_benchmark(name).metrics
    assert {k: len(v) for k, v in SUITES["flava"].averages.items()} == {
        "vision": 22,
        "language": 8,
        "multimodal": 11,
    }


def test_a_table_that_is_not_there_is_told_with_the_nearest():
    with pytest.raises(ConfigError, match=r"no table 'mplug\.tabel2'; did you mean"):
        find_table("mplug.tabel2")
    with pytest.raises(ConfigError, match="no benchmark 'coco'"):
        find_benchmark("coco")


def test_tables_come_in_the_papers_order():
    names = [table.name for table in paper_tables("mplug")][:12]
    assert names == [f"table{number}" for number in range(1, 13)]
