import pytest
import torch

from triptych.core.errors import DataError
from triptych.evaluation import boxes


@pytest.mark.parametrize(
    ("first", "second", "iou"),
    [  # areas counted by hand
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [1, 1, 3, 3], 1 / 7),
        ([0, 0, 4, 2], [2, 0, 4, 2], 0.5),
        ([0, 0, 1, 1], [1, 0, 2, 1], 0.0),
        ([0, 0, 1, 1], [5, 5, 6, 6], 0.0),
        ([3, 3, 1, 1], [0, 0, 4, 4], 0.0),
        ([1, 1, 1, 1], [1, 1, 1, 1], 0.0),
        ([-2, -2, 0, 0], [-1, -1, 1, 1], 1 / 7),
    ],
)
def test_iou(first, second, iou):
    pair = [torch.tensor(box, dtype=torch.float32) for box in (first, second)]
    assert boxes.iou_xyxy(*pair).item() == pytest.approx(iou)
    assert boxes.iou_xyxy(*reversed(pair)).item() == pytest.approx(iou)


def test_conversions_of_a_hand_worked_box():
    xyxy = torch.tensor([[10.0, 20.0, 30.0, 60.0]])
    assert boxes.xyxy_to_xywh(xyxy).tolist() == [[10, 20, 20, 40]]
    assert boxes.xyxy_to_cxcywh(xyxy).tolist() == [[20, 40, 20, 40]]
    assert boxes.xywh_to_xyxy(torch.tensor([[10.0, 20.0, 20.0, 40.0]])).tolist() == xyxy.tolist()
    assert boxes.cxcywh_to_xyxy(torch.tensor([[20.0, 40.0, 20.0, 40.0]])).tolist() == xyxy.tolist()


def test_accuracy_counts_an_overlap_of_exactly_the_threshold():
    target = torch.tensor([[0.0, 0, 4, 2]]).repeat(3, 1)
    predicted = torch.tensor([[2.0, 0, 4, 2], [2.1, 0, 4, 2], [0.0, 0, 4, 2]])
    assert boxes.hits_at_iou(predicted, target).tolist() == [True, False, True]
    assert boxes.accuracy_at_iou(predicted, target) == pytest.approx(2 / 3)
    assert boxes.accuracy_at_iou(predicted, target, 0.9) == pytest.approx(1 / 3)


def test_wrong_input_is_named():
    with pytest.raises(DataError, match="4 numbers"):
        boxes.iou_xyxy(torch.zeros(1, 3), torch.zeros(1, 4))
    with pytest.raises(DataError, match="no box"):
        boxes.accuracy_at_iou(torch.zeros(0, 4), torch.zeros(0, 4))
