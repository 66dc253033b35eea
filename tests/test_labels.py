import json
import os
from pathlib import Path

import numpy as np
import pytest

from segmv3.errors import DataError
from segmv3.labels import (
    IGNORE,
    LabelTable,
    cityscapes_classes,
    cityscapes_label_ids,
    cityscapes_label_train_ids,
    class_name,
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
    own = LabelTable("classes.json", ((0, 0), (1, 1), (IGNORE, IGNORE)))  # the name of such a file says nothing
    with pytest.raises(DataError, match=r"\{7\}; expected 0-1 or 255 \(classes.json\)\. List it in classes.json"):
        own.to_train_ids(np.array([[0, 7]], np.uint8), "a.png")


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


def entries(*more: object) -> str:
    return json.dumps({"classes": [{"id": 0, "name": "road"}, *more]})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("not json", "cannot be understood"),
        ("[" * 100_000, "cannot be understood"),
        ("[]", "cannot be understood"),
        ('{"names": []}', "cannot be understood"),
        ('{"classes": {"id": 0}}', "cannot be understood"),
        ('{"classes": ["road", "sky"]}', "cannot be understood"),
        ('{"classes": NaN}', "NaN is no number"),
        ('{"classes": [], "classes": []}', "a key stands twice"),
        ('{"classes": []}', "names 0 classes; between 2 and 253"),
        (entries(), r"leaves one class to learn \(road\): a net of one class is always right"),
        (entries({"id": 0, "name": "b"}), "ids must be different, and 0 stands twice"),
        (entries({"id": 2, "name": "road"}), "the same name, road"),
        (entries({"id": 300, "name": "a"}), "between 0 and 255, found 300"),
        (entries({"id": 10**50, "name": "a"}), "between 0 and 255, found 1000"),
        ('{"classes": [{"id": ' + "9" * 5000 + ', "name": "a"}]}', "cannot be understood"),
        (entries({"id": 1.5, "name": "a"}), "whole number between 0 and 255, found 1.5"),
        (entries({"id": True, "name": "a"}), "whole number between 0 and 255, found True"),
        (entries({"id": "1", "name": "a"}), "whole number between 0 and 255, found '1'"),
        (entries({"name": "a"}), "whole number between 0 and 255, found None"),
        (entries({"id": 1, "name": ["a"]}), r"id 1: a class name must be text, found \['a'\]"),
        (entries({"id": 1}), "id 1: a class name must be text, found None"),
        (entries({"id": 1, "name": "a", "ignore": "no"}), '"ignore" of id 1 must be true or false'),
        (entries({"id": 255, "name": "sky"}), "id 255 of class 'sky' always means ignore"),
        (entries({"id": 1, "name": "a", "rgb": [1, 2]}), "three numbers"),
        (entries({"id": 1, "name": "a", "rgb": [1, 2, True]}), "three numbers"),
        (json.dumps({"classes": [{"id": i, "name": f"c{i}"} for i in range(9000)]}), "names 9,000 classes"),
        (" " * 1_000_001, "classes.json is larger than 1 MB; it must be a file of class names"),
    ],
)
def test_bad_classes_files_are_refused_in_one_line(tmp_path: Path, text: str, says: str):
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        read_classes(tmp_path)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 400


def test_a_classes_file_that_is_no_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "classes.json")
    (tmp_path / "classes.txt").write_text("road\nsky\n")  # not taken in its place
    with pytest.raises(DataError, match=r"classes\.json is no regular file"):
        read_classes(tmp_path)
    (tmp_path / "classes.json").unlink()
    (tmp_path / "classes.json").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"classes\.json cannot be read"):
        read_classes(tmp_path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ro\u00a0ad", r"U\+00A0 \(NO-BREAK SPACE\)"),
        ("road\u200b", r"U\+200B \(ZERO WIDTH SPACE\)"),
        ("\ufeffroad", r"U\+FEFF"),
        ("ro\tad", r"U\+0009 \(a control character\)"),
        ("ro\nad", r"U\+000A"),
        ("\x1b[31mroad", r"U\+001B"),
        ("\u202eroad", r"U\+202E \(RIGHT-TO-LEFT OVERRIDE\)"),
        ("ro\u2028ad", r"U\+2028"),
        ("\u3164", r"U\+3164 \(HANGUL FILLER\)"),
        ("stra\udcdfe", r"U\+DCDF \(no text\)"),
        ("", "is empty"),
        ("  ", "is empty"),
        ("a" * 101, "has 101 characters"),
        (7, "must be text, found 7"),
    ],
)
def test_a_name_that_cannot_be_seen_is_refused_by_code_point(tmp_path: Path, name: object, says: str):
    with pytest.raises(ValueError, match=says):
        class_name(name)
    (tmp_path / "classes.json").write_text(entries({"id": 1, "name": name}))
    with pytest.raises(DataError, match=f"id 1: .*{says}") as caught:
        read_classes(tmp_path)
    assert str(caught.value).isprintable()


def test_names_are_kept_in_one_form(tmp_path: Path):
    (tmp_path / "classes.txt").write_bytes("\ufeff Bu\u0308sche \r\n\t[sky]\r\nroad, paved\r\n".encode())
    assert read_classes(tmp_path)[0].names == ("B\u00fcsche", "[sky]", "road, paved")
    (tmp_path / "classes.txt").write_text("Bu\u0308sche\nB\u00fcsche\n")
    with pytest.raises(DataError, match="the same name"):
        read_classes(tmp_path)
    (tmp_path / "classes.txt").write_text("road\u2028sky\nhouse\n")  # no line break in an editor
    with pytest.raises(DataError, match=r"id 0: .*U\+2028"):
        read_classes(tmp_path)
