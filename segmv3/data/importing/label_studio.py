"""Label Studio's JSON export: tasks with annotations, or the predictions of a net, as brush strokes and polygons."""

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from segmv3.data.importing.annotated import AnnotationReader, Annotations, Picture, has_keys, json_files
from segmv3.data.importing.cvat import tree_of
from segmv3.data.importing.names import rgb_of
from segmv3.data.importing.regions import Brush, Region, polygon, size_of
from segmv3.records import read_json, read_regular, typed


class LabelStudio(AnnotationReader):
    """The newest annotation of a task counts, and where there is none its newest prediction."""

    name = "label-studio"
    looks_for = "a .json with a list of tasks, each with data and annotations or predictions"

    def files(self, source: Path) -> list[Path]:
        files = json_files(source, "*.json")
        return [path for path in files if has_keys(path, "data", "result") and path.read_bytes().lstrip()[:1] == b"["]

    def add(self, found: Annotations, path: Path, source: Path) -> None:
        config = path.with_suffix(".xml")  # the labelling configuration, as predict writes it
        if config.is_file():
            for label in tree_of(read_regular(config)).iter("Label"):
                found.colors[label.get("value", "")] = rgb_of(label.get("background"))
        for number, task in enumerate(typed(read_json(path), list[dict[str, Any]], "the tasks"), 1):
            _add(found, task, f"task {number}", path)


def _add(found: Annotations, task: dict[str, Any], where: str, path: Path) -> None:
    made = [each for each in _dicts(task, "annotations", where) if not each.get("was_cancelled")]
    guessed = _dicts(task, "predictions", where)
    choice = sorted(made or guessed, key=lambda each: str(each.get("updated_at") or ""))
    newest = choice[-1] if choice else {}
    if not newest:
        found.skipped["tasks without annotation or prediction"] += 1
    elif not made:
        found.said["tasks have no annotation: the predictions of a net count for them"] += 1
    picture = Picture(_way(typed(task.get("data"), dict, f"{where}: data")), None, path)
    for number, each in enumerate(_dicts(newest, "result", where), 1):
        value, place = typed(each.get("value"), dict, f"{where}: value"), f"{where}: region {number}"
        named = next((value[key] for key in ("brushlabels", "polygonlabels", "labels") if value.get(key)), None)
        if named is None or not ("rle" in value or "points" in value) or each.get("image_rotation"):
            kind = "rotated image" if each.get("image_rotation") else each.get("type")
            found.skipped[f"regions of the type {kind}: only brush strokes and polygons with a label are taken"] += 1
            continue
        picture.size = size_of(each.get("original_height"), each.get("original_width"), place)
        picture.regions.append((typed(named, list[str], f"{place}: labels")[0], _region(value, place)))
    found.pictures.append(picture)


def _region(value: dict[str, Any], place: str) -> Region:
    if "points" in value:
        return polygon(value["points"], place, whole=100)
    try:
        return Brush(bytes(typed(value["rle"], list, "rle")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from None


def _dicts(task: dict[str, Any], key: str, where: str) -> list[dict[str, Any]]:
    return typed(task.get(key) or [], list[dict[str, Any]], f"{where}: {key}")


def _way(data: dict[str, Any]) -> str:
    """The picture of a task: of a local file its way, of an upload its name."""
    texts = [data.get("image"), *data.values()]
    address = next((text for text in texts if isinstance(text, str) and "." in text), "")
    parts = urlsplit(address)
    if given := parse_qs(parts.query, errors="surrogateescape").get("d"):
        return given[0]
    way = unquote(parts.path, errors="surrogateescape").lstrip("/")
    return way.rsplit("/", 1)[-1] if way.startswith("data/upload/") else way
