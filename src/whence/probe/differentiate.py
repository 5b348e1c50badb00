"""differentiate: derivatives of every column with respect to a site, at points between reference and input.

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).

1. Where the question has a reference, the value of the site with the whole input at its reference is found
   (at the embeddings: the reference itself; deeper: by one forward pass).
2. Each row puts the site at ``reference + point * (clean - reference)`` and runs the rest of the model.
3. Reverse mode differentiates the unembedding once for all steps (its rows are independent), then sends one
   vector-Jacobian product per column, in batches, through the body over one retained graph. Forward mode
   runs one row per feature, whose tangent is that feature's displacement; it answers for all columns.
4. Contraction with the displacement, sums over the points and the tokens of a feature happen here, so that
   only [column, feature] numbers travel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.forward_mode import forward_products, tangents
from whence.probe.path import is_input, point_edit
from whence.probe.respond import capture
from whence.probe.reverse_mode import reverse_products
from whence.probe.rows import column_values, forward_rows, target_values

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def differentiate(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    embeds: list[dict[str, Any]],
    groups: list[list[dict[str, Any]]],
    reference: dict[str, Any] | None,
    features: dict[str, Any],
    question: dict[str, Any],
) -> dict[str, Any]:
    """Answer the question for every layer asked for, in one request.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        embeds: The embedding leaves, one per stream.
        groups: One list of leaves per layer.
        reference: What the input is compared with, or None (zero at the site).
        features: ``of`` [example, token]: the feature of each padded token, or -1; ``count``;
            ``offsets``: where each stream starts on the token axis; ``width``: the length of that axis;
            ``last`` [example, column]: the last token each column's steps can see, and ``start`` of the
            stream that this bound applies to; ``rows`` [row, 2]: pairs of example and feature that
            can have a displacement.
        question: ``points``, ``weights``, ``reduce``, ``mode``, ``rows`` and ``products`` (chunk sizes),
            ``adjoint`` (compare both modes at the last point).

    Returns:
        ``values`` [layer, example, column, feature or token (, unit)], ``noop`` [layer, example, column]
        (targets with the site written back) or None, ``there`` (targets with the site at its reference) or
        None, ``leak``, ``adjoint`` (two tensors [example, column]) or None, and counters of rows and products.
    """
    count = run["query"].shape[0]
    everyone = torch.arange(count)
    counts = {"rows": 0, "vjps": 0, "jvps": 0}
    deep = [leaf for group in groups for leaf in group if not is_input(leaf, embeds)]
    ends: dict[str, Any] = {"clean": {}, "reference": {}}
    if reference is not None and deep:
        ends["clean"] = capture(model, run, embeds, deep, None, everyone)
        ends["reference"] = capture(model, run, embeds, deep, reference, everyone)
        counts["rows"] += 2 * count
    state = {"embeds": embeds, "reference": reference, "ends": ends, "features": features, "counts": counts}

    # One pass serves all layers of one stack when the site keeps its clean value. A path needs a pass per
    # layer, and so do two stacks: there each layer's leaves are inputs of their own.
    one_stack = len({leaf["stream"] for group in groups for leaf in group}) == 1
    shared = reference is None and question["mode"] == "reverse" and one_stack
    passes = [groups] if shared else [[group] for group in groups]
    results = []
    for layers in passes:
        if question["mode"] == "reverse":
            results += reverse_products(model, run, score, state, layers, question)
        else:
            results += forward_products(model, run, score, state, layers[0], question)
    there = None
    noop = [result["at_clean"] for result in results if result["at_clean"] is not None]
    if reference is not None:
        values = [endpoints(model, run, score, state, group) for group in groups]
        there = torch.stack([low for _, low in values])
        noop = [high for high, _ in values]
    adjoint = None
    if question["adjoint"]:
        adjoint = compare_modes(model, run, score, state, groups[0], question, results[0])
    return {
        "values": torch.stack([result["values"] for result in results]).cpu(),
        "noop": torch.stack(noop).cpu() if noop else None,
        "there": there,
        "leak": torch.stack([result["leak"] for result in results]).cpu(),
        "adjoint": adjoint,
        "counts": counts,
    }


def endpoints(
    model: Any, run: dict[str, Any], score: dict[str, Any], state: dict[str, Any], group: list[dict[str, Any]]
) -> tuple[Float[Tensor, "example column"], Float[Tensor, "example column"]]:
    """Targets with a site written back at its clean value, and written at its reference."""
    count = run["query"].shape[0]
    examples = torch.arange(count).repeat(2)
    alpha = torch.arange(2).flip(0).repeat_interleave(count).double()

    with torch.no_grad():
        out = forward_rows(model, run, examples, group, point_edit(state, examples, alpha))
        columns = column_values(run, examples, target_values(run, score, examples, out["logits"])).cpu()
    state["counts"]["rows"] += 2 * count
    return columns[:count], columns[count:]


def compare_modes(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    question: dict[str, Any],
    result: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """The same directional derivative by the other mode, at the last point and along the whole displacement."""
    count = run["columns"].shape[0]
    everyone = torch.arange(count)
    last = torch.full((count,), question["points"][-1], dtype=torch.float64)
    if question["mode"] == "reverse":
        chosen = state["features"]["of"] >= 0
        _, tangent = tangents(model, run, score, state, group, everyone, last, chosen)
        state["counts"]["jvps"] += count
        return (tangent.double().cpu() - result["dots"][0]).abs(), result["dots"][1]
    # One product for a fixed mixture of the columns costs the same however many there are.
    mixture = torch.linspace(1.0, 2.0, run["columns"].shape[1], dtype=torch.float64)
    mixed = torch.einsum("c,ect->et", mixture.to(run["columns"]), run["columns"])[:, None]
    once = {**question, "mode": "reverse", "points": [question["points"][-1]], "weights": [1.0]}
    checked = reverse_products(model, {**run, "columns": mixed}, score, state, [group], once)[0]
    gap = (checked["dots"][0] - result["dots"] @ mixture[:, None]).abs()
    return gap.expand(-1, len(mixture)), checked["dots"][1].expand(-1, len(mixture))
