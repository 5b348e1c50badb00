"""Attributions made up for tests: plausible texts, seeded scores, NaN where a step cannot look."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from whence.core.tokens import Token
from whence.scores import Attribution, Axis, Check, Scores

SOURCE = (
    "<s>| The| young| manager| of| the| old| bank| in| the| village| closed| her| office| early|,| took| her"
    "| um|brella| and| went| home|,| because"
)
OUTPUT = " she| was| ill| and| the| storm| had| already| flooded| the| road|."


def tokens_of(pieces: Sequence[str], side: str, first_id: int = 0) -> list[Token]:
    """Tokens with running character offsets."""
    made, at = [], 0
    for k, piece in enumerate(pieces):
        special = piece.startswith("<")
        made.append(
            Token(first_id + k, piece, at, at + len(piece), side, special=special, fixed=special)  # type: ignore[arg-type]
        )
        at += len(piece)
    return made


def make(
    source: Sequence[str] = tuple(SOURCE.split("|")),
    output: Sequence[str] = tuple(OUTPUT.split("|")),
    *,
    extra: dict[str, int] | None = None,
    magnitude: float = 0.06,
    signed: bool = True,
    seed: int = 0,
    checks: tuple[Check, ...] = (Check("completeness", 3.1e-5, 0.02, True), Check("no-op", 0.0, 1e-5, True)),
    **info: object,
) -> Attribution:
    """An attribution of a decoder-only model: step t sees the source and the t tokens before it."""
    sizes = extra or {}
    prompt, steps = tokens_of(source, "source"), tokens_of(output, "prefix", 500)
    tokens = [*prompt, *steps[:-1]]
    random = np.random.default_rng(seed)
    shape = (len(steps), len(tokens), *sizes.values())
    values = (random.standard_normal(shape) ** 3 * magnitude).astype(np.float32)
    values = values if signed else np.abs(values)
    for k, token in enumerate(tokens):
        if token.fixed:
            values[:, k] = 0
    for step in range(len(steps)):
        values[step, len(prompt) + step :] = np.nan
    labels = {"step": [t.text for t in steps], "token": [t.text for t in tokens]}
    labels |= {name: [str(k) for k in range(size)] for name, size in sizes.items()}
    return Attribution(
        Scores(values, tuple(Axis(name, tuple(texts)) for name, texts in labels.items())),
        tuple(tokens),
        tuple(steps),
        {"probability": random.uniform(0.05, 1, len(steps)).astype(np.float32)},
        checks,
        {"method": "integrated_gradients", "target": "probability", "model": "gpt2", **info},
    )
