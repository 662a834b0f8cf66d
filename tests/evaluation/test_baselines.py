import pytest
import torch

from triptych.core.errors import DataError
from triptych.evaluation import baselines


def test_majority_answer_of_each_type():
    fitted = baselines.MajorityAnswers.fit(
        ["color", "color", "count", None],
        [["red"] * 3, ["blue", "blue"], ["2"], ["yes"] * 9],
    )
    assert fitted.by_type == {"color": "red", "count": "2"}
    assert [fitted.answer(kind) for kind in ("color", "count", "shape", None)] == [
        *("red", "2", "yes", "yes"),
    ]


def test_mean_box_is_a_share_of_each_image():
    # Shares: (0, 0, 0.5, 1) and (0.5, 0.5, 1, 1); mean (0.25, 0.25, 0.75, 1).
    boxes = torch.tensor([[0.0, 0, 50, 200], [20.0, 10, 20, 10]])
    fitted = baselines.MeanBox.fit(boxes, torch.tensor([[100, 200], [40, 20]]))
    assert fitted.xyxy == pytest.approx((0.25, 0.25, 0.75, 1.0))
    assert fitted.predict(torch.tensor([[200, 40]])).tolist() == [[50, 10, 150, 40]]


def test_most_frequent_caption():
    assert baselines.most_frequent_caption(["a", "b", "b", "c"]) == "b"


def test_an_empty_training_split_is_an_error():
    with pytest.raises(DataError, match="no answer"):
        baselines.MajorityAnswers.fit([], [])
    with pytest.raises(DataError, match="no box"):
        baselines.MeanBox.fit(torch.zeros(0, 4), torch.zeros(0, 2))
    with pytest.raises(DataError, match="no caption"):
        baselines.most_frequent_caption([])
