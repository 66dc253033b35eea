"""Comparing runs: the page, its figures and tables, and runs that cannot be compared."""

import csv
import json
import shutil
from dataclasses import replace

import pytest

import segmv3
from segmv3.cli import main
from segmv3.config import LRASPP, BoxData, Detection, Detector, Loss, to_dict
from segmv3.errors import ConfigError, DataError, Interrupted
from segmv3.report.comparison import Rows, write_tables
from segmv3.training.loop import train

NONE = "\u2013"


def short(config, **more):
    return replace(config, schedule=replace(config.schedule, steps=2, eval_every=1, save_every=1, log_every=1), **more)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two finished runs and an interrupted one on one small data set, made once for all tests of this file."""
    return {"folder": tmp_path_factory.mktemp("runs")}


@pytest.fixture
def runs(made, config):
    folder = made["folder"]
    if "root" not in made:
        made["root"] = shutil.copytree(config.data.root, folder / "data")
        mine = replace(config, data=replace(config.data, root=made["root"]))
        train(short(mine), folder / "first", device="cpu", threads=1)
        train(short(mine, seed=1, loss=Loss(label_smoothing=0.1)), folder / "second", device="cpu", threads=1)

        def stop(step, score):
            raise Interrupted("a test", 15)

        with pytest.raises(Interrupted):
            train(short(mine, seed=2), folder / "third", device="cpu", threads=1, on_evaluation=stop)
    return [folder / name for name in ("first", "second", "third")]


def rows(path):
    return list(csv.reader(path.read_text().splitlines()))


def test_runs_become_a_page_with_figures_and_tables(runs, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["compare", *map(str, runs), "--output", str(out), "--dpi", "60", "--images", "1", "--threads", "1"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert f"C: {runs[2]}\n" in printed and f"wrote {out / 'comparison.html'}" in printed
    names = ("curves_step", "curves_images", "curves_minutes", "classes", "images")
    files = {f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf")}
    assert {file.name for file in (out / "figures").iterdir()} == files
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs]
    header, *body = rows(out / "tables" / "classes.csv")
    assert header == ["class", "A first", "B second", "C third"]
    assert body[-1] == ["mean", *(f"{each['miou']:.2f}" for each in metrics)]
    assert [row[0] for row in body[:-1]] == ["road", "house", "tree", "sky"]
    table = rows(out / "tables" / "runs.csv")
    assert table[1][3] == "2" and table[3][3] == "1 of 2, interrupted" and table[1][6] == "4"
    settings = {row[0]: row[1:] for row in rows(out / "tables" / "settings.csv")}
    assert settings["seed"] == ["0", "1", "2"] and settings["loss.label_smoothing"] == ["0", "0.1", "0"]
    assert set(settings) == {"setting", "seed", "loss.label_smoothing"}  # nothing that is equal
    page = (out / "comparison.html").read_text()
    assert "B second: errors" in page and page.count("data:image") > 8 and "http" not in page.replace("http-equiv", "")
    assert main(command) == 2 and "exists; choose another --output or add --overwrite" in capsys.readouterr().err


def test_differences_are_those_of_the_result_files(runs, tmp_path):
    found = segmv3.compare(runs[:2], tmp_path / "out", dpi=50, images=0, threads=1)
    mean = found.tables["differences"].rows[-1]
    metrics = [json.loads((run / "metrics.json").read_text()) for run in runs[:2]]
    assert mean[2][0].startswith(f"{metrics[1]['miou'] - metrics[0]['miou']:+.1f} [") and mean[1][0] == "3"
    for row, ours, theirs in zip(found.tables["classes"].rows, *(each["classes"] for each in metrics), strict=False):
        best = max(ours["iou"], theirs["iou"])
        assert row == [(ours["name"], False), *((f"{each['iou']:.2f}", each["iou"] == best) for each in (ours, theirs))]


@pytest.mark.slow
def test_runs_of_an_earlier_version_and_without_their_data_still_compare(runs, tmp_path):
    old = shutil.copytree(runs[0], tmp_path / "old")
    (old / "manifest.json").unlink()
    config = json.loads((old / "config.json").read_text())
    config["data"]["root"] = "gone"
    (old / "config.json").write_text(json.dumps(config))
    found = segmv3.compare([old, runs[1]], tmp_path / "out", dpi=50)
    assert "differences" not in found.tables and "--data-root names its folder" in found.notes[0]
    assert found.tables["runs"].rows[0][4][0] == NONE  # parameters were not recorded
    settings = {row[0][0]: [text for text, _ in row[1:]] for row in found.tables["settings"].rows}
    assert settings["machine.device"] == ["not recorded", "CPU, 1 thread"] and "model.pretrained" not in settings
    again = segmv3.compare([old, runs[1]], tmp_path / "out", dpi=50, images=0, data_root=runs[0].parent / "data")
    assert "differences" in again.tables and not again.notes


@pytest.mark.slow
def test_a_run_without_scores_shows_its_curve(runs, tmp_path):
    young = tmp_path / "young"
    young.mkdir()
    shutil.copy(runs[0] / "config.json", young)
    (young / "log.jsonl").write_text((runs[0] / "log.jsonl").read_text().splitlines()[0] + "\n")
    found = segmv3.compare([runs[1], young], tmp_path / "out", dpi=50)
    assert found.tables["runs"].rows[1][3][0] == "1 of 2, not finished" and "not every run has scores" in found.notes[0]
    assert [cell[0] for cell in found.tables["classes"].rows[0]][2] == NONE


def changed(run, folder, change):
    copy = shutil.copytree(run, folder)
    for name in ("config.json", "metrics.json"):
        content = json.loads((copy / name).read_text())
        change(name, content)
        (copy / name).write_text(json.dumps(content))
    return copy


def test_runs_on_other_classes_or_images_are_refused_before_anything_is_written(runs, tmp_path):
    def rename(name, content):
        for row in content["classes"] if name == "metrics.json" else ():
            row["name"] += "s"

    def others(name, content):
        if name == "config.json":
            content["contents"]["val"]["labels"] = "0" * 64

    for change, said in (
        (rename, "cannot be compared: they share no class"),
        (others, "scored on other images or labels"),
    ):
        other = changed(runs[0], tmp_path / change.__name__, change)
        with pytest.raises(DataError, match=said):
            segmv3.compare([runs[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_of_runs_with_other_classes_the_common_ones_are_compared(runs, tmp_path):
    def swap(name, content):
        if name == "metrics.json":
            content["classes"][1]["name"], content["miou"] = "<b>barn", 99.0
            content["classes"].reverse()
        else:
            content["contents"]["val"]["ids"] = {"0": "road"}

    other = changed(runs[1], tmp_path / "other", swap)
    found = segmv3.compare([runs[0], other], tmp_path / "out", dpi=50)
    metrics = [json.loads((run / "metrics.json").read_text())["classes"] for run in (runs[0], runs[1])]
    scores = [[row["iou"] for row in side if row["name"] != "house"] for side in metrics]
    names, *sides = zip(*[[text for text, _ in row] for row in found.tables["classes"].rows], strict=True)
    assert names == ("road", "tree", "sky", "mean")
    for side, theirs in zip(sides, scores, strict=True):
        assert side == tuple(f"{score:.2f}" for score in (*theirs, sum(theirs) / 3))
    assert (
        "differences" not in found.tables
        and "the 3 common ones are compared, house, <b>barn left out" in (found.notes[0])
    )
    assert found.notes[1] == "no pictures and no intervals: the runs have other classes"


@pytest.mark.slow
def test_a_copy_of_a_run_is_told(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "copy")
    found = segmv3.compare([runs[0], runs[1], tmp_path / "copy"], tmp_path / "out", dpi=50, images=0, score=0)
    assert found.notes == ["C copy is a copy of A first: both have the same log, so nothing differs"]


@pytest.mark.slow
@pytest.mark.parametrize("width", [60, 80, None])
def test_no_name_is_broken_on_a_narrow_terminal(width, runs, tmp_path, capsys, monkeypatch):
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    out = ["--output", str(tmp_path / "out"), "--dpi", "50", "--score", "0", "--images", "0"]
    assert main(["compare", *map(str, runs), *out]) == 0
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line[:1] in "│┃"]
    assert max(map(len, rows)) <= (width or 100)
    for words in ("parameters", "GMACs", "1 of 2,", "interrupted", "loss.label_smoothing", "house"):
        assert any(words in line for line in rows), words


def written(folder, config, **scores):
    """A run of a detector after two steps, without its weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    facts = {"dataset": "data", "split": "val", "images": 3, "step": 2, "classes": [{"name": "car", "map": 12.0}]}
    (folder / "metrics.json").write_text(json.dumps(facts | scores))
    (folder / "log.jsonl").write_text(json.dumps({"event": "eval", "step": 2, **scores}) + "\n")
    return folder


