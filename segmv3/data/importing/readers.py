"""The table of readers, asked in this order: those that recognise a file of their own first."""

from segmv3.data.importing.archives import street_sets
from segmv3.data.importing.base import Reader
from segmv3.data.importing.coco import Coco
from segmv3.data.importing.cvat import Cvat
from segmv3.data.importing.label_studio import LabelStudio
from segmv3.data.importing.labelme import LabelMe
from segmv3.data.importing.masks import Masks
from segmv3.data.importing.yolo import Yolo

READERS: tuple[Reader, ...] = (*street_sets(), Coco(), Cvat(), LabelStudio(), Yolo(), LabelMe(), Masks())
