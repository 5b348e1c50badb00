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
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from whence.probe.forward import (
    column_values,
    forward_rows,
    reference_rows,
    step_places,
    target_values,
)
from whence.probe.respond import capture, leaf_order

if TYPE_CHECKING:
    from jaxtyping import Float, Int
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
        run: The batch (see `whence.probe.forward`).
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
        (targets with the site written back), ``there`` [layer, example, column] or None, ``leak`` [layer, example, column],
        ``adjoint`` (two tensors) or None, and counters of rows and products.
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
            results += reverse(model, run, score, state, layers, question)
        else:
            results += forward(model, run, score, state, layers[0], question)
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


def advance(question: dict[str, Any], units: int) -> None:
    """Report progress, where someone listens (a place far away cannot call back)."""
    if question["advance"] is not None:
        question["advance"](units)


def is_input(leaf: dict[str, Any], embeds: list[dict[str, Any]]) -> bool:
    """Whether a leaf is one of the input embeddings."""
    return leaf["key"] in [embed["key"] for embed in embeds]


def span_ends(
    state: dict[str, Any], leaf: dict[str, Any], examples: Int[Tensor, " row"], value: Tensor
) -> tuple[Tensor, Tensor]:
    """The clean value of a leaf and its reference, for each row, as [row, position, unit]."""
    if state["reference"] is None:
        clean = value.detach()
        return clean, torch.zeros_like(clean)
    if is_input(leaf, state["embeds"]):
        clean = value.detach()
        return clean, reference_rows(state["reference"], leaf["stream"], examples, clean)
    clean, low = (state["ends"][end][leaf["key"]][examples] for end in ("clean", "reference"))
    return clean.to(value), low.to(value)


def at_point(clean: Tensor, low: Tensor, alpha: Tensor) -> Tensor:
    """The point of the path; exactly the clean value at alpha = 1."""
    shape = (-1,) + (1,) * (clean.dim() - 1)
    alpha = alpha.to(clean).view(shape)
    return torch.where(alpha == 1, clean, low + alpha * (clean - low))


def endpoints(
    model: Any, run: dict[str, Any], score: dict[str, Any], state: dict[str, Any], group: list[dict[str, Any]]
) -> tuple[Float[Tensor, "example column"], Float[Tensor, "example column"]]:
    """Targets with a site written back at its clean value, and written at its reference."""
    count = run["query"].shape[0]
    examples = torch.arange(count).repeat(2)
    alpha = torch.arange(2).flip(0).repeat_interleave(count).double()

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        clean, low = span_ends(state, leaf, examples, value)
        return at_point(clean, low, alpha)

    with torch.no_grad():
        out = forward_rows(model, run, examples, group, edit)
        columns = column_values(run, examples, target_values(run, score, examples, out["logits"])).cpu()
    state["counts"]["rows"] += 2 * count
    return columns[:count], columns[count:]


