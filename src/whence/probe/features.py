"""Features (tokens or segments of them) on the padded token axis: which there are, who sees them, which can change."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from whence.probe.baseline import Baseline
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


def outside_features(
    batch: Batch, of: Int[Tensor, "example token"], count: int
) -> Bool[Tensor, "example column feature"]:
    """Which features each column looks at from outside.

    Args:
        batch: The sequences.
        of: The feature of each place, or -1.
        count: How many features the longest sequence has.

    Returns:
        True where some step of the column comes after the feature's first token and is not read from inside it.
    """
    import torch

    places = torch.arange(batch.width)
    query = batch.query + batch.offsets[-1]
    # Everything in a stream before the last is there for every step.
    first = torch.full((len(of), count + 1), batch.width)
    first.scatter_reduce_(1, torch.where(of < 0, count, of), places.expand_as(of), "amin")
    first = torch.where(first < batch.offsets[-1], 0, first)[:, None, :count]
    inside = of.gather(1, query)[:, :, None] == torch.arange(count)
    outside = (first <= query[:, :, None]) & ~inside
    return ((batch.columns > 0)[..., None] & outside[:, None]).any(2)


def feature_streams(batch: Batch, of: Int[Tensor, "example token"], count: int) -> Int[Tensor, "example feature"]:
    """The stream that each feature begins in, or -1.

    Args:
        batch: The sequences.
        of: The feature of each place, or -1.
        count: How many features the longest sequence has.

    Returns:
        One stream per feature.
    """
    import torch

    many = len(batch.widths)
    stream_of = torch.arange(many).repeat_interleave(torch.tensor(batch.widths)).expand_as(of)
    found = torch.full((len(of), count + 1), many)
    found.scatter_reduce_(1, torch.where(of < 0, count, of), stream_of, "amin")
    return torch.where(found == many, -1, found)[:, :count]


def coarser_features(groups: Groups, wholes: Groups) -> Int[Tensor, "example feature"]:
    """Which group of another partition holds the first token of each feature.

    Args:
        groups: For each sequence, its features as lists of token indices.
        wholes: For each sequence, the other partition.

    Returns:
        The number of the group; -1 for features that only other sequences have.
    """
    import torch

    found = torch.full((len(groups), max(map(len, groups))), -1)
    for row, (features, parts) in enumerate(zip(groups, wholes, strict=True)):
        number = {token: part for part, members in enumerate(parts) for token in members}
        found[row, : len(features)] = torch.tensor([number[members[0]] for members in features])
    return found


def at_baseline(batch: Batch, baseline: Baseline) -> Bool[Tensor, "example token"]:
    """Which places hold the token that they would be replaced by, so that replacing them is nothing."""
    import torch

    ids = torch.full((len(batch.sequences), batch.width), -1)
    other = torch.full_like(ids, -2)
    for row, (one, slots) in enumerate(zip(batch.sequences, batch.slots, strict=True)):
        ids[row, slots] = torch.tensor([token.id for token in one.tokens])
        for stream, record in enumerate(baseline.record):
            if record["kind"] == "text":
                other[row, slots[: len(record["ids"])]] = torch.tensor(record["ids"])
            elif record["kind"] == "token":
                begin = batch.offsets[stream]
                other[row, begin : begin + batch.widths[stream]] = record["id"]
    return ids == other
