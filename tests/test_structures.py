"""Categories between ids, labels and names."""

import numpy as np
import pytest

from FasterRCNN.structures import Categories, Dataset, ImageRecord


def test_categories_keep_arbitrary_ids():
    categories = Categories(names=["cat", "dog", "car"], ids=[0, 7, 90])
    assert len(categories) == 3
    assert [categories.label_of_id(i) for i in (0, 7, 90)] == [1, 2, 3]
    assert [categories.id_of_label(label) for label in (1, 2, 3)] == [0, 7, 90]
    assert categories.name_of_label(3) == "car"
    assert categories == Categories(names=("cat", "dog", "car"), ids=(0, 7, 90))


def test_categories_refuse_what_they_do_not_know():
    categories = Categories(names=("cat",), ids=(5,))
    with pytest.raises(ValueError, match=r"unknown category id 6: the categories have the ids \(5,\)"):
        categories.label_of_id(6)
    for label in (0, 2, -1):
        with pytest.raises(ValueError, match=rf"label {label} is outside 1\.\.1"):
            categories.name_of_label(label)


def test_categories_refuse_a_wrong_number_of_ids_and_repeated_ids():
    with pytest.raises(ValueError, match="2 category names but 1 category ids"):
        Categories(names=("a", "b"), ids=(1,))
    with pytest.raises(ValueError, match=r"more than once: \[4\]"):
        Categories(names=("a", "b", "c"), ids=(4, 1, 4))


def test_lengths_count_objects_and_images():
    assert len(ImageRecord("a", "a.jpg", 1, 1)) == 0
    assert len(ImageRecord("a", "a.jpg", 1, 1, boxes=np.zeros((4, 4)))) == 4
    assert len(Dataset("d", [ImageRecord("a", "a.jpg", 1, 1)], Categories(("a",), (1,)))) == 1
