"""Reverse mode: one retained graph, the unembedding differentiated once, then products in batches.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.core.errors import UnsupportedError
from whence.probe.paired import paired_leaf_edit, paired_targets, with_inputs, with_references
from whence.probe.path import advance, at_point, span_ends
from whence.probe.respond import leaf_order
from whence.probe.rows import column_values, forward_rows, step_places, target_values

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
        For each layer ``values``, ``leak``, ``dots`` (the product with the whole displacement at the last
        point, and the same with absolute values) and ``at_clean`` (targets where the point is the input).
    """
    count, columns = run["columns"].shape[:2]
    points = torch.tensor(question["points"], dtype=torch.float64)
    examples = torch.arange(count).repeat_interleave(len(points))
    alphas = points.repeat(count)
    weights = torch.tensor(question["weights"], dtype=torch.float64).repeat(count)
    leaves = sorted([leaf for group in groups for leaf in group], key=leaf_order)
    found: list[dict[str, Any]] = [
        {
            "values": None,
            "leak": torch.zeros(count, columns),
            "dots": torch.zeros(2, count, columns, dtype=torch.float64),
            "at_clean": None,
        }
        for _ in groups
    ]
    at_clean = torch.zeros(count, columns, dtype=torch.float64)
    for part in torch.arange(len(examples)).split(question["rows"]):
        rows = {"examples": examples[part], "alphas": alphas[part], "weights": weights[part]}
        rows["last"] = rows["alphas"] == points[-1]
        if state["rules"] is not None:
            rows = with_references(rows, state["rules"])
        graph = build_graph(model, run, score, state, leaves, rows, shared=len(groups) > 1)
        state["counts"]["rows"] += len(rows["examples"])
        advance(question, len(rows["examples"]))
        here = (rows["alphas"] == 1).nonzero()[:, 0]
        at_clean.index_copy_(0, rows["examples"][here], graph["columns"][here])
        chunks = torch.arange(columns).split(question["products"])
        for number, some in enumerate(chunks):
            grads = torch.autograd.grad(
                graph["hidden"],
                graph["leaves"],
                graph["spread"][:, some].transpose(0, 1).unsqueeze(-1) * graph["head"],
                is_grads_batched=True,
                retain_graph=number < len(chunks) - 1,
                allow_unused=True,
            )
            by_key = {leaf["key"]: grad for leaf, grad in zip(leaves, grads, strict=True)}
            for result, group in zip(found, groups, strict=True):
                parts = contract(state, group, by_key, graph["displacement"], rows, some, question["reduce"])
                collect(result, parts, rows, some, count, columns)
            state["counts"]["vjps"] += len(some) * len(part)
            advance(question, len(some) * len(part))
    if 1.0 in question["points"]:
        for result in found:
            result["at_clean"] = at_clean
    return found


def build_graph(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    leaves: list[dict[str, Any]],
    rows: dict[str, Any],
    shared: bool,
) -> dict[str, Any]:
    """One forward pass with its graph kept, and the unembedding differentiated once for all steps.

    The logits of a step depend on the hidden state of one position only, so the gradient of the sum of all
    steps with respect to what enters the unembedding holds every step's own gradient at its position.
    """
    displacement: dict[str, Tensor] = {}
    examples, pairs = rows["examples"], rows.get("pairs")
    with torch.enable_grad():
        if pairs is None:
            out = forward_rows(model, run, examples, leaves, leaf_edit(state, rows, displacement, shared))
            steps = target_values(run, score, examples, out["logits"])
            values = out["values"]
        else:
            places = with_inputs(state, leaves)
            edit = paired_leaf_edit(state, rows, displacement, leaves, shared)
            out = forward_rows(model, run, examples, places, edit, pairs)
            steps = paired_targets(run, score, examples, out["logits"], pairs)
            values = [value for place, value in zip(places, out["values"], strict=True) if place in leaves]
        # Padding repeats a step; only steps that some column has may add to the head's gradient.
        used = (run["columns"][examples].amax(1) > 0).to(steps)
        if not steps.requires_grad:
            raise UnsupportedError("the target does not depend on the input through anything differentiable.")
        head = torch.autograd.grad((steps * used).sum(), out["hidden"], retain_graph=True)[0]
    # A step's weight at the position whose logits predict it, and nowhere else.
    columns = run["columns"].shape[1]
    spread = torch.zeros(len(examples), columns, head.shape[1], dtype=head.dtype, device=head.device)
    places = step_places(run, examples, head.shape[1]).to(head.device)
    spread.scatter_add_(2, places[:, None, :].expand(-1, columns, -1), run["columns"][examples].to(head))
    return {
        "leaves": values,
        "hidden": out["hidden"],
        "head": head,
        "spread": spread,
        "displacement": displacement,
        "columns": column_values(run, examples, steps.detach()).double().cpu(),
    }


