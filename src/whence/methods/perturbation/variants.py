"""What perturbation methods share: who may be removed, all rows in one request, and the answer made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whence.core.contract import Answer, Gap, Probe, Removal

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

_TINY = 1e-12


def players(probe: Probe) -> Bool[np.ndarray, "batch column feature"]:
    """The features that count for each column: it can look at them, and removing them changes something."""
    return (probe.defined & probe.free[:, None]).numpy()


def removed_values(
    probe: Probe,
    removed: Sequence[Bool[np.ndarray, "row feature"]],
    *,
    removal: Removal,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> list[Float[np.ndarray, "row column *layer"]]:
    """Values of every column with features removed; all examples in one request, equal rows run once.

    Args:
        probe: Whom to ask.
        removed: For each example, its rows.
        removal: How features are removed.
        layers: Blocks in which they are knocked out; None is all.
        heads: Heads in which they are knocked out; None is all.

    Returns:
        For each example, the values of its rows, in float64; of a divergence the negative, so that what is lost without
        a feature is how far the distributions move.
    """
    import torch

    found = [np.unique(rows, axis=0, return_inverse=True) for rows in removed]
    counts = [len(rows) for rows, _ in found]
    values = probe.respond(
        torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)),
        torch.from_numpy(np.concatenate([rows for rows, _ in found])),
        removal=removal,
        layers=layers,
        heads=heads,
    )
    signed = -values if probe.divergence else values
    parts = np.split(signed.double().numpy(), np.cumsum(counts)[:-1])
    return [part[where.reshape(-1)] for part, (_, where) in zip(parts, found, strict=True)]


def make_answer(
    probe: Probe,
    scores: Float[np.ndarray, "batch column feature *layer"],
    *,
    clean: Float[np.ndarray, "batch column *layer"],
    removal: Removal,
    error: Float[np.ndarray, "batch column feature"] | None = None,
    gaps: tuple[Gap, ...] = (),
    record: Mapping[str, Any] | None = None,
    each: Mapping[str, Sequence[Any]] | None = None,
) -> Answer:
    """The answer of a method that removes features, with the checks that all of them carry.

    Args:
        probe: Who was asked.
        scores: The scores.
        clean: Values of the row of each example that removes nothing.
        removal: How features were removed.
        error: Standard errors.
        gaps: The method's own identities.
        record: Plain data on how they were computed.
        each: Plain data on the computation of each example.

    Returns:
        The answer. Where attention was knocked out, a step that is read from inside a feature has no score for
        it: what a token knows of itself was not cut.
    """
    import torch

    layered = clean.ndim > 2
    here = probe.here.double().numpy()
    moved = np.abs(clean - (here[..., None] if layered else here))
    sizes = np.abs(scores).sum(2)
    sizes, moved = (sizes.max(-1), moved.max(-1)) if layered else (sizes, moved)
    scale = np.maximum(np.maximum(np.abs(here), sizes), _TINY)
    noop = Gap(
        "no-op", torch.from_numpy(moved), torch.from_numpy(scale), "exact", "a row that removes nothing, clean input"
    )
    idle = (probe.defined.any(1) & ~probe.free).numpy()
    return Answer(
        torch.from_numpy(scores),
        axes=("layer",) * layered,
        labels={"layer": probe.layer_labels} if layered else {},
        gaps=(noop, *gaps),
        record={"removal": removal, **(record or {})},
        defined=probe.outside | ~probe.free[:, None] if removal == "knockout" else None,
        error=None if error is None else torch.from_numpy(error),
        # Fixed tokens, and such as stand at the baseline already.
        each={"inert": [np.flatnonzero(row).tolist() for row in idle], **(each or {})},
    )


def shares_gap(
    scores: Float[np.ndarray, "batch column feature"],
    full: Float[np.ndarray, "batch column"],
    empty: Float[np.ndarray, "batch column"],
) -> Gap:
    """How far scores are from summing to what all features together do.

    Args:
        scores: The scores.
        full: Values with every feature there.
        empty: Values with every feature removed.

    Returns:
        The identity of Shapley values: efficiency, or completeness.
    """
    import torch

    gap = np.abs(scores.sum(-1) - (full - empty))
    scale = np.maximum.reduce([np.abs(full), np.abs(empty), np.abs(scores).sum(-1), np.full_like(gap, _TINY)])
    note = "sum of scores against f(x) - f(nothing)"
    return Gap("completeness", torch.from_numpy(gap), torch.from_numpy(scale), "exact", note)


def by_step(probe: Probe, values: Sequence[Sequence[Any]]) -> list[list[Any]]:
    """Numbers of each column of each example, without the columns that only other examples have."""
    counts = (probe.columns > 0).any(-1).sum(-1).tolist()
    return [list(row[:count]) for row, count in zip(values, counts, strict=True)]
