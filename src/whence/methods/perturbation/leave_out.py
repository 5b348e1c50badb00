"""What the target loses when features are left out: the arithmetic of occlusion and of its kin."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from whence.core.contract import Answer, Probe, Removal
from whence.methods.perturbation.variants import make_answer, players, removed_values

if TYPE_CHECKING:
    from jaxtyping import Bool, Int


def leave_out(
    probe: Probe,
    *,
    removal: Removal,
    window: int = 1,
    stride: int = 1,
    share: Literal["mean", "split"] = "mean",
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
) -> Answer:
    """Scores of features by what the target loses without the windows that they are in.

    Args:
        probe: Whom to ask.
        removal: How features are removed.
        window: Features that are removed together.
        stride: Features from one window to the next.
        share: Whether a feature's score is the mean over its windows of the whole loss, or of its equal share.
        layers: Blocks in which features are knocked out; None is all.
        heads: Heads in which features are knocked out; None is all.

    Returns:
        The answer.
    """
    counted = players(probe)
    streams = probe.streams.numpy()
    rows = []
    for row, able in enumerate(np.any(counted, axis=1)):
        found = windows(streams[row], window, stride)
        found = found[(found & able).any(1)]
        # A row that removes nothing comes first: it is what the others are compared with.
        rows.append(np.concatenate([np.zeros((1, len(able)), dtype=bool), found & able]))
    values = removed_values(probe, rows, removal=removal, layers=layers, heads=heads)
    scores = []
    for example, (removed, found) in enumerate(zip(rows, values, strict=True)):
        lost = found[0] - found[1:]
        inside = removed[1:, None, :] & counted[example]
        weight = inside.astype(float)
        if share == "split":
            weight /= np.maximum(inside.sum(-1, keepdims=True), 1)
        over = np.maximum(inside.sum(0), 1)
        total = np.einsum("rcf,rc...->cf...", weight, lost)
        scores.append(total / over.reshape(*over.shape, *(1,) * (total.ndim - 2)))
    return make_answer(
        probe,
        np.stack(scores),
        clean=np.stack([found[0] for found in values]),
        removal=removal,
        each={"variants": [len(found) - 1 for found in rows]},
    )


def windows(streams: Int[np.ndarray, " feature"], window: int, stride: int) -> Bool[np.ndarray, "row feature"]:
    """Windows over the features of each stream, in order, until every feature is in one.

    Args:
        streams: The stream of each feature, -1 for none.
        window: Features in a window; the last one of a stream may be cut short.
        stride: Features from one window to the next, at most `window`.

    Returns:
        True where a window has a feature.
    """
    made = []
    for stream in range(streams.max(initial=-1) + 1):
        members = np.flatnonzero(streams == stream)
        for start in range(0, max(len(members) - window, 0) + stride, stride):
            row = np.zeros(len(streams), dtype=bool)
            row[members[start : start + window]] = True
            made.append(row)
    return np.array(made, dtype=bool).reshape(-1, len(streams))
