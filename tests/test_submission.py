"""The submission kit: what it writes, that it goes on after a stop, and what the server would refuse."""

import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import segmv3
from segmv3.cli import main
from segmv3.config import Data
from segmv3.errors import DataError, OutputError, Segmv3Warning
from segmv3.images import read_ids, write_png
from segmv3.models.zoo import create_model
from segmv3.submission import (
    Target,
    check_submission,
    dry_run,
    open_target,
    open_truth,
    write_predictions,
    write_zip,
)

SMALL = "ignore:.*are not 1024x2048:segmv3.errors.Segmv3Warning"
pytestmark = pytest.mark.filterwarnings(SMALL)
LABEL_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
SETTINGS = {"weights_sha256": "a" * 64, "scales": [1.0], "flip": False, "precision": "fp32"}


def stripes(image: np.ndarray) -> np.ndarray:
    """A prediction that tells images apart and has every class."""
    height, width = image.shape[:2]
    return ((np.arange(height)[:, None] + np.arange(width) + int(image[0, 0, 0])) % 19).astype(np.uint8)


@pytest.fixture
def city(tmp_path) -> Path:
    """Four test images of mini-city without any label, in two cities."""
    root = tmp_path / "city"
    for i, name in enumerate(("berlin", "berlin", "bonn", "bonn")):
        folder = root / "leftImg8bit" / "test" / name
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / f"{name}_{i:06d}_000019_leftImg8bit.png", np.full((12, 20, 3), 3 * i, np.uint8))
    (root / "mini-city.json").write_text("{}")
    return root


@pytest.fixture
def written(city, tmp_path) -> Path:
    """Their predictions."""
    folder, _ = write_predictions(target_of(city, "test"), stripes, tmp_path / "out", settings=SETTINGS)
    return folder


def packed(folder: Path, path: Path) -> Path:
    write_zip(folder, path)
    return path


def target_of(root: Path, split: str) -> Target:
    return open_target(Data(dataset="cityscapes", root=root), split)


def test_predictions_are_label_ids_in_the_name_and_size_of_the_image(city, written, tmp_path):
    path = written / "bonn" / "bonn_000002_000019_pred_labelIds.png"
    expected = np.array(LABEL_IDS)[stripes(np.full((12, 20, 3), 6, np.uint8))]
    assert np.array_equal(read_ids(path), expected)
    assert Image.open(path).mode == "L"
    target = target_of(city, "test")
    for source in (written, packed(written, tmp_path / "test.zip")):
        check = check_submission(source, target)
        assert (check.files, check.ids) == (4, LABEL_IDS)


