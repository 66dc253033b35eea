"""Sorts loose pictures into one folder a class, such as the validation pictures of ImageNet."""

import csv
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from segmv3.data.listing import images_below, told, warn_of
from segmv3.errors import DataError, OutputError
from segmv3.files import make_folder
from segmv3.labels import class_name

_TRUTH, _META = "ILSVRC2012_validation_ground_truth.txt", "meta.mat"


def sort_pictures(pictures: Path, output: Path, labels: Path) -> int:
    """Link pictures into one folder a class.

    Args:
        pictures: folder of the loose pictures.
        output: the new folder, such as imagenet/val.
        labels: a CSV of picture and class, or the folder of ImageNet's development kit.

    Returns:
        the number of pictures.

    Raises:
        DataError: pictures and labels do not belong together.
        OutputError: `output` is there already, or cannot be written.
    """
    if output.exists():
        raise OutputError(f"{output} exists; choose another --output")
    if not pictures.is_dir():
        raise DataError(f"{pictures} is no folder of pictures")
    found = images_below(str(pictures))
    warn_of(told(pictures, found.left_out))
    paths = {Path(path).stem: Path(path) for path in found.paths}
    if len(paths) < len(found.paths):
        raise DataError(f"{pictures} holds two pictures of the same name; rename one of them")
    classes = _of_csv(labels) if labels.is_file() else _of_development_kit(labels, sorted(paths))
    for here, there, what in ((paths, classes, f"no class in {labels}"), (classes, paths, f"no picture in {pictures}")):
        if lacking := sorted(here.keys() - there.keys()):
            raise DataError(f"{len(lacking)} of {len(here)} have {what} (first: {ascii(lacking[0])[1:-1]})")
    if not paths:
        raise DataError(f"{pictures} holds no picture")
    make_folder(output.parent)
    try:
        with tempfile.TemporaryDirectory(prefix=".segmv3-", dir=output.parent, ignore_cleanup_errors=True) as scratch:
            made = Path(scratch) / "sorted"
            for stem, path in paths.items():
                (made / classes[stem]).mkdir(parents=True, exist_ok=True)
                (made / classes[stem] / path.name).symlink_to(path.resolve())
            made.rename(output)
    except OSError as error:
        raise OutputError(f"{output} cannot be written ({error.strerror or error})") from None
    return len(paths)


def _of_csv(path: Path) -> dict[str, str]:
    """Classes by picture: two columns, under any header; of ImageNet's own file the first word of the second one."""
    classes: dict[str, str] = {}
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error})") from None
    for number, row in enumerate(rows[1:], 2):
        if len(row) < 2 or not row[0] or not row[1].strip():
            raise DataError(f"{path}, line {number}: a picture and its class are needed, under a header")
        name = row[1].split()[0] if rows[0][1:2] == ["PredictionString"] else row[1].strip()
        stem = Path(row[0]).stem if Path(row[0]).suffix.lower() in (".jpg", ".jpeg", ".png") else Path(row[0]).name
        if classes.setdefault(stem, _folder(name, f"{path}, line {number}")) != name:
            raise DataError(f"{path}, line {number}: this picture has two classes")
    return classes


def _of_development_kit(folder: Path, stems: list[str]) -> Mapping[str, str]:
    """The n-th line of the ground truth is the class of the n-th picture; meta.mat has the WordNet id of each class."""
    data = folder if (folder / _TRUTH).is_file() else folder / "data"
    for name in (_TRUTH, _META):
        if not (data / name).is_file():
            raise DataError(f"{folder} has no data/{name}; name the unpacked ILSVRC2012_devkit_t12, or a CSV")
    from scipy.io import loadmat  # type: ignore[import-untyped]

    try:
        numbers = [int(word) for word in (data / _TRUTH).read_text().split()]
        synsets = loadmat(os.fspath(data / _META), squeeze_me=True)["synsets"]
        ids = {int(row[0]): str(row[1]) for row in synsets if row[4] == 0}  # the others are groups of classes
        classes = [_folder(ids[number], data / _META) for number in numbers]
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        raise DataError(f"{data} is no development kit of ILSVRC 2012 ({error})") from None
    if len(stems) != len(classes):
        raise DataError(f"{data / _TRUTH} has {len(classes)} lines, but there are {len(stems)} pictures")
    return dict(zip(stems, classes, strict=True))


def _folder(name: str, where: object) -> str:
    """A class as a folder. Raises: DataError for a name that is none."""
    try:
        if class_name(name) == name and name not in (".", "..") and not set(name) & set("/\\"):
            return name
    except ValueError:
        pass
    raise DataError(f"{where}: {ascii(name)[1:-1][:60]} cannot be the name of a folder")
