"""What every data source keeps to, ours and one's own, and what is said of one that does not."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import check
from PIL import Image

from segmv3.config import Config, Data, DataSource, Layout, Schedule, load_config, mistyped, to_dict
from segmv3.data.check import contents
from segmv3.data.datasets import find_split, open_dataset, open_extra
from segmv3.data.loader import train_batches
from segmv3.data.sources import SOURCES, Source, data_in, name_of, source_of
from segmv3.doctor import examine
from segmv3.errors import ConfigError, DataError
from segmv3.evaluation.counting import open_labelled
from segmv3.labels import IGNORE, Classes, LabelTable, named_classes
from segmv3.models.zoo import NETS

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))
from own_data import SideBySide, draw  # noqa: E402

EVERY = [*SOURCES, "own"]


@pytest.fixture
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Data:
    """A small data set of each source."""
    more: dict[str, Any] = {"batch_size": 2, "crop_size": (32, 48), "workers": 0}
    if request.param == "own":
        return Data(dataset=SideBySide(), root=draw(tmp_path / "own"), **more)
    fixture = "cityscapes" if request.param == "cityscapes" else "folder"
    return Data(dataset=request.param, root=request.getfixturevalue(fixture), **more)


def every(function: Any) -> Any:
    return pytest.mark.parametrize("data", EVERY, indirect=True)(function)


@every
def test_a_source_says_what_it_is(data: Data) -> None:
    source, root = source_of(data), data.root
    assert isinstance(source, Source) and isinstance(source, DataSource)
    assert isinstance(source.classes(root), Classes) and isinstance(source.table(root), LabelTable)
    assert source.splits(root) == ("train", "val")
    assert source.title(root) and name_of(data)
    assert source == pickle.loads(pickle.dumps(source)) and hash(source) is not None
    for split in source.splits(root):
        for image, label in source.pairs(root, split):
            assert image.is_file() and label is not None and label.is_file()


@every
def test_opening_checking_scoring_and_the_doctor_see_the_same_files(data: Data) -> None:
    source, root = source_of(data), data.root
    for split in source.splits(root):
        files = [tuple(map(Path, pair)) for pair in source.pairs(root, split)]
        dataset = open_dataset(data, split)
        assert [(pair.image, pair.label) for pair in dataset.pairs] == files
        assert open_labelled(data, split) == dataset
        assert find_split(data, split).pairs == dataset.pairs
        check(dataset)
        assert len({pair.name for pair in dataset.pairs}) == len(dataset)
    result = examine(data, source.splits(root)).result
    assert result["usable"] and result["dataset"] == source.title(root) and result["layout"] == name_of(data)
    assert result["splits"]["train"]["usable_pairs"] == len(open_dataset(data, "train"))


@every
def test_labels_become_train_ids(data: Data) -> None:
    dataset = open_dataset(data, "train")
    for index in range(len(dataset)):
        image, labels = dataset.read(index)
        assert image.shape == (*labels.shape, 3) and image.dtype == labels.dtype == np.uint8
        assert set(np.unique(labels)) <= {*range(len(dataset.classes)), IGNORE}
    assert contents(dataset)["ids"]


@pytest.mark.slow
@pytest.mark.parametrize("data", ["folder", "own"], indirect=True)
def test_batches_are_the_same_in_workers_that_import_the_source(data: Data) -> None:
    dataset = open_dataset(data, "train")
    alone = next(iter(train_batches(dataset, data, seed=0, start=0, stop=1)))
    spawned = train_batches(dataset, replace(data, workers=1), seed=0, start=0, stop=1, start_method="spawn")
    for one, other in zip(alone[:2], next(iter(spawned))[:2], strict=True):
        assert (one == other).all()


@every
def test_settings_are_recorded_and_checked(data: Data) -> None:
    config = Config(model=NETS["lraspp_small_d8"], data=data, schedule=Schedule(steps=1))
    assert mistyped(config) == []
    recorded = json.loads(json.dumps(to_dict(config)))["data"]["dataset"]
    own = {"kind": "SideBySide", "ending": "_mask.png"}
    assert recorded == (data.dataset if isinstance(data.dataset, str) else own)


@every
def test_predicted_labels_of_more_images_are_found(data: Data, tmp_path: Path) -> None:
    dataset = open_dataset(data, "train")
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    for pair in dataset.pairs[:2]:
        shutil.copy(pair.image, tmp_path / "images")
        predicted = np.zeros(dataset.read(0)[1].shape, np.uint8)
        Image.fromarray(predicted).save(tmp_path / "labels" / f"{pair.image.stem}_labels.png")
    more = replace(data, extra_images=tmp_path / "images", extra_labels=tmp_path / "labels")
    extra = open_extra(more, dataset)
    assert extra and len(extra) == 2 and extra.skipped == 0 and not extra.read(1)[1].any()


@every
def test_two_files_of_one_name_are_one_line(data: Data) -> None:
    pair = open_dataset(data, "train").pairs[0]
    twin = pair.image.with_suffix(".bmp" if pair.image.suffix == ".jpg" else ".jpg")
    shutil.copy(pair.image, twin)
    if isinstance(data.dataset, SideBySide):
        data = replace(data, dataset=Both())
    with pytest.raises(DataError, match=f"share the name .*{pair.name}; keep one of them") as caught:
        open_dataset(data, "train")
    assert "\n" not in str(caught.value)
    assert {finding["kind"] for finding in examine(data, ["train"]).result["findings"]} >= {"same name"}


class Both(SideBySide):
    """Takes what lies there twice."""

    def pairs(self, root: Path, split: str) -> list[tuple[Path, Path]]:
        images = sorted((root / split).glob("?.*"))
        return [(image, image.with_name(image.stem + self.ending)) for image in images]


@every
def test_what_is_missing_is_one_line(data: Data) -> None:
    with pytest.raises(DataError, match=r"found 0 images under .*\(split 'tarin'\)"):
        open_dataset(data, "tarin")
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(replace(data, root=data.root / "missing"), "train")
    pair = open_dataset(data, "train").pairs[0]
    pair.label.unlink()
    with pytest.raises(DataError, match="1 image has no label|cannot be read"):
        check(open_dataset(data, "train"))


def test_folders_are_taken_for_what_they_look_like(folder: Path, cityscapes: Path) -> None:
    looks: dict[Path, Layout] = {folder: "folder", cityscapes: "cityscapes"}
    for root, layout in looks.items():
        assert data_in(root).dataset == layout
    assert data_in(folder, "camvid").dataset == "camvid"


# --- sources that cannot be used ---


@dataclass(frozen=True)
class NoPairs(Source):
    def classes(self, root: Path) -> Classes:
        return named_classes("road", "sky")


class Duck:
    def classes(self, root: Path) -> Classes:
        return named_classes("road", "sky")

    def pairs(self, root: Path, split: str) -> list[tuple[Path, Path]]:
        return []


class Fails(NoPairs):
    def pairs(self, root: Path, split: str) -> list[tuple[Path, Path | None]]:
        return [(root / "a.png", root / "b.png" / 3)]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (NoPairs(), r"NoPairs \(.*test_data_sources.py, line \d+\) has no method pairs\(root, split\)"),
        (Duck(), r"Duck \(.*\) must derive from segmv3.data.sources.Source"),
        (SideBySide, r"SideBySide \(.*own_data.py, line \d+\) is a class; give an object of it, SideBySide\(\)"),
        (3, r"int has no method classes\(root\)"),
    ],
)
def test_what_is_no_source_is_refused_with_its_place(source: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"config: data.dataset: {says}") as caught:
        Data(dataset=source, root=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data.dataset: 'citiscapes' is none of cityscapes, camvid, folder"):
        Data(dataset="citiscapes", root=tmp_path)  # type: ignore[arg-type]


def test_a_source_that_fails_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the data source Fails fails with TypeError: .* \(.*_sources.py, line \d+\)"):
        open_dataset(Data(dataset=Fails(), root=tmp_path), "train")


def test_a_source_that_cannot_be_imported_is_named_with_file_and_line(tmp_path: Path) -> None:
    config = tmp_path / "streets.py"
    config.write_text("from pathlib import Path\n\nfrom no_such_streets import Mine\n")
    with pytest.raises(ConfigError, match=r"No module named 'no_such_streets' \(.*streets.py, line 3\)"):
        load_config(config)
    (tmp_path / "half_streets.py").write_text("import numpy\n\nraise OSError('no disk')\n")
    config.write_text("from half_streets import Mine\n")
    with pytest.raises(ConfigError, match=r"OSError: no disk \(.*half_streets.py, line 3\)"):
        load_config(config)


def test_flags_change_everything_but_a_source_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(EXAMPLES / "own_data_config.py", ["--schedule.steps", "3", "--data.flip", "0"])
    assert config.schedule.steps == 3 and config.data.dataset == SideBySide()
    named = load_config(EXAMPLES / "own_data_config.py", ["--data.dataset", "camvid"])
    assert named.data.dataset == "camvid"


@pytest.mark.slow
def test_the_example_trains(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "segmv3",
        "train",
        EXAMPLES / "own_data_config.py",
        "--run",
        "run",
        "--threads",
        "1",
    ]
    done = subprocess.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mIoU on val at step 4" in done.stdout and (tmp_path / "run/best.safetensors").is_file()