def leaf_edit(
    state: dict[str, Any], rows: dict[str, Any], displacement: dict[str, Tensor], shared: bool
) -> Callable[[dict[str, Any], Tensor], Tensor]:
    """An edit that puts sites at a point of their path and makes them leaves of the graph.

    Where one pass serves several layers, only the first is a leaf; the others hang on it, and a gradient
    with respect to a value in the middle of a graph is what is wanted.
    """
    started: list[str] = []

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        clean, low = span_ends(state, leaf, rows["examples"], value)
        displacement[leaf["key"]] = clean - low
        if started and shared:
            return value
        started.append(leaf["key"])
        return at_point(clean, low, rows["alphas"]).detach().requires_grad_(True)

    return edit


def collect(
    result: dict[str, Any],
    parts: tuple[Tensor, Tensor, Tensor],
    rows: dict[str, Any],
    some: Int[Tensor, " column"],
    count: int,
    columns: int,
) -> None:
    """Add the rows of one batch of products to the totals of their examples."""
    values, leak, dots = parts
    examples = rows["examples"]
    if result["values"] is None:
        shape = (count, columns, *values.shape[2:])
        result["values"] = torch.zeros(shape, dtype=values.dtype, device=values.device)
    weighed = values * rows["weights"].to(values).view(1, -1, *(1,) * (values.dim() - 2))
    here = examples.to(values.device)
    for place, column in enumerate(some.tolist()):
        result["values"][:, column].index_add_(0, here, weighed[place])
        result["leak"][:, column].scatter_reduce_(0, examples, leak[place].float().cpu(), "amax")
        result["dots"][:, :, column].index_add_(1, examples, dots[:, place].double().cpu())


def contract(
    state: dict[str, Any],
    group: list[dict[str, Any]],
    grads: dict[str, Tensor | None],
    displacement: dict[str, Tensor],
    rows: dict[str, Any],
    columns: Int[Tensor, " column"],
    reduce: str,
) -> tuple[Tensor, Float[Tensor, "column row"], Float[Tensor, "two column row"]]:
    """Reduce the gradients of one layer to the numbers that are wanted.

    Returns:
        [column, row, token or feature (, unit)]; the largest value where a column cannot look; and the
        product with the whole displacement (with its absolute counterpart) in rows at the last point.
    """
    features = state["features"]
    examples = rows["examples"]
    width = features["width"]
    parts = []
    pairs = []
    for leaf in group:
        grad = grads[leaf["key"]]
        moved = displacement[leaf["key"]].flatten(2)
        if grad is None:
            grad = moved.new_zeros(len(columns), *moved.shape)
        grad = grad.flatten(3)
        product = (grad * moved).sum(-1) if reduce != "units" else grad * moved
        whole = product.sum(-1) if reduce == "units" else product
        offset = features["offsets"][leaf["stream"]]
        counted = features["of"][examples][:, offset : offset + whole.shape[2]] >= 0
        whole = whole * counted.to(whole.device)
        pairs.append(torch.stack([whole.sum(-1), whole.abs().sum(-1)]))
        if reduce == "gradient":
            product = grad
        elif reduce in ("l1", "l2", "linf"):
            product = torch.linalg.vector_norm(grad, {"l1": 1, "l2": 2, "linf": float("inf")}[reduce], dim=-1)
        parts.append((offset, product))
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
    return joined, leak, torch.stack(pairs).sum(0) * rows["last"].to(joined.device)


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
