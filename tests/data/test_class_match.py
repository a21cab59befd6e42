"""Classes of detectors and data sets meet by name, else by category id, else in a way that is said, or not at all."""

import re

import pytest

from norton_det.data.class_match import match_classes, match_names
from norton_det.models.labels import Labels
from norton_det.utils.errors import InputError

COCO_IDS = tuple(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
COCO = Labels(tuple(f"c{number}" for number in COCO_IDS), COCO_IDS)  # its 80 ids, with their gaps
FRUIT = Labels(("apple", "stop sign", "pear"), (1, 2, 3))


def match(detector: Labels, count: int, dataset: Labels = FRUIT):
    return match_classes(detector, count, dataset, "mine")


def test_names_decide_whatever_the_numbers():
    other = Labels(("pear", "apple", "stop sign"), (1, 2, 3))
    assert match(other, 3) == match(Labels(other.classes), 3)
    assert match(other, 3).targets == (2, 0, 1) and not match(other, 3).notes
    assert match(Labels(("Pear", " apple", "STOP_SIGN")), 3).targets == (2, 0, 1)
    assert match(Labels(("stop-sign", "", "N/A", "apple")), 4).targets == (1, None, None, 0)  # outputs of nothing


def test_names_that_one_side_has_alone_are_told():
    matched = match(Labels(("pear", "fig", "plum")), 3)
    assert matched.targets == (2, None, None)
    missed, left_out = matched.notes
    assert missed.startswith("mine: 2 of 3 classes are unknown to the detector") and "apple, stop sign" in missed
    assert left_out == "mine: has no class for 2 of the detector's 3; what is found of these is left out"


def test_an_equal_name_comes_before_a_folded_one():
    assert match_names(("Car", "car"), ("car",)) == (None, 0)
    assert match_names(("CAR", "Car"), ("car",)) == (None, None)  # not clear which one is meant
    assert match_names(("car",), ("Car", "CAR")) == (None,)
    assert match_names(("nut", "nut"), ("nut", "nut")) == (0, 1)  # one list, a name in it twice


def test_ids_decide_where_no_names_are_known():
    matched = match(Labels((), (3, None, 1, 90)), 4)
    assert matched.targets == (2, None, 0, None) and "matched by category id, 1 classes are unknown" in matched.notes[0]


@pytest.mark.parametrize(
    ("count", "targets"),
    [
        (80, {0: 0, 79: 79}),
        (90, {12: 11, 89: 79, 11: None}),  # torchvision's: its label 13 is the stop sign of id 13, the twelfth class
        (91, {13: 11, 90: 79, 0: None}),  # from 0 on, where there is no background
    ],
)
def test_outputs_without_names_are_in_order_or_category_ids(count, targets):
    matched = match(Labels(), count, COCO)
    assert len(matched.targets) == count and len(matched.notes) == 1
    assert {output: matched.targets[output] for output in targets} == targets
    assert ("category ids" in matched.notes[0]) == (count > 80)


@pytest.mark.parametrize(
    ("detector", "count", "pattern"),
    [
        (Labels(("cat", "dog")), 2, r"expected classes of the detector's 2 \(cat, dog\), got apple, stop sign, pear"),
        (Labels((), (7, None)), 2, r"expected category ids of the detector \(7\), got 1, 2, 3"),
        (Labels(), 4, r"expected a data set of the detector's 4 classes, got one of 3 \(apple"),
    ],
)
def test_nothing_in_common_is_refused(detector, count, pattern):
    with pytest.raises(InputError) as caught:
        match(detector, count)
    assert re.search(f"^mine: {pattern}.*; ", str(caught.value)), caught.value


def test_names_that_were_assumed_are_no_reason_to_refuse():
    """As many classes as COCO has, in a data set of other ones: they are taken in order, with a word."""
    own = Labels(("wolf", "lynx"), (1, 2))
    match = match_classes(Labels(("person", "car"), (1, 3), assumed=True), 2, own, "mine")
    assert match.targets == (0, 1) and "has no names of classes" in match.notes[0]
    with pytest.raises(InputError, match="none of which it knows"):
        match_classes(Labels(("person", "car"), (1, 3)), 2, own, "mine")
