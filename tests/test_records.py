"""Files that the project reads back, changed by someone else: an error of one line, or the right result.

A new reader is one more `Reader` below. A file is changed by deleting, replacing and deepening each of its values
(some of all changes, the same in every run), by cutting and spoiling its bytes, and by other things in its place.
"""

import copy
import json
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_sweep import LR, Pretence, read, told
from test_uncertainty import confusions, content

from benchmarks import table
from segmv3 import mini_city, submission
from segmv3.cli import main
from segmv3.config import Config, Data
from segmv3.convert.receipt import receipt_path, to_text, verify_receipt
from segmv3.data import pack as packing
from segmv3.data import packed as cached
from segmv3.data.datasets import open_dataset
from segmv3.errors import DataError, Segmv3Error, printable
from segmv3.models.count import describe_nets
from segmv3.records import from_json, read_json, typed
from segmv3.runtime import autotune

ODD = (None, True, -1, 0, 1.5, 7, 10**30, 2**63, float("nan"), "", "x", "\x1b[31m\n", [], [[]], {}, {"a": [1]}, "DEEP")
DEEP = b"[" * 100_000


# --- the changes ---


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """A copy with another value at a place, or without it."""
    if not path:
        return new
    value = copy.deepcopy(value)
    *heads, last = path
    holder = value
    for key in heads:
        holder = holder[key]
    if new is changed:
        del holder[last]
    else:
        holder[last] = new
    return value


