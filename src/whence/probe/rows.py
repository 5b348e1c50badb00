"""What every program shares: rows of a batch through the model, edited at named sites, and their targets.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
Plain data they pass around:

``run``    ``inputs`` (keyword arguments of the forward, one row per example), ``length`` (positions of the
           stream that has the steps) and ``keep`` (how many of its last ones need logits, or None),
           ``unembed`` and ``ln_final`` (paths), ``query`` and ``target_ids`` [example, step], ``columns``
           [example, column, step]
``score``  ``fn`` (a step function) and its ``options``
``leaf``   a site to read or edit: ``spec``, ``stream`` (0, or encoder 0 and decoder 1), ``order`` in the
           forward pass, and ``key`` (unique); ``passing`` where nobody wants its value after the edit
``group``  the leaves of one layer, in the order of the forward pass
``reference`` what a feature is compared with: ``values`` per stream ([unit] or [example, position, unit])
           and ``replace`` per stream ([example, position]: may this position leave its true value)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.models.access import read_site, resolve, write_site
from whence.probe.rules import apply_rule, prepare_rules
from whence.step_functions.inputs import StepInputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float, Int
    from torch import Tensor


def forward_rows(
    model: Any,
    run: dict[str, Any],
    examples: Int[Tensor, " row"],
    leaves: list[dict[str, Any]],
    edit: Callable[[dict[str, Any], Tensor], Tensor | None],
    answers: bool = True,
    pairs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run rows of a batch through the model once, editing sites on the way.

    Args:
        model: The nnsight model.
        run: The batch (see the module).
        examples: The example that each row is a variant of.
        leaves: Sites to read, in the order of the forward pass.
        edit: Called with a leaf and its value; what it returns is written back, unless None.
        answers: Whether ``hidden`` and ``logits`` are wanted.
        pairs: Which rows are the references of which (see `whence.probe.rules`): what is not linear then has
            DeepLIFT's multipliers for derivatives. None: nothing is changed.

    Returns:
        ``values`` (the leaves, as written; None for passing ones), ``hidden`` (what enters the unembedding)
        and ``logits``, both None where they are not wanted.
    """
    call = {name: value[examples] for name, value in run["inputs"].items()}
    if run["keep"] is not None:
        # Where nobody wants logits, one position is the least that can be asked for.
        call["logits_to_keep"] = run["keep"] if answers else 1
    values, memory = [], {}
    hidden = logits = None
    places = leaves if pairs is None else sorted([*leaves, *pairs["bends"]], key=leaf_order)
    with model.trace(**call, use_cache=False):
        if pairs is not None:
            prepare_rules(model, places, len(examples))
        for leaf in places:
            if hidden is None and leaf["key"] in ("unembed", "logits"):
                # What enters the unembedding comes before these.
                hidden = resolve(model, run["unembed"]).input
            if pairs is not None and "rule" in leaf:
                apply_rule(model, leaf, pairs, memory)
                continue
            value = read_site(model, leaf["spec"])
            edited = edit(leaf, value)
            if edited is not None:
                write_site(model, leaf["spec"], edited)
                value = edited
            values.append(None if leaf.get("passing") else value)
        if answers:
            if hidden is None:
                hidden = resolve(model, run["unembed"]).input
            logits = model.output.logits
    return {"values": values, "hidden": hidden, "logits": logits}


def leaf_order(leaf: dict[str, Any]) -> float:
    """Where a leaf, or an operation that has a rule, stands in the forward pass."""
    return leaf["order"]


def select_rows(run: dict[str, Any], examples: Int[Tensor, " row"], **changes: Any) -> dict[str, Any]:
    """A batch whose examples are rows of another, for rows that are not read as their example is.

    Args:
        run: The batch.
        examples: The example of each row.
        **changes: Entries of the new batch that are not those of the examples.

    Returns:
        The batch; row ``k`` is its example ``k``.
    """
    chosen = {name: run[name][examples] for name in ("query", "target_ids", "columns")}
    inputs = {name: value[examples] for name, value in run["inputs"].items()}
    return {**run, **chosen, "inputs": inputs, **changes}


def step_places(run: dict[str, Any], examples: Int[Tensor, " row"], kept: int) -> Int[Tensor, "row step"]:
    """Where each step's logits stand among the positions that have logits."""
    return run["query"][examples] - (run["length"] - kept)


def at_steps(
    run: dict[str, Any], examples: Int[Tensor, " row"], hidden: Float[Tensor, "row position unit"]
) -> Float[Tensor, "row step unit"]:
    """What stands at the position of each step, among the positions that have logits."""
    places = step_places(run, examples, hidden.shape[1]).to(hidden.device)
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))


def target_values(
    run: dict[str, Any], score: dict[str, Any], examples: Int[Tensor, " row"], logits: Tensor
) -> Float[Tensor, "row step"]:
    """The step function's value at every step of every row, in float32 or better."""
    chosen = chosen_logits(run, examples, logits)
    return step_values(score, chosen, run["target_ids"][examples].to(logits.device))


def chosen_logits(
    run: dict[str, Any], examples: Int[Tensor, " row"], logits: Tensor
) -> Float[Tensor, "row step vocab"]:
    """The logits of every step of every row, in float32 or better."""
    places = step_places(run, examples, logits.shape[1]).to(logits.device)
    rows = torch.arange(len(examples), device=logits.device)
    chosen = logits[rows[:, None], places]
    return chosen.to(torch.promote_types(chosen.dtype, torch.float32))


def step_values(
    score: dict[str, Any], chosen: Float[Tensor, "row step vocab"], ids: Int[Tensor, "row step"]
) -> Float[Tensor, "row step"]:
    """The step function's value for given logits and tokens."""
    return score["fn"](StepInputs(chosen, ids), **score["options"])


def column_values(
    run: dict[str, Any], examples: Int[Tensor, " row"], steps: Float[Tensor, "row step"]
) -> Float[Tensor, "row column"]:
    """Sum of the steps that each column spans."""
    weights = run["columns"][examples].to(steps)
    return torch.einsum("rct,rt->rc", weights, steps)


def reference_rows(reference: dict[str, Any], stream: int, examples: Int[Tensor, " row"], value: Tensor) -> Tensor:
    """The reference input of each row: the clean value where it is kept, the baseline elsewhere.

    Args:
        reference: The reference (see the module).
        stream: Which stream.
        examples: The example of each row.
        value: The clean value of each row.

    Returns:
        A tensor like ``value``.
    """
    given = reference["values"][stream].to(value)
    given = given if given.dim() == 1 else given[examples]
    replace = reference["replace"][stream][examples].to(value.device)
    return torch.where(replace[..., None], given, value)


def keep_value(leaf: dict[str, Any], value: Tensor) -> None:
    """An edit that edits nothing."""
    return
