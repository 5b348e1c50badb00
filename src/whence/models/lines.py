"""Lines of source code, by what they say."""

from __future__ import annotations

import ast
import textwrap


def quoted(code: str, text: str) -> list[int]:
    """The numbers, from 1, of the lines that read like a quoted one.

    Args:
        code: Source code.
        text: The whole line without indentation and comment, or its beginning up to an opening parenthesis.

    Returns:
        The line numbers, in order.
    """
    lines = [line.split("  #")[0].strip() for line in code.split("\n")]
    return [
        number
        for number, line in enumerate(lines, start=1)
        if line == text or (text.endswith("(") and line.startswith(text))
    ]


def calls_in_order(code: str) -> list[str]:
    """The attributes of ``self`` that a method calls, each once, in the order in which they are first called.

    Args:
        code: Source code of the method.

    Returns:
        Their names.
    """
    names: list[str] = []

    def visit(node: ast.AST) -> None:
        # A call's arguments are evaluated, and may call something, before the call.
        for child in ast.iter_child_nodes(node):
            visit(child)
        function = getattr(node, "func", None)
        if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
            names.append(function.attr)

    visit(ast.parse(textwrap.dedent(code)))
    return list(dict.fromkeys(names))
