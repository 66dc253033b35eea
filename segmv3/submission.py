"""Files for the Cityscapes test server, and the check that it would take them.

The server wants one zip of 8-bit single-channel PNGs of *label* ids (7 = road), as large as the images, in any
folders. Which file belongs to which image is the file's name: `<city>_<sequence>_<frame>*.png`, as in
`getPrediction` of `cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling`, which the server runs; a missing
or second file of an image ends it.
"""

import hashlib
import io
import json
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from PIL import Image

from segmv3.config import Data
from segmv3.data.datasets import Dataset, find_split, open_dataset
from segmv3.data.listing import city_of, only, warn_of
from segmv3.data.sources import source_of
from segmv3.errors import DataError, OutputError, Segmv3Warning, shortened
from segmv3.files import append_line, make_folder, sha256, write_bytes
from segmv3.images import UInt8Array, read_ids, read_image
from segmv3.labels import IGNORE, cityscapes_label_ids, listed
from segmv3.metrics import ConfusionMatrix
from segmv3.official import is_truth, prediction_file, script_scores, write_prediction
from segmv3.pipeline import Progress, work_ahead
from segmv3.records import from_json, read_regular

Size = tuple[int, int]

IMAGE_SIZE: Size = (1024, 2048)
_MAX_BYTES = 50_000_000  # of one PNG; 1024x2048 bytes are 2 MB before compression


# --- what is asked for ---


@dataclass(frozen=True)
class Target:
    """The images of one split, by name, in order; ground truth is not needed."""

    title: str
    split: str
    images: Mapping[str, Path]
    sizes: Mapping[str, Size]
    """(height, width) of each image."""


def open_target(data: Data, split: str) -> Target:
    """Find the images of a split; only their headers are read.

    Args:
        data: of a layout whose names the server knows.
        split: such as `test`.

    Raises:
        DataError: there are none, one cannot be read, or the test split is not complete: the server takes all 1,525
            or nothing.

    Warns:
        Segmv3Warning: images are not 1024x2048, the only size the server knows.
    """
    found, whole = find_split(data, split), source_of(data).whole(data.root, split)
    if not found.images:
        raise found.no_images
    images = dict(sorted(only(found.images).items()))
    if whole and len(images) != whole:
        raise DataError(
            f"{found.image_root} has {len(images):,} of the {whole:,} {split} images; the server takes all or nothing: "
            "unpack leftImg8bit_trainvaltest.zip again"
        )
    warn_of(found.left_out)
    sizes = {name: _image_size(path) for name, path in images.items()}
    other = [name for name, size in sizes.items() if size != IMAGE_SIZE]
    if other:
        height, width = sizes[other[0]]
        text = f"data: {len(other):,} of {len(images):,} images are not 1024x2048 (first: {other[0]}, {height}x{width})"
        warnings.warn(Segmv3Warning(f"{text}; the server only knows Cityscapes' own"), stacklevel=2)
    return Target(found.title, split, images, sizes)


def _image_size(path: Path) -> Size:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{path} cannot be opened as an image ({' '.join(str(error).split())})") from None


# --- writing ---


def write_predictions(
    target: Target,
    predict: Callable[[UInt8Array], UInt8Array],
    output: Path,
    *,
    settings: Mapping[str, Any],
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, int]:
    """Predict every image and write `output/predictions/<city>/<name>_pred_labelIds.png`, going on where it stopped.

    `output/submission.jsonl` records the settings and each finished file with its SHA-256; a file is taken over
    from an earlier run only if both are still true.

    Args:
        predict: from uint8 H x W x 3 RGB to uint8 H x W of train ids.
        settings: JSON types that say how, such as the weights' SHA-256.
        overwrite: start anew where the folder holds predictions made otherwise.
        progress: called with (images done, images in all).

    Returns:
        The folder of the predictions, and how many were taken over.

    Raises:
        OutputError: the folder holds other files, or predictions made otherwise.
    """
    make_folder(output)
    folder, record = output / "predictions", output / "submission.jsonl"
    header = {"split": target.split, "dataset": target.title, **settings}
    there = _files(folder) if folder.is_dir() else []
    finished = _finished(record, header, overwrite=overwrite)
    wanted = {prediction_file(Path(city_of(name)), name).as_posix() for name in target.images}
    foreign = sorted({*there} - wanted)
    if foreign or (there and finished is None and not overwrite):
        first = (foreign or there)[0]
        raise OutputError(f"{folder} holds files of another origin (first: {first}); choose another --output")
    kept = {name: facts for name, facts in (finished or {}).items() if _is_finished(folder, name, target, facts)}
    lines = [json.dumps(header, sort_keys=True), *(json.dumps(facts) for facts in kept.values())]
    write_bytes(record, ("\n".join(lines) + "\n").encode())
    todo = [name for name in target.images if name not in kept]
    for city in {city_of(name) for name in todo}:
        make_folder(folder / city)
    if progress:
        progress(len(kept), len(target.images))
    with work_ahead(lambda name: read_image(target.images[name]), todo, threads=2) as images:
        for number, (name, image) in enumerate(zip(todo, images, strict=True), 1):
            path = write_prediction(folder / city_of(name), name, predict(image))
            facts = {"name": name, "sha256": sha256(path), "image_bytes": target.images[name].stat().st_size}
            append_line(record, json.dumps(facts))
            if progress:
                progress(len(kept) + number, len(target.images))
    return folder, len(kept)


