"""Reverse mode: one retained graph, the unembedding differentiated once, then products in batches.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.core.errors import UnsupportedError
from whence.probe.cotangents import cotangents, every_step
from whence.probe.paired import differentiable_rows
from whence.probe.path import advance, all_stands, passes_clean, some_stands, stand
from whence.probe.rows import all_places, at_steps, column_values, leaf_order, step_places
from whence.probe.totals import finish, fold_steps, new_result, norm_over_units, put_rows, takes_norm_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor


def reverse_products(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    groups: list[list[dict[str, Any]]],
    question: dict[str, Any],
) -> list[dict[str, Any]]:
    """Vector-Jacobian products of all columns at all points.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        state: Shared state (see `whence.probe.path`).
        groups: The leaves of each layer that one pass answers for.
        question: See `whence.probe.differentiate`.

    Returns:
        For each layer a result (see `whence.probe.totals`), with ``leak`` (the largest value where a column cannot
        look), ``dots`` (the product with the whole displacement at the last point, and the same with absolute
        values), ``at_clean`` (targets where the point is the input, or None), and what `keep_last` notes.
    """
    asked = run
    if question["of"] == "fisher":
        # Squares of sums are not sums of squares, so every step has a column of its own until the end.
        asked = {**run, "columns": every_step(run)}
        last = run["query"] + state["features"]["start"]
        state = {**state, "features": {**state["features"], "last": last}}
    count, columns = asked["columns"].shape[:2]
    stands = all_stands(question, state["features"], count)
    leaves = sorted([leaf for group in groups for leaf in group], key=leaf_order)
    found = [new_result(count, columns, question) for _ in groups]
    at_clean = torch.zeros(count, run["columns"].shape[1], dtype=torch.float64)
    extra: dict[str, Tensor] = {}
    for part in torch.arange(len(stands["examples"])).split(question["rows"]):
        some = some_stands(stands, part)
        graph = build_graph(model, asked, score, state, leaves, some, question, shared=len(groups) > 1)
        state["counts"]["rows"] += len(part)
        advance(question, len(part))
        here = (some["at"] == 1).nonzero()[:, 0]
        who = some["examples"][here]
        at_clean.index_copy_(0, who, column_values(run, who, graph["steps"][here]))
        keep_last(extra, asked, question, some, graph, count)
        chunks = torch.arange(columns).split(question["products"])
        batches = [(head, chunk) for head in graph["heads"] for chunk in chunks]
        for number, (head, chunk) in enumerate(batches):
            grads = torch.autograd.grad(
                graph["hidden"],
                graph["leaves"],
                graph["spread"][:, chunk].transpose(0, 1).unsqueeze(-1) * head,
                is_grads_batched=True,
                retain_graph=number < len(batches) - 1,
                allow_unused=True,
            )
            by_key = {leaf["key"]: grad for leaf, grad in zip(leaves, grads, strict=True)}
            for result, group in zip(found, groups, strict=True):
                parts = contract(state, group, by_key, graph["moves"], some["examples"], chunk, question)
                put_rows(result, question, parts, some, chunk)
            state["counts"]["vjps"] += len(chunk) * len(part)
            advance(question, len(chunk) * len(part))
    if question["of"] == "fisher":
        found = [fold_steps(result, run["columns"]) for result in found]
    seen = at_clean if passes_clean(state, question) else None
    return [{**finish(result, question), **extra, "at_clean": seen} for result in found]


def keep_last(
    extra: dict[str, Tensor],
    run: dict[str, Any],
    question: dict[str, Any],
    stands: dict[str, Tensor],
    graph: dict[str, Any],
    count: int,
) -> None:
    """Note what the checks need of the rows at the last point, where something else than the target is differentiated.

    ``states`` [example, step, unit]: what the last hidden states were multiplied with, in all; ``residual``
    [example, 2, step]: how far directions were from being eigenvectors, and the largest eigenvalue.
    """
    if question["of"] == "target":
        return
    last = (stands["sample"] == question["samples"][-1]).nonzero()[:, 0]
    states = at_steps(run, stands["examples"], torch.stack(graph["heads"]).sum(0))
    parts = {"states": states[last]}
    if graph["residual"] is not None:
        rows = torch.arange(len(stands["examples"]))[:, None]
        places = step_places(run, stands["examples"], graph["residual"].shape[2])
        parts["residual"] = graph["residual"].cpu()[:, rows, places][:, last].transpose(0, 1)
    for name, values in parts.items():
        extra.setdefault(name, values.new_zeros(count, *values.shape[1:]))
        extra[name].index_copy_(0, stands["examples"][last].to(values.device), values)


def build_graph(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    leaves: list[dict[str, Any]],
    stands: dict[str, Tensor],
    question: dict[str, Any],
    shared: bool,
) -> dict[str, Any]:
    """One forward pass with its graph kept, and the unembedding differentiated once for all steps.

    The logits of a step depend on the hidden state of one position only, so the gradient of the sum of all
    steps with respect to what enters the unembedding holds every step's own gradient at its position.
    """
    moves: dict[str, Tensor] = {}
    edit = leaf_edit(state, stands, moves, shared)
    examples = stands["examples"]
    with torch.enable_grad():
        out = differentiable_rows(model, run, score, state, leaves, stands, edit)
        steps = out["steps"]
        if not steps.requires_grad:
            raise UnsupportedError("the target does not depend on the input through anything differentiable.")
        heads, residual = cotangents(run, examples, out, steps, question)
    # A step's weight at the position whose logits predict it, and nowhere else.
    columns, (rows, kept) = run["columns"].shape[1], out["hidden"].shape[:2]
    spread = torch.zeros(rows, columns, kept, dtype=heads[0].dtype, device=heads[0].device)
    places = all_places(run, examples, kept).to(spread.device)
    mine, times = spread[: len(places)], len(places) // len(examples)
    weights = run["columns"][examples].to(spread).repeat(times, 1, 1)
    mine.scatter_add_(2, places[:, None, :].expand(-1, columns, -1), weights)
    return {
        "leaves": out["values"],
        "hidden": out["hidden"],
        "heads": heads,
        "residual": residual,
        "spread": spread,
        "moves": moves,
        "steps": steps.detach().double().cpu(),
    }


def leaf_edit(
    state: dict[str, Any], stands: dict[str, Tensor], moves: dict[str, Tensor], shared: bool
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that puts sites at a point of their path and makes them leaves of the graph.

    Where one pass serves several layers, only the first is a leaf; the others hang on it, and a gradient
    with respect to a value in the middle of a graph is what is wanted.
    """
    started: list[str] = []

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        point, moves[leaf["key"]] = stand(state, leaf, stands, value)
        if started and shared:
            return value
        started.append(leaf["key"])
        return point.detach().requires_grad_(True)

    return edit