def mutants(value: Any, count: int, seal: Callable[[Any], Any]) -> Iterator[bytes]:
    """`count` changes of a JSON value, as files. `seal` gives a changed one a checksum that agrees."""
    every = [(path, new) for path in places(value) for new in (*ODD, changed) if path or new is not changed]
    for path, new in random.Random(0).sample(every, min(count, len(every))):
        yield json.dumps(seal(changed(value, path, new))).encode().replace(b'"DEEP"', b"[" * 40 + b"]" * 40)
    whole = json.dumps(value).encode()
    yield from (b"", b"{", b"[]", b"null", b"\xff\xfe\x00", DEEP, b"1" * 5000, whole[: len(whole) // 2], whole + b"x")


def other_things(path: Path) -> Iterator[None]:
    """What may lie in the place of a file: nothing, a folder, a link to nowhere or to itself, a FIFO."""
    path.unlink()
    yield
    path.mkdir()
    yield
    path.rmdir()
    for target in (path.parent / "nowhere", path):
        path.symlink_to(target)
        yield
        path.unlink()
    os.mkfifo(path)
    yield
    path.unlink()


# --- the readers ---


class Refused(Exception):
    """A command ended with this code."""


@dataclass
class Reader:
    """A file and what reads it."""

    path: Path
    read: Callable[[], Any]
    """Reads it and does with the content what a command does; fails where that is not right."""
    refuses_nothing: bool = False
    """It goes on without a file that it cannot use."""
    seal: Callable[[Any], Any] = lambda value: value


def compared(tmp_path: Path, config: Config) -> Reader:
    a, b, out = (tmp_path / f"{name}.json" for name in "abc")
    for path in (a, b):
        path.write_text(json.dumps(content(confusions(images=4), config="c.py", device="cpu", boundary=True)))

    def read() -> None:
        arguments = ["compare", str(a), str(b), "--resamples", "100", "--output", str(out), "--overwrite"]
        if code := main(arguments):
            raise Refused(code)
        found = json.loads(out.read_text())
        assert found["miou"]["a"] == found["miou"]["b"] and found["images"] == 4

    return Reader(a, read)


def tabled(tmp_path: Path, config: Config) -> Reader:
    path = tmp_path / "results" / "a.json"
    path.parent.mkdir()
    facts = {
        "weights": "mmseg/lraspp_m-v3-d8",
        "fps": 3.0,
        "memory_gb": 1.0,
        "device_name": "CPU",
        "origin": {"name": ""},
    }
    path.write_text(json.dumps(content(confusions(images=3), **facts)))
    nets = describe_nets()

    def read_() -> None:
        results = table.read_results(path.parent)
        assert len(results.found) + len(results.left_out) <= 1
        table.markdown(table.lines(results, nets, {}), results)

    return Reader(path, read_, refuses_nothing=True)


def packed(tmp_path: Path, config: Config) -> Reader:
    dataset, folder = open_dataset(config.data, "train"), tmp_path / "cache"
    packing.pack(dataset, folder)
    pixels = [dataset.read(index) for index in range(len(dataset))]

    def read_() -> None:
        cache = packing.open_packed(dataset, folder)
        for index, pair in enumerate(pixels):
            assert all(np.array_equal(a, b) for a, b in zip(cache.read(index), pair, strict=True))

    def seal(index: Any) -> Any:
        if isinstance(index, dict) and "checksum" in index:
            del index["checksum"]
            index["checksum"] = cached.checksum_of(index)
        return index

    return Reader(folder / "train.json", read_, seal=seal)


def swept(tmp_path: Path, config: Config) -> Reader:
    """The settings of a sweep; its journal has a test of its own."""
    pytest.importorskip("optuna")
    from segmv3.sweep import search

    space, folder = replace(read(LR, config, tmp_path), trials=2), tmp_path / "sweep"

    def read_() -> Any:
        return told(search.sweep(config, space, folder, file=Path("t.py"), base=config, device="cpu", threads=1))

    read_()
    return Reader(folder / "settings.json", read_)


def proved(tmp_path: Path, config: Config) -> Reader:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"a net")
    receipt_path(path).write_text(to_text(path, {"command": "x"}))
    return Reader(receipt_path(path), lambda: verify_receipt(path))


def chosen(tmp_path: Path, config: Config) -> Reader:
    path = tmp_path / "backends.json"
    autotune._write(path, {"onnxruntime": autotune.Verdict("it is slow", 0), "torch": autotune.Verdict("", 3.5)})

    def read_() -> None:
        for title, verdict in autotune._read(path).items():
            assert isinstance(title + verdict.refusal, str) and math.isfinite(verdict.milliseconds)

    return Reader(path, read_, refuses_nothing=True)


def submitted(tmp_path: Path, config: Config) -> Reader:
    path = tmp_path / "submission.jsonl"
    header = {"weights_sha256": "a" * 64, "scales": [1.0], "flip": False, "precision": "fp32"}
    path.write_text(json.dumps(header))

    def read_() -> None:
        assert not submission._finished(path, header, overwrite=False)

    return Reader(path, read_)


def drawn(tmp_path: Path, config: Config) -> Reader:
    root = tmp_path / "city"
    mini_city.write_mini_city(root, train=1, val=1, size=(64, 128))
    return Reader(root / mini_city._PARAMETERS, lambda: mini_city.write_mini_city(root, train=1, val=1, size=(64, 128)))


READERS = (compared, tabled, packed, swept, proved, chosen, submitted, drawn)


@pytest.fixture
def reader(request, tmp_path, config, monkeypatch) -> Reader:
    if request.param is swept:
        pytest.importorskip("optuna")
        from segmv3.sweep import search

        monkeypatch.setattr(search, "train", Pretence())
        monkeypatch.setattr(search, "write_sweep_page", lambda folder, result: None)
    return request.param(tmp_path, config)


def outcome(reader: Reader, capsys: pytest.CaptureFixture[str]) -> str:
    """The line in which a changed file is refused; empty where what was read is right."""
    try:
        reader.read()
    except Segmv3Error as error:
        line = str(error)
        assert error.exit_code == 2
    except Refused as refused:
        line = capsys.readouterr().err.rstrip("\n")
        assert refused.args == (2,) and "\n" not in line
    else:
        return ""
    assert str(reader.path.parent) in line and len(printable(line)) < 2000
    return line


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::segmv3.errors.Segmv3Warning")
@pytest.mark.parametrize("reader", READERS, indirect=True)
def test_a_changed_file_is_refused_in_one_line_or_read_right(reader, capsys):
    reader.read()
    whole = reader.path.read_bytes()
    refused = 0
    for mutant in mutants(json.loads(whole), 400, reader.seal):
        reader.path.write_bytes(mutant)
        refused += bool(outcome(reader, capsys))
    for _ in other_things(reader.path):
        refused += bool(outcome(reader, capsys))
    assert refused > 20 or reader.refuses_nothing
    reader.path.write_bytes(whole)
    reader.read()


# --- what is no JSON document ---


def test_a_changed_journal_of_a_sweep(tmp_path, config, monkeypatch, capsys):
    pytest.importorskip("optuna")
    from segmv3.sweep import search

    monkeypatch.setattr(search, "train", Pretence())
    monkeypatch.setattr(search, "write_sweep_page", lambda folder, result: None)
    reader_ = swept(tmp_path, config)
    reader_.path = reader_.path.parent / "study.journal"
    lines = [json.loads(line) for line in reader_.path.read_text().splitlines()]
    folder = reader_.path.parent
    shutil.copytree(folder, tmp_path / "whole")
    for mutant in mutants(lines, 60, lambda value: value):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "whole", folder)
        try:
            values = json.loads(mutant)
        except (ValueError, RecursionError):
            values = None
        text = "".join(json.dumps(v) + "\n" for v in values).encode() if isinstance(values, list) else mutant + b"\n"
        reader_.path.write_bytes(text)
        outcome(reader_, capsys)