def test_the_same_predictions_make_the_same_zip(city, written, tmp_path):
    other, _ = write_predictions(target_of(city, "test"), stripes, tmp_path / "other", settings=SETTINGS)
    for path in other.rglob("*.png"):
        path.touch()
    assert write_zip(written, tmp_path / "a.zip") == write_zip(other, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        infos = archive.infolist()
    assert [i.filename for i in infos] == sorted(i.filename for i in infos) and len(infos) == 4
    assert infos[0].filename == "berlin/berlin_000000_000019_pred_labelIds.png"
    assert {(i.compress_type, i.date_time[0]) for i in infos} == {(zipfile.ZIP_STORED, 1980)}
    write_zip(written, tmp_path / "a.zip")  # the same again is no loss
    (tmp_path / "b.zip").write_bytes(b"mine")
    with pytest.raises(OutputError, match="another one"):
        write_zip(written, tmp_path / "b.zip")


def test_a_run_goes_on_where_it_stopped(city, tmp_path):
    target, output, seen = target_of(city, "test"), tmp_path / "out", []

    def counting(image):
        seen.append(int(image[0, 0, 0]) // 3)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return stripes(image)

    with pytest.raises(KeyboardInterrupt):
        write_predictions(target, counting, output, settings=SETTINGS)
    assert len(list(output.rglob("*.png"))) == 2
    record = output / "submission.jsonl"
    record.write_text(record.read_text()[:-30])  # the power went while the second was recorded
    done = []
    folder, kept = write_predictions(
        target, counting, output, settings=SETTINGS, progress=lambda done_, total: done.append((done_, total))
    )
    assert kept == 1 and seen[3:] == [1, 2, 3] and done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert len(record.read_text().splitlines()) == 5

    damaged = folder / "berlin" / "berlin_000001_000019_pred_labelIds.png"
    write_png(damaged, np.full((12, 20), 7, np.uint8))  # a good PNG, but not what was written
    assert write_predictions(target, counting, output, settings=SETTINGS)[1] == 3
    assert seen[6:] == [1] and len(np.unique(read_ids(damaged))) == 19


def test_predictions_of_other_settings_are_never_mixed(city, written):
    target, other = target_of(city, "test"), {**SETTINGS, "flip": True}
    with pytest.raises(OutputError, match=r"made with flip False \(now True\)"):
        write_predictions(target, stripes, written.parent, settings=other)
    _, kept = write_predictions(target, stripes, written.parent, settings=other, overwrite=True)
    assert kept == 0
    (written.parent / "submission.jsonl").unlink()
    with pytest.raises(OutputError, match="files of another origin"):
        write_predictions(target, stripes, written.parent, settings=other)
    write_png(written / "bonn_color.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(OutputError, match=r"bonn_color\.png"):
        write_predictions(target, stripes, written.parent, settings=other, overwrite=True)


def _train_ids(folder):
    path = folder / "bonn" / "bonn_000002_000019_pred_labelIds.png"
    write_png(path, (np.arange(240, dtype=np.uint8) % 11).reshape(12, 20))


def _color(folder):
    write_png(folder / "bonn" / "bonn_000002_000019_pred_labelIds.png", np.zeros((12, 20, 3), np.uint8))


def _resized(folder):
    write_png(folder / "bonn" / "bonn_000002_000019_pred_labelIds.png", np.full((6, 10), 7, np.uint8))


def _void(folder):
    write_png(
        folder / "bonn" / "bonn_000002_000019_pred_labelIds.png", np.array([[7, 255]] * 120, np.uint8).reshape(12, 20)
    )


def _too_large(folder):
    write_png(
        folder / "bonn" / "bonn_000002_000019_pred_labelIds.png", np.array([[7, 34]] * 120, np.uint8).reshape(12, 20)
    )


def _missing(folder):
    (folder / "bonn" / "bonn_000002_000019_pred_labelIds.png").unlink()


def _doubled(folder):
    write_png(folder / "bonn_000002_000019_color.png", np.zeros((12, 20, 3), np.uint8))


def _cut(folder):
    path = folder / "bonn" / "bonn_000002_000019_pred_labelIds.png"
    path.write_bytes(path.read_bytes()[:-20])


def _renamed(folder):
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        path.rename(folder / f"{number}.png")


@pytest.mark.parametrize("as_zip", [False, True])
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (
            _train_ids,
            r"bonn_000002_000019.* has ids \{0, 1, 2, .*\}: these look like train ids; the server wants label ids",
        ),
        (_color, "is a colour image; labels must be 8-bit single-channel"),
        (_resized, "is 6x10, its image is 12x20"),
        (_void, r"has ids \{255\}; label ids are 0-33 \(255 is ignore among train ids"),
        (_too_large, r"has ids \{34\}; label ids are 0-33$"),
        (_missing, r"lacks 1 of 4 predictions of 'test' \(first: bonn_000002_000019\)"),
        (_doubled, r"several files for 1 of 4 images \(first: bonn/bonn_000002_.* and bonn_000002_000019_color.png\)"),
        (_cut, "is damaged"),
        (_renamed, r"no prediction for any image of 'test'; they are named like berlin_000000_000019\*\.png"),
    ],
)
def test_what_the_server_would_refuse_is_refused(spoil, says, as_zip, city, written, tmp_path):
    spoil(written)
    source = packed(written, tmp_path / "bad.zip") if as_zip else written
    with pytest.raises(DataError, match=says) as error:
        check_submission(source, target_of(city, "test"))
    assert "\n" not in str(error.value)


def test_files_that_are_no_zip_are_refused(city, written, tmp_path):
    target, path = target_of(city, "test"), tmp_path / "test.zip"
    with pytest.raises(DataError, match="does not exist"):
        check_submission(path, target)
    path.write_bytes(b"PK no zip")
    with pytest.raises(DataError, match="not a zip that can be opened"):
        check_submission(path, target)
    path.unlink()
    data = bytearray(packed(written, path).read_bytes())
    data[data.index(b"IDAT") + 8] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be unpacked"):
        check_submission(path, target)
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"")
        archive.writestr("a.png", b"")
    with pytest.raises(DataError, match=r"has a\.png twice"):
        check_submission(path, target)


def test_other_layouts_pass_and_odd_files_are_told(city, written, tmp_path):
    target, flat = target_of(city, "test"), tmp_path / "flat"
    flat.mkdir()
    for path in written.rglob("*.png"):
        palette = Image.open(path).convert("P")
        palette.putdata(read_ids(path).ravel().tolist())
        palette.save(flat / f"{path.name[:20].rstrip('_p')}.png")
    (flat / "__MACOSX").mkdir()
    (flat / "__MACOSX" / "._bonn_000002_000019.png").write_bytes(b"finder")
    (flat / "readme.txt").write_text("ours")
    assert check_submission(flat, target).ids == LABEL_IDS
    write_png(flat / "ulm_000000_000019.png", np.zeros((2, 2), np.uint8))
    with pytest.warns(Segmv3Warning, match=r"1 PNGs that belong to no image of 'test' \(first: ulm"):
        check_submission(flat, target)
    (flat / "ulm_000000_000019.png").unlink()
    some = read_ids(next(flat.glob("bonn_000002*")))
    some[0] = 0
    write_png(next(flat.glob("bonn_000002*")), some)
    with pytest.warns(Segmv3Warning, match=r"ids that are never right \(0\)"):
        check_submission(flat, target)