def contract(
    state: dict[str, Any],
    group: list[dict[str, Any]],
    grads: dict[str, Tensor | None],
    moves: dict[str, Tensor],
    examples: Int[Tensor, " row"],
    columns: Int[Tensor, " column"],
    question: dict[str, Any],
) -> tuple[Tensor, Float[Tensor, "column row"], Float[Tensor, "two column row"]]:
    """Reduce the gradients of one layer to the numbers that are wanted.

    Returns:
        [column, row, token or feature (, unit)]; the largest value where a column cannot look; and the
        product with the whole displacement, with its absolute counterpart.
    """
    features = state["features"]
    reduce, width = question["reduce"], features["width"]
    parts = []
    pairs = []
    for leaf in group:
        grad = grads[leaf["key"]]
        moved = moves[leaf["key"]].flatten(2)
        if grad is None:
            grad = moved.new_zeros(len(columns), *moved.shape)
        # Rows beyond these are their references (see `whence.probe.paired`).
        grad = grad.flatten(3)[:, : len(examples)]
        product = (grad * moved).sum(-1) if reduce != "units" else grad * moved
        whole = product.sum(-1) if reduce == "units" else product
        offset = features["offsets"][leaf["stream"]]
        counted = features["of"][examples][:, offset : offset + whole.shape[2]] >= 0
        whole = whole * counted.to(whole.device)
        pairs.append(torch.stack([whole.sum(-1), whole.abs().sum(-1)]))
        parts.append((offset, reduced(grad, product, question)))
    wide = torch.promote_types(parts[0][1].dtype, torch.float32)
    extra = parts[0][1].shape[3:]
    joined = parts[0][1].new_zeros(len(columns), len(examples), width, *extra, dtype=wide)
    for offset, product in parts:
        joined[:, :, offset : offset + product.shape[2]] = product.to(wide)
    leak = beyond(state, joined, examples, columns)
    if reduce == "dot":
        of = features["of"][examples].to(joined.device)
        slots = torch.where(of < 0, features["count"], of)
        summed = joined.new_zeros(len(columns), len(examples), features["count"] + 1)
        summed.scatter_add_(2, slots.expand(len(columns), -1, -1), joined)
        joined = summed[..., :-1]
    return joined, leak, torch.stack(pairs).sum(0)


def reduced(
    grad: Float[Tensor, "column row token unit"], product: Tensor, question: dict[str, Any]
) -> Float[Tensor, "column row token *unit"]:
    """What is kept of one row's gradient; for a norm of the mean gradient, and a variance, all of it."""
    reduce = question["reduce"]
    if reduce in ("dot", "units"):
        return product
    if reduce == "squares":
        return grad.square().sum(-1)
    return norm_over_units(grad, reduce) if takes_norm_of(question, "row") else grad


def beyond(
    state: dict[str, Any], joined: Tensor, examples: Int[Tensor, " row"], columns: Int[Tensor, " column"]
) -> Float[Tensor, "column row"]:
    """Largest absolute value at a token that no step of the column can see."""
    features = state["features"]
    token = torch.arange(features["width"])
    bound = features["last"][examples][:, columns].T
    unseen = (token >= features["start"]) & (token > bound[..., None])
    sizes = joined.abs() if joined.dim() == 3 else joined.abs().amax(-1)
    return sizes.masked_fill(~unseen.to(joined.device), 0.0).amax(-1)
