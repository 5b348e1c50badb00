"""Seeded examples from the two grammars, in a training part and a held-out part that never meet."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from typing import Literal

from whence.core.errors import InputError
from whence.models.bundled.catalog import plain_name
from whence.models.bundled.example import Example
from whence.models.bundled.stories import story
from whence.models.bundled.translation import sentence

Part = Literal["held-out", "training"]

GRAMMARS: dict[str, Callable[[random.Random], tuple[Example, str]]] = {"stories": story, "en-it": sentence}

# One set of facts in this many belongs to the held-out part.
SHARE = 10


def _part(facts: str) -> Part:
    return "held-out" if zlib.crc32(facts.encode()) % SHARE == 0 else "training"


def examples(name: str, n: int, seed: int, *, part: Part = "held-out") -> Iterator[Example]:
    """Generate examples whose determined words are known.

    Example number i depends on the name, the seed and the part, not on `n`.

    Args:
        name: "stories" or "en-it", with or without "whence/" in front.
        n: How many examples.
        seed: Any integer.
        part: "held-out" for examples the model never saw, "training" for the stream it was trained on.

    Returns:
        An iterator over the examples.

    Raises:
        UnknownNameError: When no model has this name.
        InputError: When `n` is negative or the part is unknown.
    """
    plain = plain_name(name)
    if n < 0:
        raise InputError(f"asked for {n} examples; n must be 0 or more.")
    if part not in ("held-out", "training"):
        raise InputError(f"unknown part {part!r}; use 'held-out' or 'training'.")
    return (_example(plain, part, seed, index) for index in range(n))


def _example(name: str, part: Part, seed: int, index: int) -> Example:
    rng = random.Random(f"{name}/{part}/{seed}/{index}")
    while True:
        example, facts = GRAMMARS[name](rng)
        if example.determined and _part(facts) == part:
            return example