def test_runs_of_detectors_are_compared_by_their_own_score(runs, config, tmp_path):
    settings = {"data": BoxData(root=tmp_path), "schedule": config.schedule}
    boxes = Detection(model=Detector(), **settings)
    areas = replace(boxes, model=Detector(areas=LRASPP()), data=BoxData(root=tmp_path, areas="cityscapes"))
    folders = [written(tmp_path / str(score), boxes, map=score) for score in (12.0, 13.0)]
    both = [written(tmp_path / f"both {score}", areas, map=12.0, miou=50.0, mean=score) for score in (31.0, 32.0)]
    for some, name, scores in ((folders, "mAP", "12 13"), (both, "mean of mAP and mIoU", "31 32")):
        found = segmv3.compare(some, tmp_path / "out")
        assert found.tables["runs"].header[1] == f"best {name} %"
        assert [row[1][0] for row in found.tables["runs"].rows] == [f"{score}.00" for score in scores.split()]
        assert found.notes[-1].endswith("classifiers and detectors have curves, settings and cost alone")
    for other, does in ((runs[0], "segments"), (both[0], "draws boxes and labels areas")):
        with pytest.raises(DataError, match=f"cannot be compared: one draws boxes, the other {does}"):
            segmv3.compare([folders[0], other], tmp_path / "none")


