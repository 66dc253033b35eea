from pathlib import Path

from segmv3.config import AdamW, Config, Data, Schedule
from segmv3.models.zoo import NETS

config = Config(
    model=NETS["lraspp_small_d8"],
    data=Data(dataset="camvid", root=Path("data/camvid"), batch_size=8, crop_size=(360, 480), workers=2),
    optim=AdamW(lr=2e-3, weight_decay=0.05),
    schedule=Schedule(steps=4600, policy="cosine", min_lr=1e-5, warmup_steps=200, eval_every=460, save_every=230),
)
