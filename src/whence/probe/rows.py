"""What every program shares: rows of a batch through the model, edited at named sites, and their targets.

These functions travel to remote places by their source (see `whence.models.programs` for the rules).
Plain data they pass around:

``run``    ``inputs`` (keyword arguments of the forward, one row per example), ``length`` (positions of the
           stream that has the steps) and ``keep`` (how many of its last ones need logits, or None),
           ``unembed`` and ``ln_final`` (paths), ``query`` and ``target_ids`` [example, step], ``columns``
           [example, column, step]; ``foil``, what steps are compared with: ``ids`` [example, step] and ``logits``
           [example, step, vocabulary] (None: those of the run itself, or of the rows beside it), or None; and
           ``beside``, rows that run beside every row, or None (see `whence.probe.beside`)
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
from whence.probe.beside import called, edited_rows, noise_leaves
from whence.probe.rules import apply_rule, prepare_rules
from whence.step_functions.inputs import ContrastInputs, StepInputs

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
        and ``logits``, both None where they are not wanted. These two have the rows that run beside at their end.
    """
    call = called(run, examples)
    if run["keep"] is not None:
        # Where nobody wants logits, one position is the least that can be asked for.
        call["logits_to_keep"] = run["keep"] if answers else 1
    values, memory = [], {}
    hidden = logits = None
    more = noise_leaves(run) if pairs is None else pairs["bends"]
    places = sorted([*leaves, *more], key=leaf_order) if more else leaves
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
            value, whole = edited_rows(run, examples, leaf, edit, read_site(model, leaf["spec"]))
            if whole is not None:
                write_site(model, leaf["spec"], whole)
            if "rate" not in leaf:
                values.append(None if leaf.get("passing") else value)
        if answers:
            if hidden is None:
                hidden = resolve(model, run["unembed"]).input
            logits = model.output.logits
        elif run["keep"] is None and hidden is None:
            # This model cannot be asked for fewer logits, so its head is given less to read.
            head = resolve(model, run["unembed"])
            head.input = head.input[:, -1:]
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
    foil = run["foil"]
    if foil is not None:
        foil = {name: None if value is None else value[examples] for name, value in foil.items()}
    return {**run, **chosen, "inputs": inputs, "foil": foil, **changes}


def step_places(run: dict[str, Any], examples: Int[Tensor, " row"], kept: int) -> Int[Tensor, "row step"]:
    """Where each step's logits stand among the positions that have logits."""
    return run["query"][examples] - (run["length"] - kept)


def all_places(run: dict[str, Any], examples: Int[Tensor, " row"], kept: int) -> Int[Tensor, "all step"]:
    """The same for the rows, and for those that run beside them."""
    own, beside = step_places(run, examples, kept), run["beside"]
    if beside is None:
        return own
    if "maps" in beside:
        return torch.cat([own, step_places({**run, "query": beside["query"]}, examples, kept)])
    return own.repeat(1 + beside["passes"], 1)


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
    return step_values(score, step_inputs(run, examples, logits))


def edited_targets(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    examples: Int[Tensor, " row"],
    leaves: list[dict[str, Any]],
    edit: Callable[[dict[str, Any], Tensor], Tensor | None],
) -> Float[Tensor, "row step"]:
    """Targets of one pass without a graph, on the CPU; arguments as those of `forward_rows`.

    The pass ends with this function, so that its logits are gone before those of the next are made.
    """
    with torch.no_grad():
        out = forward_rows(model, run, examples, leaves, edit)
        return target_values(run, score, examples, out["logits"]).cpu()


def step_inputs(run: dict[str, Any], examples: Int[Tensor, " row"], logits: Tensor) -> StepInputs:
    """What a step function sees of rows, and of those that run beside them."""
    count, foil, beside = len(examples), run["foil"], run["beside"]
    chosen = chosen_logits(all_places(run, examples, logits.shape[1]), logits)
    own, contrast, noisy = chosen[:count], None, None
    if foil is not None:
        other = own if foil["logits"] is None else foil["logits"][examples].to(own)
        other = chosen[count:] if beside is not None and "maps" in beside else other
        contrast = ContrastInputs(other, foil["ids"][examples].to(own.device))
    if beside is not None and "maps" not in beside:
        noisy = chosen[count:].unflatten(0, (beside["passes"], count))
    return StepInputs(own, run["target_ids"][examples].to(own.device), contrast, noisy)


def chosen_logits(places: Int[Tensor, "row step"], logits: Tensor) -> Float[Tensor, "row step vocab"]:
    """The logits of every step of every row, in float32 or better."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    if places.shape[1] == logits.shape[1] and bool((places == torch.arange(logits.shape[1])).all()):
        # All of them in order, as where every step of a continuation is explained: nothing to copy.
        return logits.to(wide)
    rows = torch.arange(len(logits), device=logits.device)
    return logits[rows[:, None], places.to(logits.device)].to(wide)


def step_values(score: dict[str, Any], inputs: StepInputs) -> Float[Tensor, "row step"]:
    """The step function's value."""
    return score["fn"](inputs, **score["options"])


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