def _finished(record: Path, header: Mapping[str, Any], *, overwrite: bool) -> dict[str, dict[str, Any]] | None:
    """The finished files in a record, by image name; None when there is no record to go on with.

    A last line cut by a crash is no finished file.
    """
    if not record.exists():
        return None
    try:
        lines = read_regular(record).decode(errors="replace").splitlines()
    except ValueError as error:
        raise OutputError(f"{record} {error}; choose another --output") from None
    entries = []
    for line in lines:
        with suppress(ValueError):
            entries += [entry] if isinstance(entry := from_json(line), dict) else []
    was = entries[0] if entries and "name" not in entries[0] else {}
    differing = {key: (was.get(key), header.get(key)) for key in {*was, *header} if was.get(key) != header.get(key)}
    if not differing:
        return {entry["name"]: entry for entry in entries[1:] if isinstance(entry.get("name"), str)}
    if overwrite:
        return None
    told = {key: [str(v)[:12] if len(str(v)) == 64 else shortened(str(v)) for v in differing[key]] for key in differing}
    text = ", ".join(f"{key} {a} (now {b})" for key, (a, b) in sorted(told.items()))
    raise OutputError(f"{record.parent} holds predictions made with {text}; choose another --output or add --overwrite")


def _is_finished(folder: Path, name: str, target: Target, facts: Mapping[str, Any]) -> bool:
    """Whether a prediction is byte for byte what was written, and its image is as long as it was then."""
    if name not in target.images or facts.get("image_bytes") != target.images[name].stat().st_size:
        return False
    path = prediction_file(folder / city_of(name), name)
    return path.is_file() and facts.get("sha256") == sha256(path)


def write_zip(folder: Path, path: Path, *, overwrite: bool = False) -> str:
    """Pack the PNGs of a folder: sorted, stored (PNGs are packed already), dated 1980, so the same files give the
    same zip; it is read back and compared.

    Returns: the SHA-256 of the zip.
    Raises: OutputError when another file lies there, or what was written does not come back.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in _files(folder):
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # Unix, whatever wrote it
            archive.writestr(entry, (folder / name).read_bytes())
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    if path.is_file() and not overwrite and sha256(path) != digest:
        raise OutputError(f"{path} exists and is another one; choose another --output or add --overwrite")
    write_bytes(path, data)
    with zipfile.ZipFile(path) as archive:
        if any(archive.read(name) != (folder / name).read_bytes() for name in archive.namelist()):
            raise OutputError(f"{path} does not come back as it was written; the disk may be failing")
    return digest


# --- checking ---


class Check(NamedTuple):
    """What a checked submission holds: the number of files, and the label ids that occur."""

    files: int
    ids: tuple[int, ...]


def check_submission(source: Path, target: Target, *, progress: Progress | None = None) -> Check:
    """Decode every prediction of a zip or folder and refuse what the server would refuse.

    Warns about files that belong to no image and about ids that the benchmark never asks for: the server takes
    both, and counts such pixels as missed.
    Raises: DataError for the first of: not a zip; images without or with two predictions; a file that is damaged,
        a colour image, of another size, or has illegal ids (train ids, most often).
    """
    with _opened(source) as files:
        chosen = _chosen(source, target, list(files))
        found: set[int] = set()
        legal = cityscapes_label_ids()
        evaluated = {stored for stored, train in legal.train_ids if train != IGNORE}
        for number, (image, name) in enumerate(chosen.items(), 1):
            shown, path = f"{source}: {name}", files[name]
            try:
                ids = read_ids(path, path.read_bytes() if isinstance(path, zipfile.Path) else None)
            except (zipfile.BadZipFile, NotImplementedError, EOFError, zlib.error) as error:
                raise DataError(f"{shown} cannot be unpacked ({error}); write the zip again") from None
            if ids.shape != target.sizes[image]:
                size, wanted = ("x".join(map(str, shape)) for shape in (ids.shape, target.sizes[image]))
                raise DataError(f"{shown} is {size}, its image is {wanted}; predictions must have the image's size")
            counts = np.bincount(ids.ravel(), minlength=256)
            present = set(np.flatnonzero(counts).tolist())
            _check_ids(counts, present, legal.legal, evaluated, shown)
            found |= present
            if progress:
                progress(number, len(chosen))
    if never := ", ".join(map(str, sorted(found - evaluated))):
        text = f"data: {source} has ids that are never right ({never}): such pixels count as missed"
        warnings.warn(Segmv3Warning(text), stacklevel=2)
    return Check(len(chosen), tuple(sorted(found)))


def _check_ids(counts: np.ndarray, present: set[int], legal: frozenset[int], evaluated: set[int], shown: str) -> None:
    """Train ids are legal label ids too, mostly: they give themselves away by what they lack, and by what they are."""
    wrong = int(counts.sum()) - int(counts[sorted(evaluated)].sum())
    if present <= {*range(19), IGNORE} and 2 * wrong > counts.sum():
        raise DataError(
            f"{shown} has ids {{{listed(present)}}}: these look like train ids; the server wants label ids "
            "(7 = road), as segmv3 submit writes them"
        )
    if illegal := present - legal:
        hint = " (255 is ignore among train ids, no label id)" if IGNORE in illegal else ""
        raise DataError(f"{shown} has ids {{{listed(illegal)}}}; label ids are 0-33{hint}")


@contextmanager
def _opened(source: Path) -> Iterator[dict[str, Path]]:
    """The files of a folder or zip by name; those of a zip as paths of the zip's own kind."""
    if source.is_dir():
        yield {name: source / name for name in _files(source)}
        return
    if not source.exists():
        raise DataError(f"{source} does not exist; name a zip or a folder of predictions")
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{source} is not a zip that can be opened ({error}); write it again") from None
    with archive:
        names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if twice := next((name for name, count in Counter(names).items() if count > 1), None):
            raise DataError(f"{source} has {twice} twice; keep one of them")
        for info in archive.infolist():
            if info.flag_bits & 1:
                raise DataError(f"{source}: {info.filename} is encrypted; the server has no password")
            if info.file_size > _MAX_BYTES:
                raise DataError(f"{source}: {info.filename} is {info.file_size:,} bytes; no prediction is that large")
        # of a path the image reader asks for `read_bytes` and a name, which a zip's paths have
        yield {name: cast(Path, zipfile.Path(archive, name)) for name in sorted(names)}


