"""One pass of rows that are to be differentiated: plain, or with the rows' references beside them.

These functions travel to remote places by their source (see `whence.models.programs` for the rules). ``rules`` in
the ``state`` of `whence.probe.path` is plain data, or None for a plain pass: ``bends`` of the model (see
`whence.probe.rules`), ``multipliers`` of the step function (or None), and ``points`` and ``weights`` of a quadrature
rule on [0, 1] for step functions that have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.path import end_stands, is_input, stand
from whence.probe.rows import forward_rows, leaf_order, step_inputs, step_values, target_values
from whence.step_functions.inputs import ContrastInputs, StepInputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor


def differentiable_rows(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    leaves: list[dict[str, Any]],
    stands: dict[str, Tensor],
    edit: Callable[[dict[str, Any], Tensor], Tensor],
) -> dict[str, Any]:
    """Run rows that stand on their way, with the derivatives that the question is about.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        score: The step function.
        state: Shared state (see `whence.probe.path`).
        leaves: The sites of the rows, in the order of the forward pass.
        stands: The rows.
        edit: Called with a leaf and its value in these rows; what it returns is written back.

    Returns:
        ``values``, ``hidden`` and ``logits`` as from `whence.probe.rows.forward_rows`, and ``steps`` [row, step], the
        target. By rules, the first three have further rows at their end, the references, whose targets are noted in
        ``lows`` of the state.
    """
    examples = stands["examples"]
    if state["rules"] is None:
        out = forward_rows(model, run, examples, leaves, edit)
        return {**out, "steps": target_values(run, score, examples, out["logits"])}
    references, partner = reference_stands(stands)
    count = len(examples)
    everyone = torch.cat([examples, references["examples"]])
    pairs = {"bends": state["rules"]["bends"], "partner": partner, "rows": len(everyone)}
    asked = [leaf["key"] for leaf in leaves]
    inputs = [{**leaf, "passing": True} for leaf in state["embeds"] if leaf["key"] not in asked]

    def edit_both(leaf: dict[str, Any], value: Tensor) -> Tensor:
        high, low = value[:count], value[count:].detach()
        if is_input(leaf, state["embeds"]):
            low = stand(state, leaf, references, low)[0]
        else:
            # A deeper site has the values that follow from both inputs.
            state["ends"][leaf["key"]] = low[partner.to(low.device)]
        return torch.cat([high if leaf.get("passing") else edit(leaf, high), low])

    out = forward_rows(model, run, everyone, sorted([*inputs, *leaves], key=leaf_order), edit_both, pairs=pairs)
    state["counts"]["rows"] += len(references["examples"])
    steps, lows = paired_targets(run, score, state["rules"], everyone, out["logits"], partner)
    state["lows"][references["origin"], references["examples"]] = lows.double().cpu()
    return {**out, "values": [value for value in out["values"] if value is not None], "steps": steps}


def reference_stands(stands: dict[str, Tensor]) -> tuple[dict[str, Tensor], Int[Tensor, " row"]]:
    """Rows with the site at each reference that some row is compared with, and which of them that is for each row."""
    both = torch.stack([stands["examples"], stands["origin"]])
    (examples, origin), partner = both.unique(dim=1, return_inverse=True)
    return {**end_stands(examples, 0.0, 0), "origin": origin}, partner


def paired_targets(
    run: dict[str, Any],
    score: dict[str, Any],
    rules: dict[str, Any],
    examples: Int[Tensor, " both"],
    logits: Float[Tensor, "both position vocab"],
    partner: Int[Tensor, " row"],
) -> tuple[Float[Tensor, "row step"], Float[Tensor, "reference step"]]:
    """The step function at every step of the explained rows, with its multipliers as derivative, and of the others."""
    count = len(partner)
    seen = step_inputs(run, examples, logits)
    mine, its = torch.arange(count), count + partner
    high, low = some_rows(seen, mine), some_rows(seen, its)
    values = step_values(score, some_rows(seen, torch.arange(len(examples))))
    if rules["multipliers"] is None:
        multipliers = mean_gradient(score, high, low.logits, rules)
    else:
        multipliers = rules["multipliers"](high, low, **score["options"])
    # A masked token's logit is -inf in both, and does not move.
    moving = torch.where(torch.isfinite(high.logits), seen.logits[:count] - high.logits, 0.0)
    return values[:count] + (multipliers * moving).sum(-1), values[count:]


def some_rows(seen: StepInputs, rows: Int[Tensor, " some"]) -> StepInputs:
    """Some rows of what a step function sees, as constants; steps are then compared as they are in these rows."""
    rows = rows.to(seen.logits.device)
    return with_logits(seen, seen.logits.detach()[rows], rows)


def with_logits(seen: StepInputs, logits: Float[Tensor, "row step vocab"], rows: Int[Tensor, " row"]) -> StepInputs:
    """Other logits in the place of some rows'; a contrast with another token of the same run has them too."""
    contrast = seen.contrast
    if contrast is not None:
        other = logits if contrast.logits is seen.logits else contrast.logits[rows]
        contrast = ContrastInputs(other, contrast.target_ids[rows])
    return StepInputs(logits, seen.target_ids[rows], contrast)


def mean_gradient(
    score: dict[str, Any], high: StepInputs, low: Float[Tensor, "row step vocab"], rules: dict[str, Any]
) -> Float[Tensor, "row step vocab"]:
    """The step function's gradient, averaged along the straight line between two logits."""
    total = torch.zeros_like(low)
    every = torch.arange(len(low), device=low.device)
    with torch.enable_grad():
        for point, weight in zip(rules["points"], rules["weights"], strict=True):
            between = torch.where(high.logits == low, low, low + point * (high.logits - low))
            here = between.requires_grad_(True)
            values = step_values(score, with_logits(high, here, every))
            total += weight * torch.autograd.grad(values.sum(), here)[0]
    return total
