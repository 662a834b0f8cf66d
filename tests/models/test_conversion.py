"""The conversion of foreign tensors, by hand on tables of a few numbers."""

import pytest
import torch
from torch import nn

from triptych.core.errors import CheckpointError, ConfigError
from triptych.models.conversion import (
    ImportReport,
    explain_rest,
    first_reason,
    gather_tensors,
    linear_keys,
    load_tensors,
    split_tensors,
    used_names,
    without_prefix,
)

ONE, TWO = torch.arange(4.0).reshape(2, 2), torch.arange(4.0, 8.0).reshape(2, 2)


def gather(foreign, wanted, table, resizes=None):
    report = ImportReport()
    return gather_tensors(foreign, wanted, table, resizes or {}, report), report


def test_parts_are_joined_in_the_order_of_the_table_and_split_again():
    table = {"both": ("second", "first")}
    found, report = gather({"first": ONE, "second": TWO}, {"both": torch.empty(4, 2)}, table)
    assert torch.equal(found["both"], torch.tensor([[4.0, 5], [6, 7], [0, 1], [2, 3]]))
    assert report.is_complete
    back = split_tensors(found, table)
    assert torch.equal(back["first"], ONE)
    assert torch.equal(back["second"], TWO)


def test_tensors_take_the_model_s_dtype():
    found, _ = gather({"a": ONE.half()}, {"x": torch.empty(2, 2)}, {"x": ("a",)})
    assert found["x"].dtype == torch.float32
    assert torch.equal(found["x"], ONE)


def test_what_is_not_there_is_missing_and_what_does_not_fit_is_told():
    wanted = {"x": torch.empty(2, 2), "y": torch.empty(2, 2), "z": torch.empty(3)}
    table = {"x": ("a",), "y": ("b", "absent")}
    found, report = gather({"a": torch.zeros(3, 2), "b": ONE}, wanted, table)
    assert found == {}
    assert report.missing == ["y", "z"]
    assert report.reinitialised == {"x": "(3, 2) for (2, 2)"}


def test_parts_of_different_widths_are_not_joined():
    foreign = {"a": torch.zeros(1, 2), "b": torch.zeros(1, 3)}
    _, report = gather(foreign, {"x": torch.empty(2, 2)}, {"x": ("a", "b")})
    assert report.reinitialised == {"x": "(1, 2) and (1, 3) for (2, 2)"}


def test_a_resize_that_fits_is_told_and_one_that_fails_is_a_wrong_shape():
    def halve(tensor):
        if len(tensor) % 2:
            raise ConfigError("odd")
        return tensor[::2]

    table, wanted = {"x": ("a",)}, {"x": torch.empty(1, 2)}
    found, report = gather({"a": ONE}, wanted, table, {"x": halve})
    assert torch.equal(found["x"], torch.tensor([[0.0, 1.0]]))
    assert report.resized == report.loaded == ["x"]
    for rows in (3, 6):  # the resize raises; its result has three rows
        _, report = gather({"a": torch.zeros(rows, 2)}, wanted, table, {"x": halve})
        assert report.resized == []
        assert report.reinitialised == {"x": f"({rows}, 2) for (1, 2)"}


def test_every_other_name_has_a_reason_or_is_unexpected():
    report = ImportReport()
    patterns = [(r"head\..*", "no head here"), (r"step", "a counter")]
    explain_rest(
        ["used", "head.weight", "step", "step.x"],
        used_names({"ours": ("used",)}),
        lambda name: first_reason(name, patterns),
        report,
    )
    assert report.dropped == {"head.weight": "no head here", "step": "a counter"}
    assert report.unexpected == ["step.x"]


def test_prefixes_and_layers():
    assert without_prefix({"a.b": ONE, "c": TWO}, "a.") == {"b": ONE}
    assert linear_keys("ours", "q", "k") == {
        "ours.weight": ("q.weight", "k.weight"),
        "ours.bias": ("q.bias", "k.bias"),
    }


def test_tensors_that_are_one_in_the_file_are_two_in_a_model_on_meta():
    with torch.device("meta"):
        model = nn.ModuleDict({"a": nn.Linear(2, 2, bias=False), "b": nn.Linear(2, 2, bias=False)})
    tied = ONE.clone()
    load_tensors(model, {"a.weight": tied, "b.weight": tied})
    with torch.no_grad():
        model["a"].weight[0, 0] = 9
    assert torch.equal(model["b"].weight, ONE)


def test_loading_copies_into_a_model_with_weights():
    model, mine = nn.Linear(2, 2, bias=False), ONE.clone()
    load_tensors(model, {"weight": mine})
    mine[0, 0] = 9
    assert torch.equal(model.weight, ONE)


def faulty():
    return ImportReport(
        loaded=["x"],
        missing=["itm_head.weight", "blocks.0.weight"],
        reinitialised={"word": "(3, 2) for (4, 2)"},
        unexpected=["a", "b", "c", "d"],
    )


def test_an_import_that_is_not_whole_says_all_that_is_wrong():
    with pytest.raises(CheckpointError) as caught:
        faulty().require("f.pth as tiny", optional=(r"itm_head\..*",))
    assert str(caught.value) == (
        "cannot import f.pth as tiny: 1 tensor is not in the file (such as blocks.0.weight), and "
        "1 tensor is of another shape (such as word: (3, 2) for (4, 2)), and "
        "4 tensors are not understood (such as a; b; c)"
    )


@pytest.mark.parametrize(
    ("allow", "left"),
    [
        (("missing", "reshaped"), "not understood"),
        (("unexpected", "reshaped"), "not in the file"),
        (("missing", "unexpected"), "of another shape"),
    ],
)
def test_each_kind_of_fault_can_be_allowed_on_its_own(allow, left):
    with pytest.raises(
        CheckpointError, match=rf"^cannot import f: \d tensors? (is|are) {left} [^,]*"
    ):
        faulty().require("f", allow=allow)
    faulty().require("f", allow=(*allow, "missing", "reshaped", "unexpected"))


def test_a_summary_names_what_needs_a_look():
    report = faulty()
    report.dropped = {"p": "dead", "q": "dead"}
    lines = report.summary().splitlines()
    assert lines[:2] == ["loaded 1 tensors, 0 of them resized", "skipped 2: dead"]
    assert "another shape, randomly initialised: word ((3, 2) for (4, 2))" in lines
    assert len(lines) == 2 + 2 + 1 + 4
    assert report.summary(long=False) == (
        "loaded 1 tensors, 0 of them resized; skipped 2: dead; 3 randomly initialised; "
        "4 not understood"
    )
