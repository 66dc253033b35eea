"""What users name is text: on the terminal, in pages, in figures and in Markdown."""

import io
import json
import sys
import warnings

import numpy as np
import pytest
from rich.progress import BarColumn
from rich.table import Table

import segmv3
from benchmarks.table import _plain
from segmv3.cli import main
from segmv3.errors import Segmv3Warning, printable
from segmv3.labels import read_classes
from segmv3.models.zoo import create_model
from segmv3.report.html import environment
from segmv3.report.plots import LIGHT, cut, new_figure, pixels_of
from segmv3.screen import Screen, Words

NAMES = ("[sky]", "[/car]", ":smile: 3.5", "[link=file:///x]a[/link]")


@pytest.mark.parametrize("name", [*NAMES, "[bold]b", "\\[x", "{task}", "%s"])
def test_a_name_is_shown_as_it_is(name, capsys):
    screen, table = Screen(force_terminal=True, width=200), Table(name, title=name, caption=name)
    table.add_row(name)
    screen.print(table)
    screen.say(name)
    with screen.progress(Words(), Words("status"), BarColumn(), refresh_per_second=0.01) as bar:
        bar.add_task(name, status=name)
        bar.refresh()
    with screen.status(screen.render_str(name)):
        pass
    assert capsys.readouterr().out.count(name) >= 7


@pytest.mark.parametrize("width", [40, 80, None])
def test_words_of_a_table_are_whole_at_every_width(width, monkeypatch, capsys):
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    table = Table("net", "parameters", "some text")
    table.add_row("lraspp_large_d8_mmseg", "3,284,547", "16 at 1/2, 24 at 1/4")
    Screen().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert {"lraspp_large_d8_mmseg", "3,284,547", "parameters", "1/4"} <= set(" ".join(lines).split())
    assert len({len(line) for line in lines}) == 1 and "…" not in "".join(lines)
    assert len(lines[0]) <= 60 if width == 40 else len(lines) == 5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("straße 街 👍", "straße 街 👍"),
        ("a\x1b[31m\x07\x9b", "a\\x1b[31m\\x07\\x9b"),
        ("a\nerror: b\r\t", "a\\nerror: b\\r\\t"),
        ("a\u202eb\u2066c\u200bd\xa0e\u2028", "a\\u202eb\\u2066c\\u200bd\\xa0e\\u2028"),
        ("stra\udcdfe", "stra\\udcdfe"),
    ],
)
def test_a_terminal_gets_no_control_sequence(text, shown, capsys):
    assert printable(text) == shown
    table = Table("")
    table.add_row(text.replace("\n", ""))
    Screen(width=100).print(table)
    Screen().say(text)
    assert main(["evaluate", text]) == 2
    warnings.showwarning(Segmv3Warning(text), Segmv3Warning, "", 0)
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert shown in out and err.split("\n")[1:] == [shown, ""] and shown in err.split("\n")[0]


def test_a_terminal_without_the_letters_shows_their_numbers(monkeypatch):
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    assert main(["--version"]) == 0
    Screen().say("straße 街")
    sys.stdout.flush()
    assert sys.stdout.buffer.getvalue().endswith(b"stra\\xdfe \\u8857\n")


def test_pages_figures_and_markdown_show_it_too():
    page = environment().from_string("{{ name }}").render(name="<b>&'\u202e\udcdf")
    assert page == "&lt;b&gt;&amp;&#39;\\u202e\\udcdf"
    assert cut("a\x1b\udcdf") == "a\\x1b\\udcdf"
    assert _plain("a|b <i> [x](y) *z* _q_ lraspp_m-v3") == r"a\|b \<i\> \[x\](y) \*z\* \_q\_ lraspp_m-v3"
    figure = new_figure(200, 80)
    axes = figure.add_subplot()
    axes.set_title(r"$\frac{$")  # what matplotlib would call a mistake
    axes.set_yticks([0], ["$x^$"])
    assert pixels_of(figure, LIGHT).shape == (160, 400, 3)


@pytest.fixture
def evaluate(folder, tmp_path):
    """`segmv3 evaluate` of a data set whose classes have odd names, with --output."""
    classes = [{"id": i, "name": name} for i, name in enumerate(NAMES)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    weights, config = tmp_path / "w.safetensors", tmp_path / "config.py"
    segmv3.save(create_model("lraspp_small_d8", 4), weights, classes=read_classes(folder)[0])
    config.write_text(
        "from pathlib import Path\nfrom segmv3.config import *\nfrom segmv3.models.zoo import NETS\n"
        f"config = Config(model=NETS['lraspp_small_d8'], data=Data(dataset='folder', root=Path({str(folder)!r})), "
        "schedule=Schedule(steps=2))\n"
    )
    output = tmp_path / "[out]" / "scores.json"
    return ["evaluate", str(config), "--weights", str(weights), "--output", str(output)], output


def test_odd_class_names_are_scored_and_compared(evaluate, capsys):
    arguments, output = evaluate
    assert main([*arguments, "--report", str(output.parent)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in NAMES)
    assert [row["name"] for row in json.loads(output.read_text())["classes"]] == list(NAMES)
    assert main(["compare", str(output), str(output)]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*NAMES, f"a: {output}"))


def test_scores_are_written_whatever_becomes_of_the_terminal(evaluate, monkeypatch, capsys):
    arguments, output = evaluate

    def fail(*_, **__):
        raise UnicodeEncodeError("ascii", "x", 0, 1, "a terminal of 1970")

    monkeypatch.setattr(Screen, "print", fail)
    assert main(arguments) == 3
    assert "the tables failed (UnicodeEncodeError: 'ascii' codec" in capsys.readouterr().err
    assert np.sum(json.loads(output.read_text())["confusion_matrix"]) == 3 * 48 * 64