def reverse(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    groups: list[list[dict[str, Any]]],
    question: dict[str, Any],
) -> list[dict[str, Any]]:
    """Vector-Jacobian products of all columns at all points, one result per layer."""
    count, columns = run["columns"].shape[:2]
    points = torch.tensor(question["points"], dtype=torch.float64)
    examples = torch.arange(count).repeat_interleave(len(points))
    alphas = points.repeat(count)
    weights = torch.tensor(question["weights"], dtype=torch.float64).repeat(count)
    leaves = sorted([leaf for group in groups for leaf in group], key=leaf_order)
    totals = [None] * len(groups)
    leaks = torch.zeros(len(groups), count, columns)
    dots = torch.zeros(2, count, columns, dtype=torch.float64)
    at_clean = torch.zeros(count, columns, dtype=torch.float64) if 1.0 in question["points"] else None
    for part in torch.arange(len(examples)).split(question["rows"]):
        who, alpha = examples[part], alphas[part]
        displacement: dict[str, Tensor] = {}
        started: set[str] = set()

        def edit(
            leaf: dict[str, Any],
            value: Tensor,
            who: Tensor = who,
            alpha: Tensor = alpha,
            displacement: dict[str, Tensor] = displacement,
            started: set[str] = started,
        ) -> Tensor:
            clean, low = span_ends(state, leaf, who, value)
            displacement[leaf["key"]] = clean - low
            if started and state["reference"] is None and len(groups) > 1:
                return value
            started.add(leaf["key"])
            return at_point(clean, low, alpha).detach().requires_grad_(True)

        with torch.enable_grad():
            out = forward_rows(model, run, who, leaves, edit)
            steps = target_values(run, score, who, out["logits"])
            # Padding repeats a step; only steps that some column has may add to the head's gradient.
            used = (run["columns"][who].amax(1) > 0).to(steps)
            head = torch.autograd.grad((steps * used).sum(), out["hidden"], retain_graph=True)[0]
        state["counts"]["rows"] += len(part)
        advance(question, len(part))
        if at_clean is not None:
            at_one = (alpha == 1).nonzero()[:, 0]
            found = column_values(run, who, steps.detach()).double().cpu()
            at_clean.index_copy_(0, who[at_one], found[at_one])
        # A step's weight at the position whose logits predict it, and nowhere else.
        spread = torch.zeros(len(part), columns, head.shape[1], dtype=head.dtype, device=head.device)
        places = step_places(run, who, head.shape[1]).to(head.device)
        spread.scatter_add_(
            2, places[:, None, :].expand(-1, columns, -1), run["columns"][who].to(head)
        )
        keys = [leaf["key"] for leaf in leaves]
        chunks = torch.arange(columns).split(question["products"])
        for number, some in enumerate(chunks):
            cotangents = spread[:, some].transpose(0, 1).unsqueeze(-1) * head
            grads = torch.autograd.grad(
                out["hidden"],
                out["values"],
                cotangents,
                is_grads_batched=True,
                retain_graph=number < len(chunks) - 1,
                allow_unused=True,
            )
            state["counts"]["vjps"] += len(some) * len(part)
            advance(question, len(some) * len(part))
            by_key = dict(zip(keys, grads, strict=True))
            for layer, group in enumerate(groups):
                last = (alpha == points[-1]).to(head.device)
                joined, leak, dot = contract(run, state, group, by_key, displacement, who, some, question, last)
                if layer == 0:
                    for kind in range(2):
                        dots[kind].index_put_(
                            (who[:, None], some[None, :]), dot[kind].T.double().cpu(), accumulate=True
                        )
                if totals[layer] is None:
                    totals[layer] = torch.zeros(
                        count, columns, *joined.shape[2:], dtype=joined.dtype, device=joined.device
                    )
                scale = weights[part].to(joined).view(1, -1, *(1,) * (joined.dim() - 2))
                weighed = joined * scale
                for place, column in enumerate(some.tolist()):
                    totals[layer][:, column].index_add_(0, who.to(joined.device), weighed[place])
                    leaks[layer][:, column].scatter_reduce_(0, who, leak[place].float().cpu(), "amax")
    return [
        {"values": totals[k], "leak": leaks[k], "dots": dots, "at_clean": at_clean} for k in range(len(groups))
    ]


def contract(
    run: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    grads: dict[str, Tensor | None],
    displacement: dict[str, Tensor],
    examples: Int[Tensor, " row"],
    columns: Int[Tensor, " column"],
    question: dict[str, Any],
    last: Tensor,
) -> tuple[Tensor, Float[Tensor, "column row"], Float[Tensor, "two column row"]]:
    """Reduce the gradients of one layer to the numbers that are wanted.

    Returns:
        [column, row, token or feature (, unit)]; the largest value where a column cannot look; and the
        product with the whole displacement (with its absolute counterpart) in rows at the last point.
    """
    features = state["features"]
    width = features["width"]
    reduce = question["reduce"]
    parts = []
    dots = None
    for leaf in group:
        grad = grads[leaf["key"]]
        moved = displacement[leaf["key"]].flatten(2)
        if grad is None:
            grad = moved.new_zeros(len(columns), *moved.shape)
        grad = grad.flatten(3)
        product = (grad * moved).sum(-1) if reduce != "units" else grad * moved
        whole = product.sum(-1) if reduce == "units" else product
        pair = torch.stack([whole.sum(-1), whole.abs().sum(-1)])
        dots = pair if dots is None else dots + pair
        if reduce == "gradient":
            product = grad
        elif reduce in ("l1", "l2", "linf"):
            product = torch.linalg.vector_norm(grad, {"l1": 1, "l2": 2, "linf": float("inf")}[reduce], dim=-1)
        parts.append((features["offsets"][leaf["stream"]], product))
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
    return joined, leak, dots * last


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


