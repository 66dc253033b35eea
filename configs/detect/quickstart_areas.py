"""One net that draws boxes and labels areas, on mini-city: SSDLite and LR-ASPP share a MobileNetV3-Small.

Run:     segmv3 data mini-city data/mini-city && segmv3 detect train configs/detect/quickstart_areas.py
Score:   docs/how-to/detect.md
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import LRASPP, Detection, load_config

boxes = load_config(Path(__file__).with_name("quickstart.py"), kind=Detection)
model, data = replace(boxes.model, areas=LRASPP()), replace(boxes.data, areas="cityscapes")
config = replace(boxes, model=model, data=data)
