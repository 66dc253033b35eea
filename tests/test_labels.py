import json
from pathlib import Path

import numpy as np
import pytest

from segmv3.errors import DataError
from segmv3.labels import (
    IGNORE,
    cityscapes_classes,
    cityscapes_label_ids,
    cityscapes_label_train_ids,
    numbered_classes,
    read_classes,
)


@pytest.mark.parametrize(("table", "legal"), [(cityscapes_label_ids(), 34), (cityscapes_label_train_ids(), 20)])
def test_every_stored_value_is_either_mapped_or_refused(table, legal):
    passed = 0
    for value in range(256):
        stored = np.full((2, 3), value, np.uint8)
        try:
            labels = table.to_train_ids(stored, "a.png")
        except DataError as error:
            assert "a.png" in str(error) and f"{{{value}}}" in str(error)
        else:
            passed += 1
            assert labels.dtype == np.uint8 and ((labels < 19) | (labels == IGNORE)).all()
    assert passed == legal


def test_label_ids_become_the_published_train_ids():
    stored = np.array([[7, 8, 11, 33, 0, 1, 9]], np.uint8)  # road, sidewalk, building, bicycle, three void classes
    assert cityscapes_label_ids().to_train_ids(stored, "a.png").tolist() == [[0, 1, 2, 18, 255, 255, 255]]
    names = cityscapes_classes().names
    assert (names[0], names[2], names[18]) == ("road", "building", "bicycle")


def test_complaint_says_what_the_ids_look_like():
    with pytest.raises(DataError, match=r"a\.png has ids \{21, 23, 26\}; expected 0-18 or 255.*look like labelIds"):
        cityscapes_label_train_ids().to_train_ids(np.array([[1, 21, 23, 26]], np.uint8), "a.png")
    with pytest.raises(DataError, match="look like labelTrainIds"):
        cityscapes_label_ids().to_train_ids(np.array([[0, 1, 255]], np.uint8), "a.png")


def test_palette_holds_the_class_colours():
    classes = cityscapes_classes()
    assert classes.palette.shape == (256, 3)
    assert classes.palette[0].tolist() == [128, 64, 128]
    assert not classes.palette[19:].any()


def test_numbered_classes_have_different_colours():
    assert len(set(numbered_classes(40).colors)) == 40


def test_classes_json_maps_ids_in_order_and_ignores(tmp_path: Path):
    entries = [{"id": 3, "name": "road", "rgb": [1, 2, 3]}, {"id": 0, "name": "void", "ignore": True}]
    entries.append({"id": 7, "name": "sky"})
    (tmp_path / "classes.json").write_text(json.dumps({"classes": entries}))
    classes, table = read_classes(tmp_path)
    assert classes.names == ("road", "sky")
    assert classes.colors[0] == (1, 2, 3)
    assert table.to_train_ids(np.array([[3, 0, 7, 255]], np.uint8), "x").tolist() == [[0, 255, 1, 255]]


def test_classes_txt_numbers_its_lines(tmp_path: Path):
    (tmp_path / "classes.txt").write_text("road\nsky\n\n")
    classes, table = read_classes(tmp_path)
    assert classes.names == ("road", "sky")
    with pytest.raises(DataError, match=r"x has ids \{2\}; expected 0-1 or 255"):
        table.to_train_ids(np.array([[0, 2]], np.uint8), "x")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "cannot be understood"),
        ('{"names": []}', "cannot be understood"),
        ('{"classes": []}', "names 0 classes"),
        ('{"classes": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}', "ids must be different"),
        ('{"classes": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}', "the same name"),
        ('{"classes": [{"id": 300, "name": "a"}]}', "between 0 and 255"),
        ('{"classes": [{"id": 1, "name": "a", "rgb": [1, 2]}]}', "three numbers"),
    ],
)
def test_bad_classes_files_are_refused(tmp_path: Path, text: str, says: str):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=says):
        read_classes(tmp_path)
