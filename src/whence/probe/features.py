"""Features (tokens or segments of them) on the padded token axis: which there are, who sees them, which can change."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from whence.probe.batch import Batch

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

Groups = Sequence[list[list[int]]]


def feature_of(batch: Batch, groups: Groups) -> Int[Tensor, "example token"]:
    """The feature of each place of the padded token axis, or -1."""
    import torch

    of = torch.full((len(groups), batch.width), -1)
    for row, features in enumerate(groups):
        for feature, members in enumerate(features):
            of[row, batch.slots[row][members]] = feature
    return of


def defined_features(
    batch: Batch, groups: Groups, asked: Sequence[Sequence[bool]], streams: Set[int]
) -> Bool[Tensor, "example column feature"]:
    """Which features each column can look at: by causality, by the sides asked for, by the streams of the sites.

    Args:
        batch: The sequences.
        groups: For each sequence, its features as lists of token indices.
        asked: For each sequence and token, whether its side is asked for.
        streams: The streams that have scores.

    Returns:
        False also for features and columns that only other sequences have.
    """
    import torch

    last, start = batch.last_seen(), batch.offsets[-1]
    stream_of = torch.arange(len(batch.widths)).repeat_interleave(torch.tensor(batch.widths))
    found = torch.zeros(*last.shape, max(len(features) for features in groups), dtype=torch.bool)
    for row, features in enumerate(groups):
        for feature, members in enumerate(features):
            first = int(batch.slots[row][members[0]])
            if asked[row][members[0]] and int(stream_of[first]) in streams:
                found[row, :, feature] = (first < start) | (first <= last[row])
    return found & batch.valid[:, :, None]


def free_features(
    of: Int[Tensor, "example token"], changeable: Bool[Tensor, "example token"], count: int
) -> Bool[Tensor, "example feature"]:
    """Which features have a token that may change.

    Args:
        of: The feature of each place, or -1.
        changeable: Which places may change.
        count: How many features the longest sequence has.

    Returns:
        One flag per feature.
    """
    import torch

    found = torch.zeros(len(of), count + 1, dtype=torch.bool)
    found.scatter_(1, torch.where(changeable, of, count), True)
    return found[:, :count]
