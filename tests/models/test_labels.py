"""What a detector's outputs stand for."""

from dataclasses import replace

import pytest
from torch import nn

from norton_det.models.labels import Labels, labels_of, named, set_labels
from norton_det.utils.errors import InputError

COCO = Labels(("person", "", "car"), (1, None, 3), ("nose",))


def test_labels_are_written_and_read():
    assert Labels.from_fields(COCO.to_fields()) == COCO
    assert replace(COCO, assumed=True).to_fields() == {}  # whoever reads the file will assume as much
    assert Labels().to_fields() == {} and Labels.from_fields({}) == Labels()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": []}, "unknown field 'names'"),
        ({"classes": "cat"}, "classes: expected a list"),
        ({"classes": [1]}, "classes: expected a list"),
        ({"category_ids": ["1"]}, "category_ids: expected a list"),
        ({"category_ids": [True]}, "category_ids: expected a list"),
        ([], "unknown field"),
        (None, "unknown field"),
    ],
)
def test_damaged_fields(fields, message):
    with pytest.raises(InputError, match=message) as caught:
        Labels.from_fields(fields)
    assert "\n" not in str(caught.value)


def test_by_label():
    assert COCO.by_label(1) == (("background", "person", "", "car"), (None, 1, None, 3))
    assert COCO.by_label(0) == (("person", "", "car"), (1, None, 3))
    assert Labels().by_label(1) == ((), ())


def test_counts_have_to_fit():
    assert COCO.check("file", 3, 1) is COCO
    for counts in ((4, 1), (3, None), (3, 17)):
        with pytest.raises(InputError, match=r"file: (classes|keypoints): expected"):
            COCO.check("file", *counts)


def test_names_with_and_without_the_background():
    assert named(["a", "b"], 2, "x") == named(["__background__", "a", "b"], 2, "x") == ("a", "b")
    for names in (["a"], ["c", "a", "b"]):
        with pytest.raises(InputError, match="x: classes: expected 2"):
            named(names, 2, "x")


def test_on_a_module():
    module = nn.Linear(1, 1)
    assert labels_of(module) == Labels()
    set_labels(module, COCO)
    assert labels_of(module) == COCO
