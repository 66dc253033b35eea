"""The documentation site: python tools/build_docs.py writes its pages, builds them and checks the result.

The pages are plain Markdown with all links resolved and all generated pages written, so that MkDocs and Zensical can
both build them. The references of commands and settings come from the dataclasses, the formulae become MathML.
"""

import inspect
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import get_args, get_type_hints

from latex2mathml.converter import convert

import segmv3
from segmv3 import cli, config
from segmv3.commands.help import Flag, field_texts, first_sentence, flags

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "build/pages"
SITE = ROOT / "build/site"

ELSEWHERE = {
    "data/README.md": "how-to/data-sets.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "CHANGELOG.md": "project/changelog.md",
}
"""Pages whose Markdown lies outside docs/, and their places on the site."""

COMMANDS = """
train, finetune, adapt, fit, sweep, evaluate, compare, submit, predict, view, classify train, classify evaluate,
classify predict, classify prepare, detect train, detect evaluate, detect predict, detect check, detect prepare,
detect models, weights import, weights list, weights average, weights push, export, models, config, data mini-city,
data import, data check, data pack, data next, data suspects, benchmark, benchmark latency, benchmark throughput
"""

MODULES = ("segmv3.decode", "segmv3.inference", "segmv3.metrics")
"""Documented beside the names of `segmv3.__all__`."""

SHOWN = {"configs": "Config files", "examples": "Examples of own parts", "demo": "Demo programs"}
"""Folders whose programs are shown on a page each, with its title."""

PARTS = """
segmv3.config.Head segmv3.config.Backbone segmv3.data.sources.Source segmv3.config.Criterion
segmv3.training.losses.Term segmv3.training.losses.Seen segmv3.convert.base.Target segmv3.training.trackers.Tracker
"""
"""What parts of your own derive from or use."""

_CODE = re.compile(r"(```.*?^\s*```|`[^`\n]+`)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_MATHS = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)
_OTHER_HOST = re.compile(r"""<(?:script|img|link|iframe|source)\b[^>]*?(?:src|href)=["']?(?:https?:)?//[^>]*>""")


def main() -> None:
    """Write the pages, build the site, and look for what it would load from other hosts."""
    shutil.rmtree(PAGES, ignore_errors=True)
    places = page_places()
    for source, place in places.items():
        target = PAGES / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".md":
            target.write_text(resolved(source, place, places), encoding="utf-8")
        else:
            shutil.copyfile(source, target)
    pages = {"commands": commands_page(), "settings": settings_page(), "api": api_page(), "parts": parts_page()}
    (PAGES / "reference").mkdir(exist_ok=True)
    for name, page in (pages | {folder: code_page(folder) for folder in SHOWN}).items():
        (PAGES / "reference" / f"{name}.md").write_text("\n".join(page), encoding="utf-8")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
    ]
    if code := subprocess.run(command, cwd=ROOT, env=environment).returncode:
        sys.exit(code)
    if found := [f"{page}: {tag}" for page in SITE.rglob("*.html") for tag in _OTHER_HOST.findall(page.read_text())]:
        sys.exit("the site would load from other hosts:\n" + "\n".join(found))
    print(f"{len(list(SITE.rglob('*.html')))} pages: {SITE.relative_to(Path.cwd()) / 'index.html'}")


def page_places() -> dict[Path, str]:
    """Where each file of the project comes to lie on the site."""
    docs = ROOT / "docs"
    places = {path: path.relative_to(docs).as_posix() for path in sorted(docs.rglob("*")) if path.is_file()}
    return places | {ROOT / source: place for source, place in ELSEWHERE.items()}


