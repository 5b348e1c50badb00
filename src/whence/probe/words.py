"""Ways that lead over words of the vocabulary, found where the embedding matrix is (Sanyal and Ren 2021).

These functions travel to remote places by their source (see `whence.models.programs` for the rules).

The way of a token w with reference b is a chain of words: from w, each next word is chosen among those nearest
to the last, so that little has to be moved to make the way monotone in every dimension. Its points are the
words so moved, between b and the token's own embedding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.models.access import resolve
from whence.models.programs import looked_up

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

# Words of the vocabulary that are compared at once, and numbers of candidates that are held at once.
BLOCK = 8192
MOST = 1 << 25


def word_ways(
    model: Any,
    run: dict[str, Any],
    embeds: list[dict[str, Any]],
    reference: dict[str, Any],
    asked: dict[str, Any],
) -> dict[str, Any]:
    """The ways of all tokens of a batch.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        embeds: The embedding leaves, one per stream.
        reference: The reference input.
        asked: ``anchors``, ``neighbors`` and ``strategy`` (see `whence.core.contract.Words`); for each stream
            ``vocabulary`` (its size); ``special`` (ids that are never chosen).

    Returns:
        ``tables``: per stream ``knots`` [way, knot, unit] (from the reference to the token) and ``which``
        [example, position], the way of each place, or -1 where it keeps its value. ``distance`` [example]:
        mean distance of the inner points of the ways to the nearest word.
    """
    inputs = run["inputs"]
    two_stacks = "decoder_input_ids" in inputs
    # Padding stands on the left of a decoder and on the right of an encoder: this place always holds a token.
    place = slice(0, 1) if two_stacks else slice(-1, None)
    least = {name: value[:1, place] for name, value in inputs.items()}
    if "position_ids" in least:
        # One token is a text of its own.
        least["position_ids"] = torch.zeros_like(least["position_ids"])
    ids = [inputs["input_ids"], inputs["decoder_input_ids"]] if two_stacks else [inputs["input_ids"]]
    tables, total, moved = [], torch.zeros(len(ids[0])), torch.zeros(len(ids[0]))
    with torch.no_grad(), model.trace(**least, use_cache=False):
        for leaf in embeds:
            stream = leaf["stream"]
            module = resolve(model, leaf["spec"]["path"])
            table, distance = stream_ways(
                module,
                ids[stream].cpu(),
                reference["values"][stream],
                reference["replace"][stream].cpu(),
                asked,
                stream,
            )
            tables.append(table)
            way = table["which"]
            total = total + torch.where(way < 0, 0.0, distance[way.clamp_min(0)]).sum(1)
            moved = moved + (way >= 0).sum(1)
    return {"tables": tables, "distance": total / moved.clamp_min(1)}


def stream_ways(
    module: Any,
    ids: Int[Tensor, "example position"],
    goal: Float[Tensor, "*place unit"],
    replace: Bool[Tensor, "example position"],
    asked: dict[str, Any],
    stream: int,
) -> tuple[dict[str, Tensor], Float[Tensor, " way"]]:
    """The ways of one stream: one per word where all have the same reference, else one per place."""
    which = torch.full(ids.shape, -1)
    if goal.dim() == 1:
        words, number = ids[replace].unique(return_inverse=True)
        goals = goal.expand(len(words), -1)
    else:
        words, number = ids[replace], torch.arange(int(replace.sum()))
        goals = goal[replace]
    which[replace] = number
    if not len(words):
        # Nothing moves here; a way that nobody takes keeps the shapes.
        words, goals = ids[:1, 0], goal.reshape(-1, goal.shape[-1])[:1]
    start = looked_up(module, words)
    goals = goals.to(start)
    knots, distances = [], []
    for part in torch.arange(len(words)).split(512):
        anchors = word_chain(module, words[part], goals[part], asked, asked["vocabulary"][stream])
        made = monotone_points(module, start[part], goals[part], anchors)
        knots.append(made)
        distances.append(word_distance(module, made[:, 1:-1], asked["vocabulary"][stream]))
    return {"knots": torch.cat(knots), "which": which}, torch.cat(distances).float().cpu()


def word_chain(
    module: Any, words: Int[Tensor, " way"], goals: Float[Tensor, "way unit"], asked: dict[str, Any], vocabulary: int
) -> Int[Tensor, "way anchor"]:
    """The words on each way, from the token on; -1 from where no candidate is left."""
    count = asked["anchors"]
    special = torch.tensor(sorted(asked["special"]), dtype=torch.long)
    chain = torch.full((len(words), count + 1), -1)
    chain[:, 0] = words
    for step in range(count):
        now = chain[:, step]
        alive = (now >= 0).nonzero()[:, 0]
        if not len(alive):
            break
        here = looked_up(module, now[alive])
        near = nearest_words(module, here, now[alive], asked["neighbors"], vocabulary)
        taken = torch.isin(near, special) | (near[..., None] == chain[alive, None, : step + 1]).any(-1)
        size = max(1, MOST // (near.shape[1] * here.shape[1]))
        for part in torch.arange(len(alive)).split(size):
            best = best_candidate(
                module, here[part], goals[alive[part]], near[part], taken[part], count, asked["strategy"], vocabulary
            )
            chain[alive[part], step + 1] = best
    return chain[:, 1:]


def nearest_words(
    module: Any, here: Float[Tensor, "way unit"], own: Int[Tensor, " way"], count: int, vocabulary: int
) -> Int[Tensor, "way near"]:
    """The ids of the nearest words, by Euclidean distance, without the word itself."""
    count = min(count, vocabulary - 1)
    sizes = here.new_zeros(len(own), 0)
    found = torch.zeros(len(own), 0, dtype=torch.long, device=here.device)
    for block in torch.arange(vocabulary).split(BLOCK):
        rows = looked_up(module, block)
        # |v - w|^2 without |w|^2, which is the same for all candidates.
        far = rows.square().sum(1) - 2 * here @ rows.T
        far = far.masked_fill((block[None, :] == own[:, None]).to(far.device), float("inf"))
        names = block.expand(len(own), -1).to(far.device)
        far, names = torch.cat([sizes, far], 1), torch.cat([found, names], 1)
        sizes, order = far.topk(min(count, far.shape[1]), dim=1, largest=False)
        found = names.gather(1, order)
    return found.cpu()


def best_candidate(
    module: Any,
    here: Float[Tensor, "way unit"],
    goals: Float[Tensor, "way unit"],
    near: Int[Tensor, "way near"],
    taken: Bool[Tensor, "way near"],
    count: int,
    strategy: str,
    vocabulary: int,
) -> Int[Tensor, " way"]:
    """The next word of each way: that which is moved least or most monotone; of equals, that of smaller id; or -1."""
    rows = looked_up(module, near.flatten()).view(*near.shape, -1)
    here, goals, near = here[:, None], goals[:, None], near.to(rows.device)
    inside = between(rows, here, goals)
    moved = torch.where(inside, torch.zeros_like(rows), rows - stepped(here, goals, count)).norm(dim=-1)
    # The reference's own word is no stop on the way to it.
    good = ~taken.to(rows.device) & ~(rows == goals).all(-1)
    if strategy == "maxcount":
        score = torch.where(good, inside.sum(-1), -1)
        good = good & (score == score.amax(1, keepdim=True))
    moved = moved.masked_fill(~good, float("inf"))
    good = good & (moved == moved.amin(1, keepdim=True))
    best = torch.where(good, near, vocabulary).amin(1)
    return torch.where(best == vocabulary, -1, best).cpu()


def monotone_points(
    module: Any,
    start: Float[Tensor, "way unit"],
    goals: Float[Tensor, "way unit"],
    anchors: Int[Tensor, "way anchor"],
) -> Float[Tensor, "way knot unit"]:
    """The points of each way, from its reference to its token; each dimension only ever moves one way."""
    points = [start]
    for step in range(anchors.shape[1]):
        rows = looked_up(module, anchors[:, step].clamp_min(0))
        rows = torch.where((anchors[:, step] < 0)[:, None].to(rows.device), goals, rows)
        last = points[-1]
        points.append(torch.where(between(rows, last, goals), rows, stepped(last, goals, anchors.shape[1])))
    return torch.stack([goals, *points[::-1]], dim=1)


def between(rows: Tensor, here: Tensor, goals: Tensor) -> Bool[Tensor, "..."]:
    """In which dimensions a word lies between a point and the reference, inclusive."""
    return (rows >= torch.minimum(here, goals)) & (rows <= torch.maximum(here, goals))


def stepped(here: Tensor, goals: Tensor, count: int) -> Tensor:
    """One of ``count`` equal steps towards the reference, and never beyond it by rounding."""
    made = here - (here - goals) / count
    return torch.maximum(torch.minimum(made, torch.maximum(here, goals)), torch.minimum(here, goals))


def word_distance(module: Any, points: Float[Tensor, "way point unit"], vocabulary: int) -> Float[Tensor, " way"]:
    """Mean distance of the points of each way to the nearest word."""
    nowhere = torch.full((points[:, 0].shape[0],), -1)
    far = torch.stack(
        [
            (looked_up(module, nearest_words(module, points[:, k], nowhere, 1, vocabulary)[:, 0]) - points[:, k]).norm(
                dim=-1
            )
            for k in range(points.shape[1])
        ]
    )
    return far.mean(0)


def along_words(
    table: dict[str, Tensor],
    examples: Int[Tensor, " row"],
    at: Float[Tensor, " row"],
    clean: Float[Tensor, "row position unit"],
) -> Float[Tensor, "row position unit"]:
    """Where each row stands on the ways of its tokens; exactly the clean value at 1, and where nothing moves."""
    knots, which = table["knots"], table["which"][examples]
    place = at * (knots.shape[1] - 1)
    below = place.floor().clamp(0, knots.shape[1] - 2).long()
    share = (place - below).to(knots)[:, None, None]
    way, below = which.clamp_min(0).to(knots.device), below[:, None].to(knots.device)
    first, second = knots[way, below], knots[way, below + 1]
    point = (first + share * (second - first)).to(clean)
    still = (which < 0)[..., None] | (at == 1)[:, None, None]
    return torch.where(still.to(clean.device), clean, point)