def test_changed_pixels_are_not_trained_on(tmp_path, config, folder):
    """A label that is another legal one: in the file of a cache, and in each of its images."""
    dataset, cache = open_dataset(Data(dataset="folder", root=folder), "train"), tmp_path / "cache"
    whole = packing.pack(dataset, cache)
    file = cache / "train.pixels"
    bytes_ = bytearray(file.read_bytes())
    for index in (0, 4):
        place = whole.images[index].end - 1
        bytes_[place] = (bytes_[place] + 1) % 4
        file.write_bytes(bytes_)
        opened = packing.open_packed(dataset, cache)
        opened.read(index + 1)
        for _ in range(2):
            with pytest.raises(DataError, match=rf"{file} is damaged at scene_{index}; remove {cache} and pack again"):
                opened.read(index)
        bytes_[place] = (bytes_[place] - 1) % 4
    file.write_bytes(bytes_)
    opened = packing.open_packed(dataset, cache)
    seen = []
    opened_digest = cached.digest_of
    try:
        cached.digest_of = lambda *pair: seen.append(0) or opened_digest(*pair)  # type: ignore[assignment]
        for _ in range(3):
            opened.read(0)
    finally:
        cached.digest_of = opened_digest
    assert len(seen) == 1  # once a run


@pytest.mark.parametrize("name", ["train.pixels", "train.pixels.part", "train.journal"])
def test_other_things_in_a_cache_are_refused_and_nothing_else_is_written(name, tmp_path, config):
    dataset, cache, victim = open_dataset(config.data, "train"), tmp_path / "cache", tmp_path / "victim"
    cache.mkdir()
    victim.write_bytes(b"mine")
    (cache / name).symlink_to(victim)
    packing.pack(dataset, cache, overwrite=True)
    assert victim.read_bytes() == b"mine" and len(packing.open_packed(dataset, cache)) == 6
    for other in (name, ".lock"):
        shutil.rmtree(cache)
        (cache / other).mkdir(parents=True)
        with pytest.raises(Segmv3Error, match=str(cache)):
            packing.pack(dataset, cache)


# --- the parts ---


@dataclass
class Row:
    name: str
    size: tuple[int, int] | None = None
    parts: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"name": 3}, "rows[0].name is 3, not text"),
        ({}, "rows[0].name is missing"),
        ({"name": "x", "size": [1]}, "rows[0].size has 1 values, not 2"),
        ({"name": "x", "size": [1, 2.0]}, "rows[0].size[1] is 2.0, not a whole number"),
        ({"name": "x", "parts": [1, "y"]}, "rows[0].parts[1] is text, not a number"),
        ({"name": "x", "parts": [2**64]}, "rows[0].parts[0] is 18446744073709551616, which is too large"),
        ({"name": "x", "parts": [float("inf")]}, "rows[0].parts[0] is Infinity, which is too large"),
        ([], "rows[0] is a list, not an object"),
    ],
)
def test_a_value_of_another_kind_is_named(value, says):
    with pytest.raises(ValueError) as error:
        typed([value], list[Row], "rows")
    assert str(error.value) == says
    assert typed([{"name": "x", "size": [1, 2], "more": 1}], list[Row]) == [Row("x", (1, 2))]


def test_json_is_read_within_bounds(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, "b"]}')
    assert read_json(path) == {"a": [1, "b"]}
    with pytest.raises(ValueError, match=r"^is larger than 0 MB$"):
        read_json(path, largest=3)
    for text, says in ((b"[1e", "is not JSON"), (DEEP, "is nested too deeply"), (b"[" * 40 + b"]" * 40, "deeply")):
        with pytest.raises(ValueError, match=says):
            from_json(text)
