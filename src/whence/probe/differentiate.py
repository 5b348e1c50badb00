"""differentiate: derivatives of every column with respect to a site, at points between reference and input.

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).

1. Where the question has references, the value of the site with the whole input at each is found (at the
   embeddings: the reference itself; deeper: by one forward pass).
2. Each row puts the site at a point of its way (see `whence.probe.path`) and runs the rest of the model.
3. Reverse mode differentiates the unembedding once for all steps (its rows are independent), then sends one
   vector-Jacobian product per column, in batches, through the body over one retained graph. Forward mode
   runs one row per feature, whose tangent is that feature's displacement; it answers for all columns.
   Finite differences run two rows per feature, and need no derivatives at all.
4. Contraction with the displacement, sums and scatter over the points (see `whence.probe.totals`), sums over the
   tokens of a feature happen here, so that only [column, feature] numbers travel. So do the choice among several
   paths and the change of mode where an operation has no tangent: whatever happens, it is one request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.finite_mode import finite_products
from whence.probe.forward_mode import forward_products, no_tangent, tangents
from whence.probe.path import at_points, end_stands, is_input, last_stands
from whence.probe.respond import capture
from whence.probe.reverse_mode import reverse_products
from whence.probe.rows import column_values
from whence.probe.totals import drift_of
from whence.probe.words import word_ways

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def differentiate(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    embeds: list[dict[str, Any]],
    groups: list[list[dict[str, Any]]],
    references: list[dict[str, Any]] | None,
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
        references: What the input is compared with, or None (zero at the site).
        features: ``of`` [example, token]: the feature of each padded token, or -1; ``held`` and ``noisy``: which
            places hold a token, and which of them may get noise; ``count``; ``offsets``: where each stream
            starts on the token axis; ``width``: the length of that axis; ``last`` [example, column]: the last
            token each column's steps can see, and ``start`` of the stream that this bound applies to; ``rows``
            [row, 2]: pairs of example and feature that can have a displacement.
        question: ``paths`` (the fields of `whence.core.contract.Path`, with the numbers of their points as
            ``samples``), ``accept`` (which path is fine enough, see `whence.core.contract.Accept`, or None),
            ``of`` and ``rank`` (see `whence.probe.cotangents`), ``reduce``, ``mode``, ``rows`` and ``products`` (chunk
            sizes), ``otherwise`` (mode and chunk sizes if an operation has no tangent, or None), ``adjoint``
            (compare both modes at the last point), ``seed``, ``advance`` (told of progress, or None).
        rules: DeepLIFT's rules in place of derivatives (see `whence.probe.paired`), or None. By them rows and their
            references run side by side, and ``there`` is the target with the input at its reference.

    Returns:
        ``no_tangent`` (what has none, where forward mode was insisted on), or: ``values``
        [layer, example, column, feature or token (, unit)] and their ``error`` or None, ``noop`` [layer, example,
        column] (targets with the site written back), ``there`` (targets with the site at its reference) or
        None, ``drift`` (see `whence.core.contract.Derivatives`) or None, ``leak``, ``adjoint``, ``whole`` and
        ``residual`` (two tensors [example, column] each) or None, ``distance`` [example] (see
        `whence.probe.words`) or None, ``path``, ``mode``, ``note``, and counters of rows and products.
    """
    used = sorted({0}.union(*(path["origins"] for path in question["paths"])))
    state = {
        "embeds": embeds,
        "references": references,
        "ends": {},
        "features": features,
        "counts": {"rows": 0, "vjps": 0, "jvps": 0},
        "way": None,
        "rules": rules,
        "lows": torch.zeros(len(references or ()), *run["query"].shape, dtype=torch.float64),
    }
    apart = references if rules is None else None
    deep = [leaf for group in groups for leaf in group if not is_input(leaf, embeds)]
    if apart is not None and deep:
        capture_ends(model, run, state, deep, apart, used)
    noop = lows = None
    if apart is not None:
        values = [endpoints(model, run, score, state, group, used, question["rows"]) for group in groups]
        noop, lows = (torch.stack(side) for side in zip(*values, strict=True))
    note, taken, asked, results, there = "", 0, question, [], None
    for number, path in enumerate(question["paths"]):
        taken = number
        asked = {**question, **path}
        state = {**state, "way": way_of(model, run, state, asked)}
        try:
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
        there = None if lows is None else lows[:, places_of(asked, used)].mean(1)
        accept = question["accept"]
        if accept is None or accept(shares_of(results, asked), noop, there):
            break
    if noop is None:
        noop = clean_targets(model, run, score, state, groups, question["rows"], results)
    if rules is not None:
        there = targets_beside(run, state, asked, noop)
    adjoint = None
    if asked["adjoint"] and not asked["alone"]:
        try:
            adjoint = compare_modes(model, run, score, state, groups[0], asked, results[0])
        except (NotImplementedError, RuntimeError) as error:
            # A check that cannot be made here; the result does not claim it.
            if not no_tangent(error):
                raise
    if asked["alone"]:
        ends = [lone_ends(model, run, score, state, *each, asked) for each in zip(groups, noop, strict=True)]
        there = torch.stack(ends)
    residual, error = results[0].get("residual"), results[0]["error"]
    return {
        "values": torch.stack([result["values"] for result in results]).cpu(),
        "error": None if error is None else torch.stack([result["error"] for result in results]).cpu(),
        "noop": noop.cpu(),
        "there": there,
        "drift": drift_of(results, asked, noop, lows, used),
        "leak": torch.stack([result["leak"] for result in results]).cpu(),
        "adjoint": adjoint,
        "whole": gap_to_whole(results) if asked["mode"] == "finite" and not asked["alone"] else None,
        "residual": None if residual is None else worst_step(run, residual),
        "distance": state["way"]["distance"],
        "path": taken,
        "mode": asked["mode"],
        "note": note,
        "counts": state["counts"],
    }


