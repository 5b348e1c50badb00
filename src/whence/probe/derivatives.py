"""Derivatives, put to the model: what `ModelProbe` needs for its question differentiate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from whence.core.contract import Accept, Derivatives, Path, Reduction, Rules, Subject
from whence.core.errors import InputError, UnsupportedError
from whence.core.progress import Progress
from whence.models.model import Model
from whence.probe.baseline import no_words
from whence.probe.checks import check_finite, derivative_gaps
from whence.probe.differentiate import differentiate
from whence.probe.layers import embedding_leaves
from whence.probe.payload import rules_data, score_data
from whence.probe.plan import Plan, choose_mode, make_plan

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from whence.probe.probe import ModelProbe

# Comparing both modes costs a sequence four to five of its products, measured on a CPU: little beside so many.
ADJOINT_PRODUCTS = 80


def take_derivatives(
    probe: ModelProbe,
    *,
    reduce: Reduction,
    paths: Sequence[Path],
    accept: Accept | None,
    reference: bool,
    of: Subject,
    rank: int,
    rules: Rules | None,
) -> Derivatives:
    """Derivatives of every column; arguments, result and errors as `ModelProbe.differentiate` says."""
    plan, pairs = plan_derivatives(
        probe, reduce=reduce, paths=paths, reference=reference, of=of, rank=rank, rules=rules
    )
    if reduce != "dot" and plan.mode in ("forward", "finite"):
        kind = "forward mode gives" if plan.mode == "forward" else "finite differences give"
        raise UnsupportedError(
            f"{kind} derivatives along directions, and this method needs the whole gradient. "
            "Use mode='reverse' or 'auto', where gradients are to be had."
        )
    if rules is not None and plan.mode == "finite":
        raise UnsupportedError(
            f"{rules} has rules in place of derivatives, and finite differences cannot follow them. Leave out "
            "derivative='finite', or take integrated_gradients."
        )
    if rules is not None and probe.row_width > 1:
        raise UnsupportedError(
            f"{rules} runs every row beside its reference, and {probe.target.name} needs further rows beside it. "
            "Take grad='main' or evaluate='main' in contrast, or integrated_gradients."
        )
    alone = any(path.alone for path in paths)
    if alone and not len(pairs):
        raise InputError(
            "every token keeps its true value, so no feature can be moved. Give keep='none' or another baseline."
        )
    otherwise = None
    if plan.mode == "forward" and probe.mode == "auto" and not alone:
        second = _sized(probe, "reverse", paths, len(pairs), probe.columns.shape[1], rules)
        otherwise = {"mode": "reverse", "rows": second.rows, "products": second.products}
    many = plan.derivatives >= ADJOINT_PRODUCTS * len(probe.groups)
    # Forward mode has no fused attention: with a long text the comparison would take far more memory than the scores.
    shape = probe.shape()
    small = shape.tangent_bytes() <= shape.graph_bytes(plan.products)
    adjoint = probe.thorough or plan.mode == "forward" or (many and small)
    with Progress("derivatives", plan.forwards + plan.derivatives) as bar:
        found = probe.model.run(
            differentiate,
            run=probe.target_run(),
            score=score_data(probe.target),
            embeds=embedding_leaves(probe.model.architecture),
            groups=probe.layers.groups,
            references=probe.references() if reference else None,
            features=_features(probe, reference, pairs),
            question={
                "paths": [_path_data(probe.model, path) for path in paths],
                "accept": accept,
                "of": of,
                "rank": rank,
                "reduce": reduce,
                "mode": plan.mode,
                "rows": plan.rows,
                "products": plan.products,
                "otherwise": otherwise,
                "adjoint": adjoint and plan.mode != "finite",
                "seed": probe.seed,
                "advance": bar.advance if probe.model.remote is None else None,
            },
            rules=None if rules is None else rules_data(probe.model, probe.target),
        )
    if "no_tangent" in found:
        raise UnsupportedError(f"forward mode is not possible here: {found['no_tangent']} Use mode='reverse'.")
    record = {
        "mode": found["mode"],
        **found["counts"],
        "rows_per_pass": plan.rows,
        "products_per_pass": plan.products,
        "path": found["path"],
    }
    if found["note"]:
        record["mode_note"] = found["note"]
    # By rules the shares of a site add up to a difference only where nothing goes past the site.
    whole = rules is None or probe.layers.complete
    there = found["there"] if whole else None
    return Derivatives(
        values=_answer(probe, found["values"], 3, "derivatives"),
        layers=probe.layers.labels,
        here=probe.here,
        there=None if there is None else _answer(probe, there, 3 if alone else 2, "reference run"),
        record=record,
        gaps=derivative_gaps(probe.model, probe.here, found),
        error=None if found["error"] is None else _answer(probe, found["error"], 3, "standard errors"),
        drift=None if found["drift"] is None else _answer(probe, found["drift"], 2, "standard errors"),
    )


def plan_derivatives(
    probe: ModelProbe,
    *,
    reduce: Reduction,
    paths: Sequence[Path],
    reference: bool,
    of: Subject,
    rank: int,
    rules: Rules | None,
) -> tuple[Plan, Int[Tensor, "row two"]]:
    """Chunk sizes of a question, and the rows that forward mode would run.

    Args:
        probe: The probe.
        reduce: As in `ModelProbe.differentiate`.
        paths: The paths; the plan is for all of them.
        reference: Whether there is a reference.
        of: As in `ModelProbe.differentiate`.
        rank: As in `ModelProbe.differentiate`.
        rules: As in `ModelProbe.differentiate`.

    Returns:
        The plan, and pairs of example and feature that can have a displacement.
    """
    import torch

    free = _free(probe) if reference else probe.batch.mask(probe.asked)
    pairs = []
    most = 0
    for row, groups in enumerate(probe.groups):
        able = free[row][probe.batch.slots[row]].tolist()
        moved = [k for k, members in enumerate(groups) if any(able[token] for token in members)]
        pairs += [(row, k) for k in moved]
        most = max(most, len(moved))
    columns = probe.columns.shape[2] * rank if of == "fisher" else probe.columns.shape[1]
    # Where each feature has rows of its own anyway, one direction per row is all there is to ask.
    features = 0 if any(path.alone for path in paths) else most
    chosen = choose_mode(probe.mode, features=features, columns=columns, contracts=reduce == "dot")
    plan = _sized(probe, chosen, paths, len(pairs), columns, rules)
    return plan, torch.tensor(pairs, dtype=torch.long).view(-1, 2)


def _sized(
    probe: ModelProbe, mode: str, paths: Sequence[Path], features: int, columns: int, rules: Rules | None
) -> Plan:
    model = probe.model
    return make_plan(
        probe.shape(),
        mode=mode,
        examples=features if any(path.alone for path in paths) else len(probe.groups),
        points=sum(len(path.points) for path in paths),
        features=features,
        columns=columns,
        free=model.free_bytes(),
        cpu=model.device.type == "cpu",
        most=1 if model.rows_interact else None,
        width=2 if rules is not None else probe.row_width,
    )


def _path_data(model: Model, path: Path) -> dict[str, Any]:
    """A path as plain data for programs."""
    words = None
    if path.words is not None:
        modules = [model.nn._module.get_submodule(where) for where in model.architecture.paths["embed"].values()]
        words = {
            "anchors": path.words.anchors,
            "neighbors": path.words.neighbors,
            "strategy": path.words.strategy,
            "vocabulary": [int(module.weight.shape[0]) for module in modules],
            "special": no_words(model),
        }
    return {
        "points": list(path.points),
        "samples": list(range(len(path.points))),
        "weights": list(path.weights),
        "legs": [tuple(leg) for leg in path.legs],
        "origins": list(path.origins),
        "noise": path.noise,
        "carried": path.carried,
        "item": path.item,
        "alone": path.alone,
        "words": words,
        "sampled": path.sampled,
    }


def _features(probe: ModelProbe, reference: bool, pairs: Int[Tensor, "row two"]) -> dict[str, Any]:
    batch = probe.batch
    of = probe.feature_of()
    if not reference:
        of = of.masked_fill(~batch.mask(probe.asked), -1)
    held = batch.mask([[True] * len(one.tokens) for one in batch.sequences])
    return {
        "of": of,
        "held": held,
        # Below the first layer every position holds something of every token before it.
        "noisy": held if probe.layers.deep else batch.mask([[not kept for kept in flags] for flags in probe.fixed]),
        "count": probe.feature_count,
        "offsets": batch.offsets,
        "width": batch.width,
        "last": batch.last_seen(),
        "start": batch.offsets[-1],
        "rows": pairs,
    }


def _free(probe: ModelProbe) -> Bool[Tensor, "example token"]:
    """Which places can have a displacement from some reference."""
    import torch

    if probe.layers.deep:
        return probe.feature_of() >= 0
    return torch.stack([torch.cat(one["replace"], dim=1) for one in probe.references()]).any(0)


def _answer(probe: ModelProbe, values: Tensor, place: int, what: str) -> Tensor:
    """Finite values with the axis of layers in its place, if layers were asked for as a list."""
    checked = check_finite(probe.model, probe.batch, values.movedim(0, place), what, probe.target)
    return checked if probe.layers.labels else checked.squeeze(place)
