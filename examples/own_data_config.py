"""A few steps on the data source of own_data.py, with images that it draws under out/."""

from pathlib import Path

from own_data import SideBySide, draw

from segmv3.config import Config, Data, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=NETS["lraspp_small_d8"],
    data=Data(dataset=SideBySide(), root=draw(Path("out/own-data")), batch_size=2, crop_size=(32, 48), workers=0),
    schedule=Schedule(steps=4, eval_every=4, log_every=2),
)