def capture_ends(
    model: Any,
    run: dict[str, Any],
    state: dict[str, Any],
    leaves: list[dict[str, Any]],
    references: list[dict[str, Any]],
    used: list[int],
) -> None:
    """Note the values of deeper sites in the clean run, and with the input at each reference that is used."""
    everyone = torch.arange(run["query"].shape[0])
    state["ends"]["clean"] = capture(model, run, state["embeds"], leaves, None, everyone)
    for origin in used:
        state["ends"][origin] = capture(model, run, state["embeds"], leaves, references[origin], everyone)
    state["counts"]["rows"] += (1 + len(used)) * len(everyone)


def way_of(model: Any, run: dict[str, Any], state: dict[str, Any], question: dict[str, Any]) -> dict[str, Any]:
    """What holds for all rows of a path (see `whence.probe.path`), and how far its words are from the way."""
    way = {name: question[name] for name in ("noise", "carried", "item", "seed")}
    found: dict[str, Any] = {"tables": None, "distance": None}
    if question["words"] is not None:
        found = word_ways(model, run, state["embeds"], state["references"][0], question["words"])
    return {**way, "words": found["tables"], "distance": found["distance"]}


def places_of(question: dict[str, Any], used: list[int]) -> list[int]:
    """For every point of a path, where its reference stands among those that are used."""
    return [used.index(origin) for origin in question["origins"] or [0] * len(question["points"])]


def products(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    groups: list[list[dict[str, Any]]],
    question: dict[str, Any],
) -> list[dict[str, Any]]:
    """The products of every layer along one path, in the mode of the question."""
    # One pass serves all layers of one stack when every site keeps its clean value. A path needs a pass per
    # layer, and so do two stacks: there each layer's leaves are inputs of their own.
    one_stack = len({leaf["stream"] for group in groups for leaf in group}) == 1
    clean = (state["references"] is None or state["rules"] is not None) and not question["noise"]
    shared = clean and question["mode"] == "reverse" and one_stack
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
    used: list[int],
    rows: int,
) -> tuple[Float[Tensor, "example column"], Float[Tensor, "origin example column"]]:
    """Targets with a site written back at its clean value, and written at each of its references."""
    everyone = torch.arange(run["query"].shape[0])
    parts = [end_stands(everyone, 1.0, 0), *(end_stands(everyone, 0.0, origin) for origin in used)]
    stands = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found = at_points(model, run, score, state, group, stands, max(rows, len(everyone)))
    found = found.view(len(parts), len(everyone), -1)
    return found[0], found[1:]


