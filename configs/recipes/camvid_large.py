"""MobileNetV3-Large with the plus head on CamVid, from scratch: the best recipe under 3M parameters.

Run:     segmv3 data pack data/camvid data/camvid-pack
         segmv3 train configs/recipes/camvid_large.py --data.cache data/camvid-pack
         on a GPU: --precision bf16 --compile auto
Net:     lraspp_large_plus with the 1/4 features, for poles of one to three pixels: 2,962,747 parameters
         with 11 classes, 1.00 GMACs at 360x480
Recipe:  that of camvid_best, so that the difference is the net's
Protocol: trained on the 367 frames, scored on val, which lies near them (docs/results/camvid.md): it flatters
Cost:    on one H200-class GPU: unmeasured; on two CPU cores: unmeasured (the log's first lines tell)
Score:   not measured
"""

from dataclasses import replace
from pathlib import Path

from segmv3.config import LRASPPPlus, load_config
from segmv3.models.zoo import NETS

config = replace(
    load_config(Path(__file__).with_name("camvid_best.py")),
    model=replace(NETS["lraspp_large_plus"], head=LRASPPPlus(finest=4)),
)