def _files(folder: Path) -> list[str]:
    """All files below a folder, hidden ones left out, as sorted relative names."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in found if not any(part.startswith(".") for part in path.parts))


def _chosen(source: Path, target: Target, names: Sequence[str]) -> dict[str, str]:
    """Image name to file name, as the official script pairs them."""
    found: dict[str, list[str]] = {image: [] for image in target.images}
    extra = []
    for name in names:
        base = name.rpartition("/")[2]
        if base.startswith(".") or not base.endswith(".png"):
            continue
        images = [image for image in target.images if base.startswith(image)]
        for image in images:
            found[image].append(name)
        if not images:
            extra.append(name)
    missing = [image for image, files in found.items() if not files]
    doubled = [image for image, files in found.items() if len(files) > 1]
    if len(missing) == len(found):
        example = f"{next(iter(found))}*.png"
        raise DataError(f"{source} has no prediction for any image of '{target.split}'; they are named like {example}")
    if missing:
        raise DataError(
            f"{source} lacks {len(missing):,} of {len(found):,} predictions of '{target.split}' "
            f"(first: {', '.join(missing[:3])}); the server takes all or nothing"
        )
    if doubled:
        first, second, *_ = found[doubled[0]]
        raise DataError(
            f"{source} has several files for {len(doubled):,} of {len(found):,} images "
            f"(first: {first} and {second}); the server takes one PNG per image, no colour image beside it"
        )
    if extra:
        text = f"data: {source} has {len(extra):,} PNGs that belong to no image of '{target.split}' (first: {extra[0]})"
        warnings.warn(Segmv3Warning(f"{text}; the server ignores them"), stacklevel=3)
    return {image: files[0] for image, files in found.items()}


# --- dry run ---


@dataclass(frozen=True)
class DryRun:
    """IoU of each class and its mean by the official script and by segmv3, percent; NaN for an absent class."""

    classes: tuple[tuple[str, float, float], ...]
    official: float
    ours: float


def open_truth(data: Data, split: str) -> Dataset:
    """The ground truth of a split, as the official script reads it.

    Raises: DataError when there is none, or none of label ids.
    """
    dataset = open_dataset(data, split)
    if other := next((pair for pair in dataset.pairs if not is_truth(pair.label)), None):
        raise DataError(f"{other.label} is not what the official script reads: it needs *_gtFine_labelIds.png")
    return dataset


def dry_run(folder: Path, dataset: Dataset, *, progress: Progress | None = None) -> DryRun:
    """Score written predictions against a split with ground truth, by the official script and by segmv3.

    Args:
        dataset: as `open_truth` returns it.

    Raises:
        DataError: the script refuses a file.
    """
    predictions = [prediction_file(folder / city_of(pair.name), pair.name) for pair in dataset.pairs]
    confusion, table = ConfusionMatrix(len(dataset.classes)), cityscapes_label_ids()
    for path, pair in zip(predictions, dataset.pairs, strict=True):
        truth = pair.table.to_train_ids(read_ids(pair.label), pair.label)
        confusion.update(table.to_train_ids(read_ids(path), path), truth)
    official = script_scores(predictions, [pair.label for pair in dataset.pairs], progress)
    scores = official["classScores"]
    rows = zip(dataset.classes.names, confusion.iou.tolist(), strict=True)
    return DryRun(
        tuple((name, 100 * scores[name], ours) for name, ours in rows),
        100 * official["averageScoreClasses"],
        confusion.miou,
    )