def clean_targets(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    groups: list[list[dict[str, Any]]],
    rows: int,
    results: list[dict[str, Any]],
) -> Float[Tensor, "layer example column"]:
    """Targets with a site written back at its clean value: of the rows that stood there, else of new ones."""
    stands = end_stands(torch.arange(run["query"].shape[0]), 1.0, 0)
    plain = {**state, "way": None, "references": None}
    return torch.stack(
        [
            at_points(model, run, score, plain, group, stands, rows).double()
            if result["at_clean"] is None
            else result["at_clean"]
            for group, result in zip(groups, results, strict=True)
        ]
    )


def targets_beside(
    run: dict[str, Any], state: dict[str, Any], question: dict[str, Any], noop: Float[Tensor, "layer example column"]
) -> Float[Tensor, "layer example column"]:
    """Targets with the input at its reference, which ran beside the rows of a path: the mean over its points."""
    everyone = torch.arange(run["query"].shape[0])
    origins = question["origins"] or [0] * len(question["points"])
    lows = torch.stack([column_values(run, everyone, state["lows"][origin]) for origin in origins])
    # A sequence none of whose features moves is its own reference, and in forward mode has no rows.
    moves = torch.isin(everyone, state["features"]["rows"][:, 0])
    return torch.where(moves[:, None], lows.mean(0), noop)


def lone_ends(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    clean: Float[Tensor, "example column"],
    question: dict[str, Any],
) -> Float[Tensor, "example column feature"]:
    """Targets with each feature alone at its reference; the clean target for features that have none."""
    who, feature = state["features"]["rows"].unbind(1)
    plain = {**state, "way": None}
    found = clean[..., None].repeat(1, 1, state["features"]["count"])
    stands = {**end_stands(who, 0.0, 0), "feature": feature}
    found[who, :, feature] = at_points(model, run, score, plain, group, stands, question["rows"])
    return found


def worst_step(run: dict[str, Any], residual: Float[Tensor, "example two step"]) -> tuple[Tensor, Tensor]:
    """Of each column's steps that whose directions are furthest from being eigenvectors, beside the eigenvalue."""
    share = residual[:, 0] / residual[:, 1].clamp_min(1e-30)
    worst = torch.where(run["columns"] > 0, share[:, None].to(run["columns"]), -1.0).argmax(-1)
    gap, size = (residual[:, k].gather(1, worst) for k in range(2))
    return gap, size


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
    if question["mode"] == "reverse":
        stands = last_stands(question, torch.arange(count))
        chosen, states = state["features"]["of"] >= 0, result.get("states")
        _, tangent = tangents(model, run, score, state, group, stands, chosen, states)
        state["counts"]["jvps"] += count
        return (tangent.double().cpu() - result["dots"][0]).abs(), result["dots"][1]
    # One product for a fixed mixture of the columns costs the same however many there are.
    mixture = torch.linspace(1.0, 2.0, run["columns"].shape[1], dtype=torch.float64)
    mixed = torch.einsum("c,ect->et", mixture.to(run["columns"]), run["columns"])[:, None]
    once = {**question, "mode": "reverse", "samples": question["samples"][-1:], "sampled": False}
    checked = reverse_products(model, {**run, "columns": mixed}, score, state, [group], once)[0]
    gap = (checked["dots"][0] - result["dots"][0] @ mixture[:, None]).abs()
    return gap.expand(-1, len(mixture)), checked["dots"][1].expand(-1, len(mixture))
