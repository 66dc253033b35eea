"""Pages from the templates in `templates/`: each is one file, without scripts, that needs no network.

Jinja2 escapes every value. What users name may hold characters that a page should not obey either, such as those
that change the direction of the text: they are shown as Python writes them.
"""

import base64
import functools
import io
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from segmv3.data.listing import count_of
from segmv3.errors import printable
from segmv3.files import write_bytes
from segmv3.images import UInt8Array, write_png
from segmv3.report.plots import DARK, LIGHT, Theme, number

NONE = "–"  # noqa: RUF001 (an en dash stands for "no number")


def write_page(path: Path, template: str, **values: Any) -> Path:
    """Write a page, complete or not at all.

    Args:
        path: the file.
        template: name of a file in `templates/`.
        values: what the template shows.

    Returns:
        The path.

    Raises:
        OutputError: the file cannot be written.
    """
    write_bytes(path, environment().get_template(template).render(**values).encode())
    return path


class Chart:
    """A chart in its light and dark form, as addresses; the light one is written to `path` too."""

    def __init__(self, path: Path, draw: Callable[[Theme], UInt8Array]) -> None:
        light, dark = draw(LIGHT), draw(DARK)
        write_png(path, light)
        self.height, self.width = light.shape[:2]
        self.light, self.dark = data_uri(light, "PNG"), data_uri(dark, "PNG")


def data_uri(pixels: UInt8Array, kind: str) -> Markup:
    """Pixels as a data URI: charts and labels as PNG (exact), photographs as JPEG (a tenth of the size)."""
    file = io.BytesIO()
    if kind == "JPEG":
        Image.fromarray(pixels).save(file, format=kind, quality=86, subsampling=0)  # sharp red on grey
    else:
        Image.fromarray(pixels).save(file, format=kind, compress_level=6)
    return Markup(f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}")


@functools.cache
def environment() -> Environment:
    """How templates are read and filled."""
    made = Environment(
        loader=PackageLoader("segmv3.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals |= {"light": LIGHT, "dark": DARK}
    made.filters |= {
        "percent": percent,
        "share": lambda value: "< 0.01" if 0 < number(value) < 0.01 else percent(value, 2),
        "thousands": "{:,}".format,
        "count": count_of,
        # a text that may be broken after a dot, an underscore or a slash
        "breakable": lambda text: Markup(re.sub(r"(?<=\w)([._/])(?=\w)", r"\1<wbr>", str(escape(printable(text))))),
    }
    made.tests["finite"] = lambda value: math.isfinite(number(value))
    return made


def percent(value: Any, decimals: int = 1) -> str:
    """A number with some decimals; a dash for none."""
    return f"{number(value):.{decimals}f}" if math.isfinite(number(value)) else NONE
