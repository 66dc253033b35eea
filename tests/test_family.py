"""Sizes and costs of every net of the references."""

import csv

import pytest
import torch

from segmv3.cli import main
from segmv3.config import load_config
from segmv3.errors import ModelError
from segmv3.models.count import gmacs, parameters
from segmv3.models.family import count_family
from segmv3.models.zoo import NETS, PAPER_NETS, create_backbone, create_model

WIDTHS = (0.35, 0.5, 0.75, 1.25)

# parameters with 1000 classes, MMACs at 224 x 224: counted in the projects themselves
COUNTS = [
    ("large", {}, 5_483_032, 216.59),
    ("large", {"width": 0.75}, 3_993_528, 154.56),
    ("small", {}, 2_542_856, 56.51),
    ("small", {"width": 0.75}, 2_041_872, 43.40),
    ("small", {"width": 0.5}, 1_593_224, 24.19),
    ("large", {"minimal": True}, 3_924_288, 209.14),
    ("small", {"minimal": True}, 2_044_736, 52.29),
    ("large", {"width": 1.5, "deep": True}, 14_622_320, 775.20),
    ("large", {"family": "rw"}, 5_479_918, 216.59),
    ("small", {"family": "showlo"}, 2_533_344, 56.505),
    ("large", {"family": "showlo"}, 5_474_848, 216.59),
    ("small", {"family": "sqlai"}, 2_950_524, 61.839),
    ("large", {"family": "sqlai"}, 5_178_732, 220.655),
    ("large", {"family": "d-li14"}, 5_483_032, 216.59),
    ("large", {"family": "d-li14", "width": 0.75}, 3_993_528, 154.56),
    ("small", {"family": "d-li14"}, 2_542_856, 56.51),
    ("small", {"family": "d-li14", "width": 0.75}, 2_041_872, 43.40),
]
for size, sizes, costs in (
    ("large", (997_064, 1_734_576, 3_377_576, 8_164_744), (35.28, 64.96, 140.03, 343.46)),
    ("small", (558_744, 917_264, 1_653_920, 3_644_912), (11.24, 18.97, 39.12, 88.16)),
):
    COUNTS += [
        (size, {"family": "torchvision", "width": w}, *row) for w, *row in zip(WIDTHS, sizes, costs, strict=True)
    ]


@pytest.mark.parametrize(("size", "settings", "count", "mmacs"), COUNTS)
def test_classifiers_have_the_counts_of_their_originals(size, settings, count, mmacs):
    with torch.device("meta"):
        model = create_backbone(size, num_classes=1000, **settings)
    assert parameters(model) == count
    assert 1e3 * gmacs(model, (224, 224)) == pytest.approx(mmacs, abs=0.005)


@pytest.mark.parametrize(
    ("size", "width", "millions"),
    [
        *zip(["small"] * 5, (0.35, 0.5, 0.75, 1.0, 1.25), (1.67, 1.91, 2.38, 2.95, 3.64), strict=True),
        *zip(["large"] * 5, (0.35, 0.5, 0.75, 1.0, 1.25), (2.11, 2.69, 3.93, 5.50, 7.47), strict=True),
    ],
)
def test_paddleclas_counts_its_bn_statistics_too(size, width, millions):
    with torch.device("meta"):
        model = create_backbone(size, num_classes=1000, width=width, family="paddle")
    stored = sum(t.numel() for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked"))
    assert round(stored / 1e6, 2) == millions


def test_mmsegmentations_nets():
    with torch.device("meta"):
        large, small = create_model("lraspp_large_d8_mmseg"), create_model("lraspp_small_d8_mmseg")
    assert (parameters(large), parameters(small)) == (3_284_547, 1_140_787)
    assert gmacs(large, (1024, 2048)) == pytest.approx(69.0, abs=0.05)
    assert gmacs(small, (1024, 2048)) == pytest.approx(33.8, abs=0.05)


PAPER = [2.11, 1.15, 1.02, 0.98, 3.60, 1.76, 1.63, 1.51, 0.28, 0.16, 0.47]
PAPER_GMACS = [21.29, 13.68, 12.83, 12.57, 18.43, 11.24, 10.33, 9.74, 4.00, 2.54, 2.90]
TOO_LARGE = {10}  # 0.167 M against 0.16 M: no way of rounding its channels came nearer with the other rows intact
TOO_CHEAP = {10, 11}  # 6.1 and 6.2 % under the paper, see docs/models.md


@pytest.mark.parametrize("row", range(1, 12))
def test_rows_of_the_papers_table(row):
    """Table 7 of arXiv 1905.02244; multiply-adds at 1025 x 2049."""
    settings = list(PAPER_NETS.values())[row - 1]
    with torch.device("meta"):
        model = create_model(settings)
    assert parameters(model) / 1e6 == pytest.approx(PAPER[row - 1], rel=0.05 if row in TOO_LARGE else 0.01)
    assert gmacs(model, (1025, 2049)) == pytest.approx(PAPER_GMACS[row - 1], rel=0.065 if row in TOO_CHEAP else 0.05)


def test_each_row_of_the_paper_has_a_config(pytestconfig):
    files = sorted((pytestconfig.rootpath / "configs" / "paper").glob("*.py"))
    assert [load_config(file).model for file in files] == list(PAPER_NETS.values())


@pytest.mark.parametrize("size", ["large", "small"])
def test_mmsegmentations_recipes_differ_in_their_start_only(size, pytestconfig):
    folder = pytestconfig.rootpath / "configs"
    started, scratch = (load_config(folder / f"lraspp_{size}_d8_mmseg{end}.py") for end in ("", "_scratch"))
    assert started.model.pretrained == f"torchvision/mobilenet_v3_{size}" and scratch.model.pretrained is None
    assert scratch.model == NETS[f"lraspp_{size}_d8_mmseg"] and started.schedule == scratch.schedule
    assert scratch.schedule.steps == 320_000 and scratch.data.batch_size == 16


@pytest.mark.slow
def test_the_family_is_counted_without_storage():
    rows = {row.name: row for row in count_family()}
    assert len(rows) >= 45
    assert rows["lraspp_large_d8"].parameters == 1_507_198
    assert rows["large x1"].mmacs == pytest.approx(216.59, abs=0.005)
    assert "74.28" in rows["large x1"].published


def test_a_setting_that_does_not_exist_is_one_line():
    with pytest.raises(ModelError, match="unexpected keyword argument 'widht'"):
        create_backbone("large", widht=0.5)
    with pytest.raises(ModelError, match="width must be 1: the family sqlai has no other"):
        create_backbone("large", family="sqlai", width=0.75)
    with pytest.raises(ModelError, match="family is 'keras'; it can be 'timm', 'd-li14'"):
        create_backbone("large", family="keras")
    with pytest.raises(ModelError, match="width must lie between 0.1 and 4"):
        create_backbone("large", width=0)


@pytest.mark.parametrize("name", list(PAPER_NETS))
def test_every_row_trains(name):
    model = create_model(name, 4).train()
    model(torch.rand(2, 3, 64, 64) * 255).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.slow
def test_the_family_is_written_as_csv(capsys):
    assert main(["models", "--all", "--csv"]) == 0
    rows = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    sqlai = next(row for row in rows if row["net"] == "small sqlai")
    assert (sqlai["parameters"], sqlai["mmacs_224"], sqlai["published"]) == (
        "2950524",
        "61.839",
        "69.05 / 88.27 (xiaolai-sqlai)",
    )
    assert main(["models", "--csv"]) == 2
