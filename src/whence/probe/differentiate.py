"""differentiate: derivatives of every column with respect to a site, at points between reference and input.

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).

1. Where the question has a reference, the value of the site with the whole input at its reference is found
   (at the embeddings: the reference itself; deeper: by one forward pass).
2. Each row puts the site at ``reference + point * (clean - reference)`` and runs the rest of the model.
3. Reverse mode differentiates the unembedding once for all steps (its rows are independent), then sends one
   vector-Jacobian product per column, in batches, through the body over one retained graph. Forward mode
   runs one row per feature, whose tangent is that feature's displacement; it answers for all columns.
   Finite differences run two rows per feature, and need no derivatives at all.
4. Contraction with the displacement, sums over the points and the tokens of a feature happen here, so that
   only [column, feature] numbers travel. So do the choice among several paths and the change of mode where
   an operation has no tangent: whatever happens, it is one request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.finite_mode import finite_products
from whence.probe.forward_mode import forward_products, no_tangent, tangents
from whence.probe.path import at_points, is_input
from whence.probe.respond import capture
from whence.probe.reverse_mode import reverse_products

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
    rules: dict[str, Any] | None = None,
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
        question: ``paths`` (``points`` and ``weights`` of each), ``accept`` (which path is fine enough, see
            `whence.core.contract.Accept`, or None), ``reduce``, ``mode``, ``rows`` and ``products`` (chunk
            sizes), ``otherwise`` (mode and chunk sizes if an operation has no tangent, or None),
            ``adjoint`` (compare both modes at the last point), ``advance`` (told of progress, or None).
        rules: DeepLIFT's rules in place of derivatives (see `whence.probe.paired`), or None. Then every row has its
            reference beside it, deeper sites have the values that follow from both, and ``there`` is the target
            with the input at its reference.

    Returns:
        ``no_tangent`` (what has none, where forward mode was insisted on), or: ``values``
        [layer, example, column, feature or token (, unit)], ``noop`` [layer, example, column] (targets with
        the site written back) or None, ``there`` (targets with the site at its reference) or None, ``leak``,
        ``adjoint`` and ``whole`` (two tensors [example, column] each) or None, ``path``, ``mode``, ``note``,
        and counters of rows and products.
    """
    count = run["query"].shape[0]
    everyone = torch.arange(count)
    counts = {"rows": 0, "vjps": 0, "jvps": 0}
    deep = [leaf for group in groups for leaf in group if not is_input(leaf, embeds)]
    ends: dict[str, Any] = {"clean": {}, "reference": {}}
    if reference is not None and deep and rules is None:
        ends["clean"] = capture(model, run, embeds, deep, None, everyone)
        ends["reference"] = capture(model, run, embeds, deep, reference, everyone)
        counts["rows"] += 2 * count
    state = {
        "embeds": embeds,
        "reference": reference,
        "ends": ends,
        "features": features,
        "counts": counts,
        "rules": rules,
    }
    noop = there = None
    if rules is not None:
        there = endpoints(model, run, score, state, embeds, 2 * question["rows"])[1].expand(len(groups), -1, -1)
    elif reference is not None:
        values = [endpoints(model, run, score, state, group, question["rows"]) for group in groups]
        noop, there = (torch.stack(side) for side in zip(*values, strict=True))
    note, taken, asked, results = "", 0, question, []
    for number, path in enumerate(question["paths"]):
        taken = number
        try:
            asked = {**question, **path}
            results = products(model, run, score, state, groups, asked)
        except (NotImplementedError, RuntimeError) as error:
            if asked["mode"] != "forward" or not no_tangent(error):
                raise
            if asked["otherwise"] is None:
                return {"no_tangent": str(error).splitlines()[0]}
            note = "forward mode has no tangent for an operation of this model"
            question = {**question, **question["otherwise"]}
            asked = {**question, **path}
            results = products(model, run, score, state, groups, asked)
        accept = question["accept"]
        if accept is None or accept(shares_of(results, asked), noop, there):
            break
    if noop is None:
        at_clean = [result["at_clean"] for result in results if result["at_clean"] is not None]
        noop = torch.stack(at_clean) if at_clean else None
    adjoint = None
    if asked["adjoint"]:
        try:
            adjoint = compare_modes(model, run, score, state, groups[0], asked, results[0])
        except (NotImplementedError, RuntimeError) as error:
            # A check that cannot be made here; the result does not claim it.
            if not no_tangent(error):
                raise
    return {
        "values": torch.stack([result["values"] for result in results]).cpu(),
        "noop": None if noop is None else noop.cpu(),
        "there": there,
        "leak": torch.stack([result["leak"] for result in results]).cpu(),
        "adjoint": adjoint,
        "whole": gap_to_whole(results) if asked["mode"] == "finite" else None,
        "path": taken,
        "mode": asked["mode"],
        "note": note,
        "counts": counts,
    }


def products(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    groups: list[list[dict[str, Any]]],
    question: dict[str, Any],
) -> list[dict[str, Any]]:
    """The products of every layer along one path, in the mode of the question."""
    # One pass serves all layers of one stack when every site keeps the value it has. A path needs a pass per
    # layer, and so do two stacks: there each layer's leaves are inputs of their own.
    one_stack = len({leaf["stream"] for group in groups for leaf in group}) == 1
    free = state["reference"] is None or state["rules"] is not None
    shared = free and question["mode"] == "reverse" and one_stack
    results = []
    for layers in [groups] if shared else [[group] for group in groups]:
        if question["mode"] == "reverse":
            results += reverse_products(model, run, score, state, layers, question)
        elif question["mode"] == "forward":
            results += forward_products(model, run, score, state, layers[0], question)
        else:
            results += finite_products(model, run, score, state, layers[0], question)
    return results


def shares_of(results: list[dict[str, Any]], question: dict[str, Any]) -> Float[Tensor, "layer example column token"]:
    """Every token's or feature's share, summed over units where these are kept."""
    values = torch.stack([result["values"] for result in results]).double().cpu()
    return values.sum(-1) if question["reduce"] == "units" else values


def gap_to_whole(results: list[dict[str, Any]]) -> tuple[Tensor, Tensor]:
    """How far the slopes of the features are from adding up to the slope along all of them together."""
    gaps = torch.stack([(result["dots"][0] - result["whole"]).abs() for result in results])
    sizes = torch.stack([result["dots"][1] for result in results])
    worst = (gaps / sizes.clamp_min(1e-12)).argmax(0, keepdim=True)
    return gaps.gather(0, worst)[0], sizes.gather(0, worst)[0]


def endpoints(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    rows: int,
) -> tuple[Float[Tensor, "example column"], Float[Tensor, "example column"]]:
    """Targets with a site written back at its clean value, and written at its reference."""
    count = run["query"].shape[0]
    examples = torch.arange(count).repeat(2)
    alphas = torch.arange(2).flip(0).repeat_interleave(count).double()
    high, low = at_points(model, run, score, state, group, examples, alphas, max(rows, count)).chunk(2)
    return high, low


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
    gap = (checked["dots"][0] - result["dots"][0] @ mixture[:, None]).abs()
    return gap.expand(-1, len(mixture)), checked["dots"][1].expand(-1, len(mixture))
