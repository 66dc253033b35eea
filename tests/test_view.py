"""The page of `segmv3 view`: who may ask, what it answers, and that a browser shows it."""

import json
import shutil
import urllib.request
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from urllib.error import HTTPError

import cv2
import numpy as np
import pytest
from conftest import LIMIT, serving

import segmv3
from segmv3.cli import main
from segmv3.config import Data
from segmv3.errors import DataError, OutputError
from segmv3.images import write_png
from segmv3.mini_city import write_mini_city
from segmv3.view.server import Server
from segmv3.view.views import DatasetGallery, Live, NetGallery, ResultsGallery, gallery_of


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    root = tmp_path_factory.mktemp("view") / "city"
    write_mini_city(root, train=2, val=1, size=(64, 128))
    return root


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    path = tmp_path_factory.mktemp("net") / "w.safetensors"
    segmv3.save(segmv3.create_model("lraspp_small_d8", 19), path)
    return segmv3.load(path, backend="torch", threads=1)


@contextmanager
def served(shown):
    server = Server(shown)
    with serving(server):
        yield server.url


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=LIMIT) as answer:
        return answer.read()


def pixels(data):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def gallery(city):
    return DatasetGallery(Data(dataset="cityscapes", root=city, crop_size=(48, 64)))


def test_a_data_set_with_the_samples_that_training_would_see(city):
    shown = gallery(city)
    image, labels = shown._sets[0].read(0)
    with served(shown) as url:
        about = json.loads(get(url + "about"))
        assert about["names"][0] == "train/minitown_000000_000019" and len(about["names"]) == 3
        assert about["layers"] == {"image": "picture", "labels": "ids", "sample": "picture", "sample labels": "ids"}
        assert about["classes"][0] == {"name": "road", "color": [128, 64, 128]}
        assert np.array_equal(pixels(get(url + "item/0/labels")), labels)
        assert np.abs(pixels(get(url + "item/0/image"))[..., ::-1].astype(int) - image).mean() < 6
        get(url + "item/0/draw")
        first = pixels(get(url + "item/0/sample%20labels"))
        get(url + "item/0/draw")
        assert first.shape == (48, 64) and not np.array_equal(first, pixels(get(url + "item/0/sample%20labels")))
        facts = json.loads(get(url + "item/0/facts"))
        assert facts["road"] == pytest.approx(100 * (labels == 0).mean())


def test_nobody_else_can_ask(city):
    with served(gallery(city)) as url:
        for wrong in (
            url[:-2] + "/about",  # a letter too short
            url.partition("/")[0] + "//" + url.split("/")[2] + "/about",
        ):
            with pytest.raises(HTTPError, match="404"):
                get(wrong)
        with pytest.raises(HTTPError, match="404"):
            get(url + "about", Host="elsewhere.example")
        for nothing in ("item/9/image", "item/0/nothing", "item/x/image", "../pyproject.toml", "frame?after=-1"):
            with pytest.raises(HTTPError, match="404"):
                get(url + nothing)
        with pytest.raises(HTTPError, match="501"):
            urllib.request.urlopen(url + "about", data=b"", timeout=LIMIT)


def test_images_are_labelled_when_they_are_looked_at(city, net):
    paths = tuple(sorted((city / "leftImg8bit/train").rglob("*.png")))
    reads = [partial(segmv3.read_image, path) for path in paths]
    shown = NetGallery("streets", [path.stem for path in paths], reads, net)
    image = segmv3.read_image(paths[1])
    assert np.array_equal(shown.layer(1, "labels"), net(image))
    assert shown.layer(1, "confidence").dtype == np.uint8
    assert set(shown.facts(1)) >= {"confidence"}


def test_frames_come_in_their_order_and_to_several_pages(net):
    frames = [(np.full((48, 64, 3), 40 * i, np.uint8), Fraction(i, 10)) for i in range(3)]
    with served(Live("drive", iter(frames), net)) as url:
        assert json.loads(get(url + "about"))["live"]
        for number in (0, 1, 2):
            data = get(f"{url}frame?after={number - 1}")
            length = int.from_bytes(data[:4], "little")
            header = json.loads(data[4 : 4 + length])
            assert header["number"] == number and header["time"] == pytest.approx(number / 10)
            image = pixels(data[4 + length :][: header["sizes"][0]])
            assert abs(int(image.mean()) - 40 * number) <= 1
        assert get(f"{url}frame?after=0") == data  # a second page sees the newest
        assert get(f"{url}frame?after=2") == b""


def test_results_of_predict(tmp_path, city):
    write_png(tmp_path / "a_overlay.png", np.zeros((8, 8, 3), np.uint8))
    write_png(tmp_path / "a_labels.png", np.ones((8, 8), np.uint8))
    write_png(tmp_path / "b_overlay.png", np.zeros((8, 8, 3), np.uint8))
    shown = ResultsGallery(tmp_path)
    assert shown.names == ["a", "b"] and shown.layers == {"overlay": "picture", "labels": "ids"}
    assert (shown.layer(0, "labels") == 1).all()
    with pytest.raises(DataError, match="b has no labels"):
        shown.layer(1, "labels")
    assert isinstance(gallery_of(tmp_path, None, pytest.fail), ResultsGallery)
    assert isinstance(gallery_of(city, None, pytest.fail), DatasetGallery)
    assert gallery_of(city / "leftImg8bit/train/minitown", None, pytest.fail) is None


def test_what_cannot_be_shown_is_one_line(tmp_path, capsys, city):
    assert main(["view", str(tmp_path / "nothing"), "--no-browser"]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert main(["view", str(city), "--no-browser", "--port", "99999"]) == 2
    assert capsys.readouterr().err == "config: --port is 99999; it must be 0 (a free one) to 65535\n"
    with Server(gallery(city)) as server, pytest.raises(OutputError, match=r"port \d+ cannot be used \(Address"):
        Server(gallery(city), server.server_port)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs the browser chromium")
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_it(city, width, scheme):
    from playwright.sync_api import expect, sync_playwright

    errors = []
    with served(gallery(city)) as url, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.goto(url)
        expect(page.locator("#status")).to_contain_text("1 of 3")
        canvas = "document.querySelector('#pictures canvas').toDataURL()"
        first = page.evaluate(canvas)
        page.keyboard.press("ArrowRight")
        expect(page.locator("#status")).to_contain_text("2 of 3")
        second = page.evaluate(canvas)
        page.keyboard.press("a")  # without any class
        assert len({first, second, page.evaluate(canvas)}) == 3
        page.fill("#filter", "road > 1")
        expect(page.locator("#status")).to_contain_text("3 of 3 pictures")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.documentElement.classList.contains('dark')") == (scheme == "dark")
        browser.close()
    assert not errors
