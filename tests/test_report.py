"""The report: numbers and names that arrive, figures that are written, runs that are odd."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from segmv3.errors import OutputError
from segmv3.images import read_image
from segmv3.labels import IGNORE, Classes
from segmv3.media.draw import WRONG
from segmv3.report import Sample, plots, write_evaluation_page, write_report
from segmv3.report.page import MAX_SAMPLES
from segmv3.report.plots import LIGHT, confusion, curves, iou_bars, row_percent
from segmv3.report.ranking import class_picture
from segmv3.report.samples import sample_panel, thumbnails
from segmv3.results.result import Result

CLASSES = Classes(("road", "<sky> & $x$", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142)))
NAN = float("nan")


def scores_of(matrix, classes=CLASSES, **more):
    matrix = np.asarray(matrix)
    hits, truth = np.diag(matrix), matrix.sum(axis=1)
    union = truth + matrix.sum(axis=0) - hits
    rows = [
        {
            "name": name,
            "iou": 100 * hits[i] / union[i] if union[i] else None,
            "accuracy": 100 * hits[i] / truth[i] if truth[i] else None,
            "share": 100 * truth[i] / matrix.sum(),
        }
        for i, name in enumerate(classes.names)
    ]
    ious = [row["iou"] for row in rows if row["iou"] is not None]
    return {
        "miou": float(np.mean(ious)),
        "mean_accuracy": 71.234,
        "pixel_accuracy": 100 * hits.sum() / matrix.sum(),
        "classes": rows,
        "absent": [row["name"] for row in rows if row["iou"] is None],
        "confusion_matrix": matrix.tolist(),
        "split": "val",
        "images": 12,
        "scales": [1.0],
        "flip": False,
        **more,
    }


MATRIX = [[90, 10, 0], [30, 70, 0], [0, 0, 0]]
LOG = [
    {"event": "train", "step": 50, "loss": 2.5, "lr": 0.01, "images_per_second": 12.3, "wait": 0.03},
    {"event": "train", "step": 100, "loss": 1.5, "lr": 0.005},
    {"event": "eval", "step": 100, "miou": 41.2, "mean_accuracy": 55.0, "pixel_accuracy": 90.1},
]


def sample(height=24, width=32, name="frame_1.png", classes=3):
    rng = np.random.default_rng(height)
    truth = rng.integers(0, classes, (height, width), dtype=np.uint8)
    truth[0, 0] = IGNORE
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Sample(name, image, truth, rng.integers(0, classes, (height, width), dtype=np.uint8))


def report(run, **changes):
    arguments = {
        "title": "lraspp",
        "facts": {"net": "lraspp_large_d8"},
        "log": LOG,
        "scores": scores_of(MATRIX),
        "classes": CLASSES,
        "samples": [sample()],
    }
    path = write_report(run, **(arguments | changes))
    assert path == run / "report.html"
    return path.read_text(encoding="utf-8")


def figures(run):
    return {path.name for path in (run / "figures").iterdir()}


class Balance(HTMLParser):
    """Collects the text and proves that every tag is closed."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, page):
        super().__init__()
        self.open, self.words, self.tags = [], [], set()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a report whose every text is hostile."""
    folder = tmp_path_factory.mktemp("run")
    hostile = {"title": "<script>alert(1)</script>", "facts": {"command & co": "<b>'x'</b>"}}
    report(folder, **hostile, samples=[sample(name="a'b<i>.png")])
    return folder


def test_report_has_numbers_and_escaped_text(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    text = " ".join(Balance(page).words)
    # mIoU of 90/130 and 70/110; pixel accuracy 160/200
    for expected in ("66.43", "71.23", "80.00", "val · 12 images · single scale · 3 classes", "69.2", "63.6"):
        assert expected in text
    for expected in ("<script>alert(1)</script>", "command & co", "<b>'x'</b>", "<sky> & $x$", "a'b<i>.png"):
        assert expected in text
    assert "1 absent and left out of the means: car" in text
    assert "<script" not in page and "<i>.png" not in page and "http" not in page
    assert re.search(r"taken for</span> road</th><td>75\.0</td><td>30\.0</td>", page)  # 30 of 40 errors


def test_report_embeds_every_picture_for_both_modes(run):
    page = (run / "report.html").read_text(encoding="utf-8")
    assert figures(run) == {"curves.png", "iou.png", "confusion.png", "samples.png"}
    assert page.count("<picture>") == page.count("(prefers-color-scheme: dark)") == 3
    sources = re.findall(r"(?:src|srcset)=[\"']([^\"']*)", page)
    assert len(sources) == 3 * 2 + 4 and all(source.startswith("data:image/") for source in sources)
    assert not list(run.rglob("*.part"))


def test_report_without_evaluation_or_samples_removes_older_figures(tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("curves", "iou", "confusion", "samples"):
        (tmp_path / "figures" / f"{name}.png").touch()
    page = report(tmp_path, log=LOG[:1], scores={}, samples=[], facts={})
    assert figures(tmp_path) == {"curves.png"}
    assert "Not evaluated yet" in page and "Confusion" not in page and "Samples" not in page
    Balance(page)


def test_report_of_one_class_and_more_samples_than_are_shown(tmp_path):
    classes = Classes(("a very long name " * 9,), ((255, 255, 255),))
    scores = scores_of([[7]], classes, scales=[0.5, 1.0], flip=True, images=1)
    samples = [sample(2, 2, f"frame-{i}.png", classes=1) for i in range(MAX_SAMPLES + 1)]
    page = report(tmp_path, classes=classes, scores=scores, samples=samples)
    assert "val · 1 image · scales 0.5, 1 + flip · 1 class<" in page
    assert "100.00" in page and "Where the wrong pixels are" not in page
    assert f"The first {MAX_SAMPLES} of {MAX_SAMPLES + 1}." in page
    assert f"frame-{MAX_SAMPLES}" not in page and page.count("<figure>") == 4 * MAX_SAMPLES
    Balance(page)


@pytest.mark.slow
def test_charts_of_150_classes(monkeypatch):
    monkeypatch.setattr(plots, "_SHARPNESS", 1)  # a quarter of the pixels: the layout is what can fail
    names = tuple(f"class {i} " + "long " * (i % 9) for i in range(150))
    classes = Classes(names, tuple((i, 99, 255 - i) for i in range(150)))
    scores = scores_of(np.eye(150, dtype=int) * 9 + 1, classes)
    assert iou_bars(scores, classes, LIGHT).shape == (60 + 31 * 150, 500, 3)
    assert confusion(scores, LIGHT).shape == (1400, 1400, 3)


def test_unwritable_folder_is_one_error(tmp_path):
    (tmp_path / "figures").write_text("in the way")
    with pytest.raises(OutputError, match="figures"):
        report(tmp_path)


@pytest.mark.parametrize(
    "log",
    [
        [],
        LOG[:1],
        LOG[2:],
        [{"event": "train", "step": s, "loss": v} for s, v in enumerate([NAN, None, "NaN", float("inf")])],
        [{"event": "train", "step": s, "loss": v, "lr": 0.0} for s, v in enumerate([1.0, NAN, 0.0])],
        [{"event": "start"}, {"event": "eval", "step": 1, "miou": None}],
        LOG[1:2] + LOG[:1] + LOG[:1],
    ],
)
def test_curves_of_any_log_have_one_size(log):
    assert curves(log, LIGHT).shape == (1160, 1000, 3)


def test_curves_mark_losses_that_are_not_finite():
    def red(log):
        return int((np.abs(curves(log, LIGHT).astype(int) - (0xD1, 0x29, 0x3D)).max(axis=2) < 8).sum())

    assert red(LOG) == 0
    assert red([*LOG, {"event": "train", "step": 150, "loss": NAN, "lr": 0.001}]) > 50


def test_bars_are_in_class_colours_and_as_long_as_the_iou():
    picture = iou_bars(scores_of(MATRIX), CLASSES, LIGHT)
    assert picture.shape == (2 * (60 + 31 * 3), 1000, 3)

    def length(color):
        return int((picture == np.array(color, np.uint8)).all(axis=2).any(axis=0).sum())

    assert length(CLASSES.colors[2]) == 0  # absent
    # the halo of the mean line hides about as much of the longer bar as lies beyond the mean
    assert length(CLASSES.colors[0]) > 300 and 0.85 < length(CLASSES.colors[1]) / length(CLASSES.colors[0]) < 1


def test_row_percent_has_no_number_where_there_is_no_truth():
    share = row_percent(MATRIX)
    assert share[:2].tolist() == [[90, 10, 0], [30, 70, 0]] and np.isnan(share[2]).all()


def test_confusion_is_square_and_blue_on_the_diagonal_only():
    def blue(matrix):
        picture = confusion(scores_of(matrix), LIGHT).astype(int)
        assert picture.shape[0] == picture.shape[1] == 840
        return int((picture[..., 2] - picture[..., 0] > 100).sum())

    assert blue(np.eye(3, dtype=int)) > 10_000
    assert blue(np.roll(np.eye(3, dtype=int), 1, axis=1)) == 0


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 2048), (256, 512)),
        ((1, 1), (256, 256)),
        ((2000, 30), (512, 8)),
        ((3, 3000), (1, 512)),
        ((31, 17), (248, 136)),
    ],
)
def test_thumbnails_have_at_most_512_pixels(size, expected):
    small = thumbnails(sample(*size), CLASSES)
    for picture in (small.image, small.truth, small.prediction, small.errors):
        assert picture.shape == (*expected, 3) and picture.dtype == np.uint8


def test_thumbnails_keep_label_colours_exact():
    small = thumbnails(sample(700, 900), CLASSES)
    colors = set(map(tuple, small.prediction.reshape(-1, 3).tolist()))
    assert colors == set(CLASSES.colors)


def test_panel_shows_all_samples_and_the_legend(tmp_path):
    samples = [sample(40, 600, "wide"), sample(300, 20, "tall"), sample(1, 1, "x" * 400)]
    panel = sample_panel(samples, CLASSES)
    assert panel.shape[1] == 4 * 512 + 3 * 14 + 2 * 24
    assert (panel[:20] == 255).all()
    for color in (*CLASSES.colors, WRONG):
        assert (panel == np.array(color, np.uint8)).all(axis=2).any()
    known = np.array([[0, 0, 1, IGNORE]], np.uint8)
    samples.append(Sample("x", np.zeros((1, 4, 3), np.uint8), known, np.zeros((1, 4), np.uint8)))
    page = report(tmp_path, samples=samples, scores={})
    assert "pixel accuracy 66.7" in page  # of the three labelled pixels
    assert np.array_equal(read_image(tmp_path / "figures" / "samples.png"), sample_panel(samples, CLASSES))
    with pytest.raises(ValueError, match="at least one"):
        sample_panel([], CLASSES)


def evaluation(images, **more):
    """A result of images given as name -> rows of (truth, predicted, pixels)."""
    matrix = np.zeros((3, 3), int)
    for truth, predicted, pixels in (row for rows in images.values() for row in rows):
        matrix[truth, predicted] += pixels
    facts = {"dataset": "<i>own", "images": len(images), "images_in_split": len(images), "size": [24, 32]}
    facts |= {"weights": "w.safetensors", "weights_sha256": "ab" * 32, "miou_interval": [50.04, 71.26]}
    per_image = [{"name": name, "counts": [list(row) for row in rows]} for name, rows in images.items()]
    return Result.from_json(json.dumps(scores_of(matrix, **facts | {"per_image": per_image} | more)))


def test_page_of_an_evaluation_ranks_images_and_doubts_labels(tmp_path):
    good = ((0, 0, 80), (1, 1, 18), (1, 0, 2))
    images = {f"fine-{i:02}": good for i in range(14)} | {"b<ad>": ((0, 1, 60), (0, 0, 20), (1, 1, 20))}
    asked = []

    def samples_of(names):
        asked.extend(names)
        return (sample(60, 80, name) for name in names)

    path = write_evaluation_page(tmp_path / "new", evaluation(images), CLASSES, samples_of)
    page = path.read_text(encoding="utf-8")
    text = " ".join(Balance(page).words)
    assert asked[0] == "b<ad>" and len(asked) == len(set(asked)) == 12
    assert "b<ad>" in text and "<i>own" in text and "<ad>" not in page and "<i>own" not in page and "http" not in page
    for expected in ("interval of the images: 50.0 to 71.3", "15 images · 24 x 32 · single scale", "ab" * 32):
        assert expected in text
    assert "The 12 lowest of 15" in text and re.search(r"b&lt;ad&gt;</b> mIoU 25\.0", page)  # of 20/80 and 20/80
    assert "labelled road, predicted <sky> & $x$" in text and "75 % of its road (60 pixels)" in text
    assert "absent" in text and page.count("<div class='cells'>") == 12 + 1
    assert page.count("<div class='cells three'>") == 2  # the absent class has no images


def test_page_of_few_images_gives_no_interval_and_says_that_nothing_is_in_doubt(tmp_path):
    windows = {"miou_interval": None, "size": None, "sliding_window": [8, 9], "stride": [4, 5]}
    result = evaluation({"a": ((0, 0, 9), (1, 1, 9))}, **windows)
    path = write_evaluation_page(tmp_path, result, CLASSES, lambda names: (sample(name=n) for n in names))
    text = " ".join(Balance(path.read_text(encoding="utf-8")).words)
    assert "1 image · images of several sizes · windows of 8 x 9, stride 4 x 5" in text
    assert " to " not in text.partition("Worst images")[0].partition("The interval")[0] and "None: nowhere" in text


def test_class_picture_tells_found_missed_and_extra_pixels():
    truth = np.array([[0, 0, 1, IGNORE, 1]], np.uint8)
    prediction = np.array([[0, 1, 0, 0, 1]], np.uint8)
    found, missed, extra, ignored, other = class_picture(
        Sample("x", np.full((1, 5, 3), 90, np.uint8), truth, prediction), 0
    )[0].tolist()
    assert tuple(missed) == WRONG and found[2] > 200 and extra[0] > 200 and extra[2] < 100
    assert len(set(ignored)) == len(set(other)) == 1  # grey
