"""The fold of FlashTrace: a weighted span of steps traced as one, and what it finds traced again.

What a trace needs of every layer (values, the attention of the rows of interest, the stream there) is kept during
the one forward pass; every hop goes over it again. Travels by its source (see `whence.models.programs`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.methods.internals.composition import identity_map, mean_weights, note
from whence.methods.internals.flow_fold import closed_block, flow_on, flow_shares, tokens_of
from whence.probe.branches import part_vectors, real_rows, rebuilding_gap

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def trace_fold(model: Any, state: dict[str, Any], stage: dict[str, Any], values: dict[str, Tensor]) -> None:
    """One attention module; after the last, the traces.

    Args:
        model: The nnsight model.
        state: See `whence.probe.observe.fold_stages`; ``data`` has ``hops``, ``threshold``, ``widths``, and for every
            example of the batch ``reasoning``, ``ignored`` and ``observed`` [example, token], of which the last may be
            None: all but the reasoning and the span. Found are ``scores``, ``hop_0``, ``hop_1``, ... [example, column,
            token], ``rebuilding`` and ``flat`` [example].
        stage: The stage.
        values: Its values.
    """
    run, facts = state["run"], stage["facts"]
    inside = facts["stack"] == "encoder"
    if "rows" not in state:
        _choose_rows(state)
    rows = None if inside else state["rows"].clamp_min(0)
    block = closed_block(model, state, stage, values, rows)
    if block is None:
        return
    note(state, "rebuilding", rebuilding_gap(block, real_rows(run, stage) if inside else None))
    if inside:
        flow_on(state, stage, block)
    else:
        # The vectors are made again for every hop: they are as many times as long as there are heads.
        parts = [{**part, "vectors": None} for part in block["parts"]]
        state.setdefault("blocks", []).append({**block, "parts": parts})
    if facts["last"]:
        _hops(model, state)


def _choose_rows(state: dict[str, Any]) -> None:
    """The positions whose rows can have a weight, and which tokens each column passes on or leaves out."""
    data, run = state["data"], state["run"]
    query, columns = run["query"], run["columns"]
    start = sum(data["widths"][:-1])
    place = torch.arange(sum(data["widths"])) - start
    asked = columns > 0
    first = torch.where(asked, query[:, None], data["widths"][-1]).amin(-1)
    reasoning = data["reasoning"][state["examples"]]
    own = (asked[..., None] & (place == query[:, None, :, None] + 1)).any(2)
    state["passes"] = reasoning[:, None] & (place <= first[..., None])
    given = data["observed"]
    state["observed"] = ~(state["passes"] | own) if given is None else given[state["examples"]][:, None]
    needed = torch.zeros(len(query), data["widths"][-1], dtype=torch.bool)
    needed.scatter_(1, query, True)
    needed |= reasoning[:, start:].roll(-1, 1) & (place[start:] < data["widths"][-1] - 1)
    order = torch.arange(data["widths"][-1]).expand_as(needed)
    rows = torch.where(needed, order, data["widths"][-1]).sort(1).values[:, : int(needed.sum(1).max())]
    # Shorter examples have rows that are nobody's.
    rows = torch.where(rows < data["widths"][-1], rows, -1)
    state["rows"] = rows
    state["steps"] = (query[..., None] == rows[:, None]).to(columns)
    state["moves"] = (place[:, None] - 1 == rows[:, None]).to(columns)


def _hops(model: Any, state: dict[str, Any]) -> None:
    """The trace of each column, and the traces of what it found in the reasoning."""
    data, found = state["data"], state["found"]
    like = state["blocks"][0]["total"].cpu()
    moves, passes, observed = (state[name].to(like) for name in ("moves", "passes", "observed"))
    heard = (~data["ignored"][state["examples"]]).to(like)
    weights = (mean_weights(state["run"]["columns"]) @ state["steps"]).to(like)
    scores, share = 0, 1
    tiny = torch.finfo(like.dtype).tiny
    for hop in range(data["hops"] + 1):
        trace = _trace(model, state, weights) * heard[:, None]
        found[f"hop_{hop}"] = trace
        scores = scores + share * trace * observed
        passed = trace * passes
        mass = passed.sum(-1, keepdim=True)
        share = share * mass / trace.sum(-1, keepdim=True).clamp_min(tiny)
        weights = passed / mass.clamp_min(tiny) @ moves
    found["scores"] = scores


def _trace(
    model: Any, state: dict[str, Any], weights: Float[Tensor, "batch column row"]
) -> Float[Tensor, "batch column token"]:
    """The direct edges into weighted sums of rows, over all layers."""
    total = None
    for block in state["blocks"]:
        sums = summed_rows(model, block, weights.to(block["total"].device))
        keys, rest = flow_shares(state, sums, weights.sum(-1) > 0)
        found = tokens_of(state, keys, identity_map(state, "decoder", rest)).cpu()
        total = found if total is None else total + found
    assert total is not None
    return total


def summed_rows(model: Any, block: dict[str, Any], weights: Float[Tensor, "batch column row"]) -> dict[str, Any]:
    """A block whose rows are weighted sums of another's rows.

    Args:
        model: The nnsight model.
        block: A block whose parts may lack their vectors.
        weights: The weight of each row in each sum.

    Returns:
        The block.
    """
    parts = [
        {
            **part,
            "weights": torch.einsum("bcr,bhrk->bhck", weights, part["weights"]),
            "vectors": part_vectors(model, part),
        }
        for part in block["parts"]
    ]
    return {"parts": parts, **{name: weights @ block[name] for name in ("residual", "bias", "total")}}
