"""The Python reference: what it renders says what each parameter is, in a form that it can read."""

import sys
from collections.abc import Iterator
from pathlib import Path

import griffe
import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def package() -> griffe.Module:
    """The whole package as mkdocstrings reads it: nothing is imported."""
    quiet = griffe.GoogleOptions(warnings=False)
    found = griffe.load("segmv3", search_paths=[ROOT], docstring_parser="google", docstring_options=quiet)
    assert isinstance(found, griffe.Module)
    return found


@pytest.fixture
def rendered(package, monkeypatch) -> dict[str, griffe.Function]:
    """The functions and methods of the reference, by their paths."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
    import build_docs

    pages = [*build_docs.api_page(), *build_docs.parts_page()]
    roots = [line.removeprefix("::: segmv3.") for page in pages for line in page.splitlines() if line.startswith(":::")]
    return {found.path: found for root in roots for found in shown(package[root])}


def shown(found: griffe.Object | griffe.Alias) -> Iterator[griffe.Function]:
    """The functions that the page of an object shows: no names with an underscore but `__call__`, no modules in it."""
    if found.is_function:
        yield found
    elif found.is_module or found.is_class:
        for name, member in found.members.items():
            foreign = found.is_module and member.is_alias and not (found.exports and name in found.exports)
            if name == "__call__" or not (name.startswith("_") or foreign or member.is_module):
                yield from shown(member)


def documented(found: griffe.Object) -> Iterator[griffe.Object]:
    """All objects inside of one that have a docstring, private ones too."""
    for member in found.members.values():
        if not member.is_alias:
            if member.docstring:
                yield member
            yield from documented(member)


def parameters(function: griffe.Object) -> list[str]:
    """Of the signature."""
    return [parameter.name for parameter in function.parameters if parameter.name not in ("self", "cls")]


def described(function: griffe.Object) -> list[str]:
    """Those that its docstring describes."""
    sections = function.docstring.parsed if function.docstring else []
    return [one.name for part in sections if part.kind is griffe.DocstringSectionKind.parameters for one in part.value]


def test_the_reference_describes_every_parameter(rendered):
    assert len(rendered) > 60 and {"segmv3.load", "segmv3.Predictor.stream"} <= set(rendered)
    several = {path: function for path, function in rendered.items() if len(parameters(function)) > 1}
    assert len(several) > 40
    assert [path for path, function in several.items() if described(function) != parameters(function)] == []


def test_the_reference_has_no_section_on_one_line(rendered):
    sections = ("Args: ", "Returns: ", "Yields: ", "Raises: ", "Attributes: ")
    texts = {path: function.docstring.value for path, function in rendered.items() if function.docstring}
    assert [path for path, text in texts.items() if any(section in text for section in sections)] == []


def test_no_docstring_describes_parameters_on_one_line(package):
    assert [one.path for one in documented(package) if "Args: " in one.docstring.value] == []


def test_no_docstring_describes_a_parameter_that_is_not_there(package):
    functions = [one for one in documented(package) if one.is_function and described(one)]
    assert len(functions) > 100
    assert [one.path for one in functions if not set(described(one)) <= set(parameters(one))] == []
