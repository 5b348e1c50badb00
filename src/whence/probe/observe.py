"""observe: named internal values of the clean run, and what a method makes of them where the model is.

Programs: they travel to remote places by their source (see `whence.models.programs` for the rules).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.probe.rows import forward_rows, keep_value, leaf_order, select_rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def observe(model: Any, run: dict[str, Any], leaves: list[dict[str, Any]], count: int) -> dict[str, Tensor]:
    """Read sites in one pass.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        leaves: The sites, in the order of the forward pass.
        count: How many examples the batch has.

    Returns:
        For each leaf's key, its value for every example, on the CPU.
    """
    with torch.no_grad():
        out = forward_rows(model, run, torch.arange(count), leaves, keep_value, answers=False)
    return {leaf["key"]: value.cpu() for leaf, value in zip(leaves, out["values"], strict=True)}


def fold_stages(
    model: Any,
    run: dict[str, Any],
    stages: list[dict[str, Any]],
    step: Callable[[Any, dict[str, Any], dict[str, Any], dict[str, Tensor]], None],
    data: dict[str, Any],
    count: int,
    chunk: int,
) -> dict[str, Tensor]:
    """Read the sites of one stage after another in one pass, and let a function reduce them on the way.

    So nothing of the size layers x heads x positions x positions is ever held.

    Args:
        model: The nnsight model.
        run: The batch (see `whence.probe.rows`).
        stages: In the order of the forward pass: ``name``, ``facts`` and ``leaves``; every leaf has the ``short``
            name by which the function knows it.
        step: ``step(model, state, stage, values)``, called inside the trace when all sites of a stage were read.
            The state is its own, but for ``run`` (the examples at hand), ``examples`` (their numbers in the
            batch), ``data``, and ``found``, where it puts what is wanted: tensors whose first axis is the
            examples. Values are the model's own tensors: they are not to be changed.
        data: Plain data for it.
        count: How many examples the batch has.
        chunk: Examples per pass.

    Returns:
        What it found, for all examples, on the CPU.
    """
    made = []
    for part in torch.arange(count).split(chunk):
        state: dict[str, Any] = {"run": select_rows(run, part), "examples": part, "data": data, "found": {}}
        edit = stage_edit(model, state, stages, step)
        with torch.no_grad():
            forward_rows(model, run, part, stage_leaves(stages), edit, answers=False)
        made.append({name: value.cpu() for name, value in state["found"].items()})
    return {name: torch.cat([one[name] for one in made]) for name in made[0]}


def stage_leaves(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The leaves of all stages in the order of the forward pass; their values are let go once they were seen."""
    leaves = [
        {**leaf, "stage": number, "passing": True} for number, stage in enumerate(stages) for leaf in stage["leaves"]
    ]
    return sorted(leaves, key=leaf_order)


def stage_edit(
    model: Any,
    state: dict[str, Any],
    stages: list[dict[str, Any]],
    step: Callable[[Any, dict[str, Any], dict[str, Any], dict[str, Tensor]], None],
) -> Callable[[dict[str, Any], Tensor], None]:
    """An edit that edits nothing, and calls the function whenever a stage is complete."""
    waiting: list[dict[str, Tensor]] = [{} for _ in stages]

    def edit(leaf: dict[str, Any], value: Tensor) -> None:
        number = leaf["stage"]
        waiting[number][leaf["short"]] = value
        if len(waiting[number]) == len(stages[number]["leaves"]):
            step(model, state, stages[number], waiting[number])
            waiting[number] = {}

    return edit
