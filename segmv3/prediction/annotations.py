"""Files that annotation tools import, so that people can correct what a net found: COCO, CVAT and Label Studio.

Each class of a picture is a mask, exact to the pixel, or polygons (`Job.polygons`). Docs say how to import each.
"""

import json
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np

from segmv3.errors import printable
from segmv3.files import write_bytes
from segmv3.images import UInt8Array
from segmv3.labels import Classes
from segmv3.prediction.contract import Job, Shot
from segmv3.prediction.gathering import Gathered, Piece
from segmv3.prediction.shapes import box_of, brush_rle, polygons, runs, runs_down
from segmv3.prediction.tables import mean_confidence


def _picture(shot: Shot) -> str:
    """The file that holds the picture: of a video that which `--save image` writes."""
    if shot.time is None:
        return shot.file or shot.name
    return f"{Path(shot.file).stem}_image/{shot.name}.png"


def _masks(shot: Shot, job: Job) -> list[tuple[int, UInt8Array]]:
    """The chosen classes that occur, and where: uint8 H x W, 1 inside."""
    return [(train_id, (shot.labels == train_id).view(np.uint8)) for train_id in job.occurring(shot.labels)]


def _hex(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


class Coco(Gathered):
    """COCO's JSON: an annotation for each class of a picture. Category ids are train ids plus 1."""

    name = "coco"
    file = "coco.json"
    between = ",\n"

    def begin(self, job: Job) -> str:
        named = enumerate(zip(job.classes.names, job.classes.colors, strict=True), 1)
        categories = [{"id": i, "name": name, "supercategory": "", "color": color} for i, (name, color) in named]
        return f'{{"info": {{"description": "segmv3"}},\n"categories": {json.dumps(categories)},\n"annotations": [\n'

    def piece(self, shot: Shot, index: int, job: Job) -> Piece:
        height, width = shot.labels.shape
        found, masks = [], _masks(shot, job)
        counts = runs_down(shot.labels, [train_id for train_id, _ in masks])
        for train_id, mask in masks:
            if job.polygons:
                segmentation: Any = [ring.round(2).ravel().tolist() for ring in polygons(mask)]
            else:
                segmentation = {"size": [height, width], "counts": next(counts).tolist()}
            about = {
                **{"id": 256 * index + train_id + 1, "image_id": index + 1, "category_id": train_id + 1},
                **{"iscrowd": 0, "area": cv2.countNonZero(mask), "bbox": box_of(mask), "segmentation": segmentation},
            }
            found.append(json.dumps(about))
        image = {"id": index + 1, "file_name": _picture(shot), "width": width, "height": height}
        return self.between.join(found), json.dumps(image)

    def end(self, tails: str) -> str:
        return f'\n],\n"images": [\n{tails}\n]}}\n'


class Cvat(Gathered):
    """An archive with "CVAT for images 1.1" annotations, and the labels that a task or project needs."""

    name = "cvat"
    file = "cvat.zip"

    def begin(self, job: Job) -> str:
        labels = "".join(
            f"<label><name>{quoteattr(name)[1:-1]}</name><color>{_hex(color)}</color><type>any</type>"
            "<attributes></attributes></label>"
            for name, color in zip(job.classes.names, job.classes.colors, strict=True)
        )
        head = '<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>'
        return f"{head}<meta><task><name>segmv3</name><labels>{labels}</labels></task></meta>\n"

    def piece(self, shot: Shot, index: int, job: Job) -> Piece:
        height, width = shot.labels.shape
        name = _picture(shot) if shot.time is None else f"frame_{shot.name}"  # as CVAT calls the frames of a video
        shapes = "".join(
            _cvat_shapes(job.classes.names[train_id], mask, job.polygons) for train_id, mask in _masks(shot, job)
        )
        about = f'id="{index}" name={quoteattr(printable(name))} width="{width}" height="{height}"'
        return f"<image {about}>\n{shapes}</image>\n", ""

    def end(self, tails: str) -> str:
        return "</annotations>\n"

    def pack(self, written: Path, target: Path, job: Job) -> None:
        archive = written.with_suffix(".zip")
        try:
            with zipfile.ZipFile(archive, "x", zipfile.ZIP_DEFLATED) as file:
                file.write(written, "annotations.xml")
                file.writestr("labels.json", _cvat_labels(job.classes))
            super().pack(archive, target, job)
        finally:
            archive.unlink(missing_ok=True)
            written.unlink()


def _cvat_shapes(name: str, mask: UInt8Array, outlines: bool) -> str:
    about = f'label={quoteattr(name)} source="auto" occluded="0" z_order="0"'
    if outlines:
        points = [";".join(f"{x:.2f},{y:.2f}" for x, y in ring) for ring in polygons(mask)]
        return "".join(f'<polygon {about} points="{each}"/>\n' for each in points)
    left, top, width, height = box_of(mask)
    counts = ", ".join(map(str, runs(mask[top : top + height, left : left + width]).tolist()))
    return f'<mask {about} rle="{counts}" left="{left}" top="{top}" width="{width}" height="{height}"/>\n'


def _cvat_labels(classes: Classes) -> str:
    """What the "Raw" tab of a task's constructor takes."""
    named = zip(classes.names, classes.colors, strict=True)
    return json.dumps([{"name": name, "color": _hex(color), "attributes": []} for name, color in named], indent=1)


class LabelStudio(Gathered):
    """Tasks with predictions, for the labelling configuration that stands beside them in an XML file."""

    name = "label-studio"
    confidence = "used"
    file = "label-studio.json"
    companions = (".xml",)
    between = ",\n"

    def begin(self, job: Job) -> str:
        return "[\n"

    def piece(self, shot: Shot, index: int, job: Job) -> Piece:
        height, width = shot.labels.shape
        kind = "polygonlabels" if job.polygons else "brushlabels"
        values = [
            (train_id, value)
            for train_id, mask in _masks(shot, job)
            for value in (_percent(mask) if job.polygons else [{"format": "rle", "rle": brush_rle(mask)}])
        ]
        result = [
            {
                **{"id": f"{index}-{place}", "from_name": "label", "to_name": "image", "type": kind},
                **{"original_width": width, "original_height": height, "image_rotation": 0},
                "value": {**value, kind: [job.classes.names[train_id]]},
            }
            for place, (train_id, value) in enumerate(values)
        ]
        image = f"/data/local-files/?d={quote(_picture(shot), errors='surrogateescape')}"
        prediction = {"model_version": "segmv3", "score": mean_confidence(shot, job), "result": result}
        return json.dumps({"data": {"image": image}, "predictions": [prediction]}), ""

    def end(self, tails: str) -> str:
        return "\n]\n"

    def pack(self, written: Path, target: Path, job: Job) -> None:
        tag = "PolygonLabels" if job.polygons else "BrushLabels"
        named = zip(job.classes.names, job.classes.colors, strict=True)
        labels = "".join(f'    <Label value={quoteattr(name)} background="{_hex(color)}"/>\n' for name, color in named)
        view = (
            f'<View>\n  <Image name="image" value="$image"/>\n  <{tag} name="label" toName="image">\n{labels}  </{tag}>'
        )
        write_bytes(target.with_suffix(".xml"), f"{view}\n</View>\n".encode())
        super().pack(written, target, job)


def _percent(mask: UInt8Array) -> list[dict[str, Any]]:
    """Polygons in percent of the picture."""
    scale = 100 / np.array(mask.shape[::-1])
    return [{"closed": True, "points": (ring * scale).round(4).tolist()} for ring in polygons(mask)]