def test_what_is_no_set_of_runs_is_refused(runs, tmp_path, capsys):
    first, file = str(runs[0]), tmp_path / "a.json"
    file.write_text("{}")
    for arguments, said in (
        ([first], "compare takes 2 to 8 runs, not 1"),
        ([first] * 9, "compare takes 2 to 8 runs, not 9"),
        ([first, first], "a run is named twice"),
        ([first, str(tmp_path)], "holds no run; name folders of segmv3 train, or two result files"),
        ([first, str(file)], "is a file and"),
        ([first, str(tmp_path / "gone")], "gone does not exist and"),
        ([str(file)] * 3, "compare takes 2 to 8 runs or two result files, not 3 files"),
        ([first, str(runs[1]), "--dpi", "5"], "--dpi: is 5; it must be between 50 and 1,200"),
        ([first, str(runs[1]), "--output", str(file)], "is a file; name a folder"),
    ):
        assert main(["compare", *arguments]) == 2
        line = capsys.readouterr().err
        assert said in line and line.count("\n") == 1, line
    with pytest.raises(ConfigError):
        segmv3.compare([])


def test_a_table_is_ready_for_latex(tmp_path):
    table = Rows("", ["class", "A_1"], [[("10 % & more", False), ("5.0", True)], [("a\\b~", False), (NONE, False)]])
    write_tables(tmp_path, {"t": table})
    assert (tmp_path / "t.tex").read_text().splitlines() == [
        r"\begin{tabular}{lr}", r"\toprule", r"class & A\_1 \\", r"\midrule", r"10 \% \& more & \textbf{5.0} \\",
        r"a\textbackslash{}b\textasciitilde{} & -- \\", r"\bottomrule", r"\end{tabular}",
    ]  # fmt: skip
    assert (tmp_path / "t.csv").read_text() == "class,A_1\n10 % & more,5.0\na\\b~," + NONE + "\n"