def test_the_test_split_is_complete_or_refused(city, tmp_path):
    with pytest.warns(Segmv3Warning, match=r"4 of 4 images are not 1024x2048 \(first: berlin_000000_000019, 12x20\)"):
        assert list(target_of(city, "test").images)[-1] == "bonn_000003_000019"
    (city / "mini-city.json").unlink()
    with pytest.raises(DataError, match=r"has 4 of the 1,525 test images; the server takes all or nothing"):
        target_of(city, "test")
    with pytest.raises(DataError, match="found 0 images under"):
        target_of(city, "val")
    with pytest.raises(DataError, match="data root .* does not exist"):
        target_of(tmp_path / "nowhere", "test")
    with pytest.raises(DataError, match="is no split"):
        target_of(city, "../test")


@pytest.fixture
def labelled(city) -> Path:
    """The same images as val, with labels by the stripes but for a row of void and a row that is wrong."""
    shutil.move(city / "leftImg8bit" / "test", city / "leftImg8bit" / "val")
    for image in sorted((city / "leftImg8bit" / "val").rglob("*.png")):
        truth = np.array(LABEL_IDS)[stripes(np.array(Image.open(image)))].astype(np.uint8)
        truth[0], truth[1] = 0, 7
        folder = city / "gtFine" / "val" / image.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        write_png(folder / image.name.replace("leftImg8bit", "gtFine_labelIds"), truth)
    return city


def test_the_official_script_agrees(labelled, tmp_path):
    target = target_of(labelled, "val")
    folder, _ = write_predictions(target, stripes, tmp_path / "out", settings=SETTINGS)
    dataset = open_truth(Data(dataset="cityscapes", root=labelled), "val")
    result = dry_run(folder, dataset)
    assert result.official == pytest.approx(result.ours, abs=1e-9) and 50 < result.ours < 100
    assert len(result.classes) == 19
    assert all(official == pytest.approx(ours, abs=1e-9) for _, official, ours in result.classes)


def test_a_dry_run_needs_label_ids(cityscapes):
    with pytest.raises(DataError, match=r"needs \*_gtFine_labelIds\.png"):
        open_truth(Data(dataset="cityscapes", root=cityscapes), "val")


# --- the command ---


@pytest.fixture
def config_file(city, tmp_path) -> Path:
    file = tmp_path / "tiny.py"
    file.write_text(
        "from pathlib import Path\nfrom segmv3.config import *\nfrom segmv3.models.zoo import NETS\n"
        "config = Config(model=NETS['lraspp_small_d8'], "
        f"data=Data(dataset='cityscapes', root=Path({str(city)!r})), schedule=Schedule(steps=2))\n"
    )
    return file


@pytest.fixture
def weights(tmp_path) -> Path:
    path = tmp_path / "w.safetensors"
    segmv3.save(create_model("lraspp_small_d8", 19), path)
    return path


def test_submit_writes_zips_and_checks(config_file, weights, labelled, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["submit", str(config_file), "--weights", str(weights), "--output", str(out), "--dry-run"]
    assert main(command) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "predicted with single scale, fp32, on " in printed
    predict = segmv3.load(weights, backend="torch")
    assert f"weights {weights}, SHA-256 {predict.card.sha256}" in printed
    assert "official script: " in printed and "on 4 images of mini-city val" in printed
    image = segmv3.read_image(next((labelled / "leftImg8bit").rglob("bonn_000003*")))
    stored = read_ids(out / "predictions" / "bonn" / "bonn_000003_000019_pred_labelIds.png")
    assert np.array_equal(stored, np.array(LABEL_IDS)[predict(image)])
    assert main(command) == 0
    assert "4 of an earlier run verified and kept" in capsys.readouterr().out
    assert main([*command, "--multi-scale-flip"]) == 2
    assert "made with flip False (now True), scales [1.0] (now [0.5, " in capsys.readouterr().err
    assert main([*command, "--multi-scale-flip", "--overwrite"]) == 0
    assert "scales 0.5, 0.75, 1, 1.25, 1.5, 1.75 + flip" in capsys.readouterr().out
    assert main(["submit", str(config_file), "--split", "val", "--check", str(out / "val.zip")]) == 0
    assert "4 predictions of mini-city val" in capsys.readouterr().out
    header = json.loads((out / "submission.jsonl").read_text().splitlines()[0])
    assert header["flip"] is True and header["split"] == "val"


def test_the_command_explains_itself(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["submit", "--help"])
    assert stop.value.code == 0 and "usage: segmv3 submit" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "config: segmv3 submit needs --weights FILE and --output DIR, or --check ZIP"),
        (["--check", "x.zip", "--output", "y"], "config: --check only reads what was written; leave --output out"),
        (["--check", "x.zip"], "data: x.zip does not exist"),
        (["--weights", "w", "--output", "o", "--dry-run", "--split", "test"], "config: --dry-run needs ground truth"),
        (["--weights", "w", "--output", "o", "--data.dataset", "camvid"], "config: segmv3 submit needs the Cityscapes"),
        (["--weights", "w.safetensors", "--output", "o"], "checkpoint: w.safetensors"),
    ],
)
def test_mistakes_are_one_line(flags, says, config_file, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("segmv3.submission.warnings.warn", lambda *_, **__: None)
    assert main(["submit", str(config_file), *flags]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and printed.startswith(says)
    assert not (tmp_path / "o").exists()