def forward(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    question: dict[str, Any],
) -> list[dict[str, Any]]:
    """Jacobian-vector products along every feature's displacement at all points."""
    features = state["features"]
    count, columns = run["columns"].shape[:2]
    pairs, points = features["rows"], torch.tensor(question["points"], dtype=torch.float64)
    total = torch.zeros(count, columns, features["count"], dtype=torch.float64)
    final = torch.zeros(count, columns, dtype=torch.float64)
    at_clean = torch.zeros(count, columns, dtype=torch.float64) if 1.0 in question["points"] else None
    number = torch.arange(len(points)).repeat_interleave(len(pairs))
    pairs = pairs.repeat(len(points), 1)
    weights = torch.tensor(question["weights"], dtype=torch.float64)
    for part in torch.arange(len(pairs)).split(question["rows"]):
        who, feature = pairs[part].unbind(1)
        chosen = features["of"][who] == feature[:, None]
        value, tangent = tangents(model, run, score, state, group, who, points[number[part]], chosen)
        state["counts"]["rows"] += len(part)
        state["counts"]["jvps"] += len(part)
        advance(question, 2 * len(part))
        tangent = tangent.double().cpu()
        total.transpose(1, 2).index_put_(
            (who, feature), tangent * weights[number[part]][:, None], accumulate=True
        )
        last = number[part] == len(points) - 1
        final.index_add_(0, who[last], tangent[last])
        if at_clean is not None:
            at_one = (points[number[part]] == 1).nonzero()[:, 0]
            at_clean.index_copy_(0, who[at_one], value.double().cpu()[at_one])
    leak = torch.zeros(count, columns)
    wide = torch.promote_types(torch.get_default_dtype(), run["columns"].dtype)
    return [{"values": total.to(wide), "leak": leak, "dots": final, "at_clean": at_clean}]


def tangents(
    model: Any,
    run: dict[str, Any],
    score: dict[str, Any],
    state: dict[str, Any],
    group: list[dict[str, Any]],
    examples: Int[Tensor, " row"],
    alphas: Float[Tensor, " row"],
    chosen: Tensor,
) -> tuple[Float[Tensor, "row column"], Float[Tensor, "row column"]]:
    """Value and derivative of every column along the displacement of the chosen tokens of each row."""
    offsets = state["features"]["offsets"]

    def edit(leaf: dict[str, Any], value: Tensor) -> Tensor:
        clean, low = span_ends(state, leaf, examples, value)
        offset = offsets[leaf["stream"]]
        moves = chosen[:, offset : offset + clean.shape[1]].to(clean.device)
        moves = moves.view(*moves.shape, *(1,) * (clean.dim() - 2))
        direction = torch.where(moves, clean - low, torch.zeros_like(clean))
        return forward_ad.make_dual(at_point(clean, low, alphas), direction)

    # Fused attention kernels have no tangent; the plain one has, and gives the same numbers.
    with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH):
        out = forward_rows(model, run, examples, group, edit)
        steps = target_values(run, score, examples, out["logits"])
        value, tangent = forward_ad.unpack_dual(steps)
        if tangent is None:
            tangent = torch.zeros_like(value)
        return column_values(run, examples, value), column_values(run, examples, tangent)


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
        chosen = torch.ones(count, state["features"]["width"], dtype=torch.bool)
        _, tangent = tangents(model, run, score, state, group, everyone, last, chosen)
        state["counts"]["jvps"] += count
        return (tangent.double().cpu() - result["dots"][0]).abs(), result["dots"][1]
    # One product for a fixed mixture of the columns costs the same however many there are.
    mixture = torch.linspace(1.0, 2.0, run["columns"].shape[1], dtype=torch.float64)
    mixed = torch.einsum("c,ect->et", mixture.to(run["columns"]), run["columns"])[:, None]
    once = {**question, "mode": "reverse", "points": [question["points"][-1]], "weights": [1.0]}
    checked = reverse(model, {**run, "columns": mixed}, score, state, [group], once)[0]
    gap = (checked["dots"][0] - result["dots"] @ mixture[:, None]).abs()
    return gap.expand(-1, len(mixture)), checked["dots"][1].expand(-1, len(mixture))