def resolved(source: Path, place: str, places: dict[Path, str]) -> str:
    """The text of a page with its links as they are on the site and its formulae as MathML."""

    def link(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        path, hash_, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return found.group()
        file = (source.parent / path).resolve()
        if not file.exists():
            sys.exit(f"{source.relative_to(ROOT)}: {target} does not exist")
        if file in places:
            way = os.path.relpath(places[file], Path(place).parent)
            return f"{picture}[{text}]({way}{hash_}{anchor})"
        folder = file.relative_to(ROOT).parts[0]
        if file.suffix == ".py" and folder in SHOWN:
            return f"[{text}]({os.path.relpath(f'reference/{folder}.md', Path(place).parent)}#{file.stem})"
        return text  # a file or folder of the repository that is no page

    def formula(found: re.Match[str]) -> str:
        block, inline = found.groups()
        tex = re.sub(r"\\[;,]", " ", block or inline).replace("\\arg", "\\mathrm{arg}").replace("'", "^{\\prime}")
        html = convert(tex, display="block" if block else "inline")
        return f"<div>{html}</div>" if block else f"<span>{html}</span>"

    pieces = _CODE.split(source.read_text(encoding="utf-8"))
    for index in range(0, len(pieces), 2):  # between pieces of code
        pieces[index] = _MATHS.sub(formula, pieces[index])
    text = "".join(pieces)
    fenced = re.split(r"(```.*?^\s*```)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(piece if index % 2 else _LINK.sub(link, piece) for index, piece in enumerate(fenced))


def commands_page() -> Iterator[str]:
    """The help text of each command, as the command prints it."""
    yield "# Commands\n\nThis is what `segmv3 COMMAND --help` prints. `--help-all` shows every flag with its reasons.\n"
    os.environ["COLUMNS"] = "80"
    for command in COMMANDS.replace("\n", " ").split(","):
        text = io.StringIO()
        with redirect_stdout(text), suppress(SystemExit):
            cli.main([*command.split(), "--help"])
        yield f"## segmv3 {command.strip()}\n\n```text\n{text.getvalue().rstrip()}\n```\n"


def settings_page() -> Iterator[str]:
    """Every setting of every dataclass that a config can be built from."""
    yield "# Settings\n"
    yield (
        "A config file builds one `Config` (`segmv3 train`), one `Classification` (`segmv3 classify train`) or one "
        "`Detection` (`segmv3 detect train`) from the dataclasses below. Each field is also a flag: `--optim.lr 0.02` "
        "sets the field `lr` of the dataclass in the field `optim`. `data`, `schedule` and the model of a `Config` "
        "must be given. This page is made from the dataclasses.\n"
    )
    found = [getattr(config, name) for name in config.__all__]  # some of them are loaded only when they are asked for
    kinds = [kind for kind in found if isinstance(kind, type) and is_dataclass(kind) and fields(kind)]
    kinds = [kind for kind in kinds if kind not in (config.Tap, config.Experiment)]
    for kind in sorted(kinds, key=lambda kind: not issubclass(kind, config.Experiment)):
        yield f"## {kind.__name__}\n\n{' '.join((kind.__doc__ or '').split())}\n"
        yield "| field | value | default | what it does |\n|---|---|---|---|"
        hints, texts = get_type_hints(kind), field_texts(kind)
        for field in fields(kind):
            every = (hints[field.name], *get_args(hints[field.name]))
            if parts := [
                part for part in kinds if any(isinstance(one, type) and issubclass(part, one) for one in every)
            ]:
                named = " or ".join(f"[{part.__name__}](#{part.__name__.lower()})" for part in parts)
                about = texts.get(field.name) or first_sentence(inspect.getdoc(parts[0]) or "") * (len(parts) == 1)
                yield f"| `{field.name}` | {named} | | {about} |"
        yield from (_row(flag) for flag in flags(kind) if not flag.group)
        yield ""


def _row(flag: Flag) -> str:
    value = f"`{flag.value}`" if flag.value else "on or off"
    cells = [f"`{flag.name.replace('-', '_')}`", value, f"`{flag.default}`" if flag.default else "", flag.text]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def code_page(folder: str) -> Iterator[str]:
    """The files of a folder themselves."""
    yield f"# {SHOWN[folder]}\n\nThese files lie in `{folder}` of a clone.\n"
    for path in sorted((ROOT / folder).rglob("*.py"), key=lambda path: (path.parent != ROOT / folder, path)):
        code = path.read_text(encoding="utf-8").rstrip()
        yield f"## {path.stem}\n\n`{path.relative_to(ROOT)}`\n\n```python\n{code}\n```\n"


def api_page() -> Iterator[str]:
    """What a program imports."""
    yield "# Python\n\n`import segmv3` gives these names. They are loaded when they are first used.\n"
    for name in segmv3.__all__:
        if name != "__version__" and f"segmv3.{name}" not in MODULES:
            yield f"::: segmv3.{name}\n"
            if name == "Config":
                yield "    options:\n      members: false\n\nIts fields are under [settings](settings.md#config).\n"
    for module in MODULES:
        import_module(module)
        yield f"::: {module}\n"


def parts_page() -> Iterator[str]:
    """What a part of your own derives from."""
    yield "# Parts of your own\n\n[Extend segmv3](../how-to/extend.md) shows how they are used.\n"
    yield from (f"::: {name}\n" for name in PARTS.split())


if __name__ == "__main__":
    main()
