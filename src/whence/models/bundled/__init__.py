"""Small trained models that ship with whence, and the generators of the texts they were trained on.

The texts come from grammars, so it is known which words of a continuation have exactly one right form and
which earlier words decide it. Importing this module loads no model library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from whence.models.bundled.catalog import NAMES, path, summary
from whence.models.bundled.example import Determined, Example, Side, Span
from whence.models.bundled.generate import Part, examples
from whence.models.bundled.tokens import DeterminedToken, determined_tokens

if TYPE_CHECKING:
    from whence.models.bundled.accuracy import Accuracy

__all__ = [
    "NAMES",
    "Determined",
    "DeterminedToken",
    "Example",
    "Part",
    "Side",
    "Span",
    "determined_tokens",
    "evaluate",
    "examples",
    "path",
    "summary",
]


def evaluate(name: str, n: int = 500, seed: int = 0) -> Accuracy:
    """Measure how often a shipped model predicts the determined tokens of held-out examples.

    Args:
        name: "stories" or "en-it", with or without "whence/" in front.
        n: Number of examples.
        seed: Seed of the examples.

    Returns:
        Right and all determined tokens, by kind.
    """
    # Here and not at the top: measuring needs torch, generating examples does not.
    from whence.models.bundled.accuracy import evaluate as measured

    return measured(name, n, seed)
