"""The line budget. The numbers below may only fall: who makes the code smaller writes the smaller number here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import segmv3

WHEEL_LINES = 42_218
"""Of Python in the wheel; the aim is 18,500."""
FILE_LINES = 400
"""Of the longest file."""
FUNCTION_LINES = 60
"""Of the longest function, compiled kernels apart."""

PACKAGE = Path(segmv3.__file__).parent
COMPILED = ("_compiled", "njit", "jit", "intrinsic")


def sources() -> dict[str, str]:
    return {str(path.relative_to(PACKAGE)): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All that are not compiled, nor inside one that is."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if any(word in ast.unparse(mark) for mark in node.decorator_list for word in COMPILED):
                continue
            yield node
        yield from functions(node)


def test_the_wheel_keeps_the_line_budget():
    assert sum(text.count("\n") for text in sources().values()) <= WHEEL_LINES


def test_no_file_is_too_long():
    assert {name: lines for name, text in sources().items() if (lines := text.count("\n")) > FILE_LINES} == {}


def test_no_function_is_too_long():
    too_long = {
        f"{name}: {node.name}": lines
        for name, text in sources().items()
        for node in functions(ast.parse(text))
        if (lines := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    }
    assert too_long == {}
