"""DeepLIFT's rules: inside a pass, what is not linear keeps its value and gets another derivative.

A pass holds rows of two kinds: first the runs that are explained, then the runs of their references. For every
operation ``y = f(x)`` a multiplier ``M`` with ``M (x - x') = y - y'`` is found, ``x'`` and ``y'`` being the values in
the reference's row, and ``y`` is replaced by ``stop(y) + M (x - stop(x))``. By the chain rule the derivatives that come
out add up to the whole difference (Shrikumar et al. 2017, sections 3.2 and 3.5.1). Nothing flows to a reference's row.

| operation | multiplier |
|---|---|
| elementwise | slope of the secant |
| product of two values | the mean of the other factor over both rows, which is Shapley's share |
| softmax | ``diag(L) - L L' / sum(L)``, L the logarithmic mean of both rows' probabilities |
| norm | a product of the (centred) input with its scale, whose own multiplier is had from the mean square |

These functions travel to remote places by their source (see `whence.models.programs` for the rules). Plain data they
pass around:

``pairs`` ``bends`` (see `whence.models.components.Architecture`), ``partner`` [explained row] (the place of each row's
          reference among the reference rows), ``rows`` (how many there are of both kinds)
``triple`` a value of the explained rows, of their references, and a zero with the explained rows' derivative
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.models.access import instrument, read_site, remember_rows, write_site
from whence.models.attention import per_query_head, score_facts
from whence.models.norms import norm_form, wide, without_mean
from whence.models.operations import resolve
from whence.step_functions.multipliers import logarithmic_mean

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor


def prepare_rules(model: Any, places: list[dict[str, Any]], rows: int) -> None:
    """Prepare what sites and rules look into, as it is too late for that when a rule comes before the first site.

    Args:
        model: The nnsight model, in a trace that has just begun.
        places: The leaves and operations of the pass.
        rows: How many rows it has.
    """
    remember_rows(rows)
    for place in places:
        instrument(model, place.get("spec", place))


def apply_rule(model: Any, bend: dict[str, Any], pairs: dict[str, Any], memory: dict[str, Any]) -> None:
    """Let one operation of a running trace have its rule.

    Args:
        model: The nnsight model.
        bend: The operation.
        pairs: Which rows belong together.
        memory: Values that later rules of the same trace need.
    """
    kind = bend["rule"]
    if kind == "keep":
        memory[bend["key"]] = read_site(model, bend["spec"])
    elif kind == "norm":
        module = resolve(model, bend["path"])
        change = normed(model, bend, module.input, pairs)
        module.output = joined(module.output, change, pairs)
    elif kind == "cap":
        change = bent(soft_cap(bend["cap"]), paired(resolve(model, bend["path"]).output, pairs))[2]
        write_site(model, bend["spec"], joined(read_site(model, bend["spec"]), change, pairs))
    elif kind == "elementwise":
        module = resolve(model, bend["path"])
        value = module.input
        # The module itself computes without derivatives, which some (Bloom's) do not have in every mode.
        module.input = value.detach()
        change = bent(module, paired(value, pairs))[2]
        memory[bend["key"]] = module.output = joined(module.output, change, pairs)
    elif kind == "gate":
        first, second = (paired(memory[key], pairs) for key in bend["factors"])
        change = product(first, second, torch.mul)[2]
        write_site(model, bend["spec"], joined(read_site(model, bend["spec"]), change, pairs))
    elif kind == "pattern":
        memory[bend["key"]] = attended(model, bend, pairs, memory)
    else:
        change = memory[bend["key"]].transpose(1, 2)
        write_site(model, bend["spec"], joined(read_site(model, bend["spec"]), change, pairs))


def paired(value: Float[Tensor, "row ..."], pairs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The triple of a value, in float32 or better."""
    value = wide(by_row(value, pairs))
    count = len(pairs["partner"])
    high, low = value[:count], value[count:].detach()[pairs["partner"].to(value.device)]
    return high.detach(), low, high - high.detach()


def joined(value: Tensor, change: Tensor, pairs: dict[str, Any]) -> Tensor:
    """A value whose explained rows have the derivative of a change."""
    rows = by_row(value, pairs).detach()
    count = len(pairs["partner"])
    return torch.cat([rows[:count] + change.to(rows.dtype), rows[count:]]).reshape(value.shape)


def by_row(value: Tensor, pairs: dict[str, Any]) -> Tensor:
    """A value with an axis of rows, which some blocks join with that of positions."""
    return value if value.shape[0] == pairs["rows"] else value.unflatten(0, (pairs["rows"], -1))


def product(
    a: tuple[Tensor, Tensor, Tensor], b: tuple[Tensor, Tensor, Tensor], multiply: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """``a b - a' b' = (a - a') (b + b') / 2 + (a + a') / 2 (b - b')``, for numbers and for matrices."""
    change = multiply(a[2], (b[0] + b[1]) / 2) + multiply((a[0] + a[1]) / 2, b[2])
    return multiply(a[0], b[0]), multiply(a[1], b[1]), change


def bent(fn: Callable[[Tensor], Tensor], a: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """An elementwise function: the slope of its secant.

    Where both values are close the difference of the function's values is mostly rounding. The mean of its
    derivative over the way (at the two nodes of Gauss) is taken wherever it explains that difference, up to rounding.
    """
    high, low, change = a
    with torch.no_grad():
        top, bottom = fn(high), fn(low)
    run, rise = high - low, top - bottom
    middle, aside = (high + low) / 2, run / 12**0.5
    mean = (slope(fn, middle - aside) + slope(fn, middle + aside)) / 2
    noise = 8 * torch.finfo(rise.dtype).eps * (high.abs() + low.abs() + top.abs() + bottom.abs())
    secant = rise / torch.where(run == 0, 1.0, run)
    steep = torch.where((mean * run - rise).abs() <= noise, mean, secant)
    return top, bottom, steep * change


def slope(fn: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The derivative of an elementwise function."""
    with torch.enable_grad():
        point = point.detach().requires_grad_(True)
        return torch.autograd.grad(fn(point).sum(), point)[0]


def soft_cap(cap: float) -> Callable[[Tensor], Tensor]:
    """``cap tanh(x / cap)``."""

    def capped(x: Tensor) -> Tensor:
        return cap * torch.tanh(x / cap)

    return capped


def normed(model: Any, bend: dict[str, Any], value: Tensor, pairs: dict[str, Any]) -> Tensor:
    """The change of a norm ``gain c (mean(c^2) + eps)^(-1/2) + offset``, with c its input, or that less its mean.

    With the scale ``r = (v + eps)^(-1/2)`` of the mean square v: ``r - r' = -(r r')^2 / (r + r') (v - v')``, a square
    is a product, and so is ``c r``.
    """
    with torch.no_grad():
        form = norm_form(model, bend["path"], value, bend["eps"])
    high, low, change = (without_mean(part, form["centred"]) for part in paired(value, pairs))
    r, r_low = ((part.square().mean(-1, keepdim=True) + bend["eps"]).rsqrt() for part in (high, low))
    middle = (high + low) / 2
    scale_change = -(r * r_low).square() / (r + r_low) * (2 * middle * change).mean(-1, keepdim=True)
    return form["gain"] * product((high, low, change), (r, r_low, scale_change), torch.mul)[2]


def attended(model: Any, bend: dict[str, Any], pairs: dict[str, Any], memory: dict[str, Any]) -> Tensor:
    """The change of what every head of an attention module gathers: [row, head, position, unit].

    Biases and masks are the same in both rows, so the scores' differences are those of the products alone.
    """
    name = bend["key"]
    facts = {"scale": bend["scale"], "cap": None, "sinks": False}
    if bend["scale"] is None:
        facts = score_facts(model, bend["spec"])
    pattern = read_site(model, bend["spec"]).detach()
    query, key, value = (memory[f"{name}.{part}"].transpose(1, 2) for part in ("q", "k", "v"))
    key, value = (per_query_head(part, query.shape[1]) for part in (key, value))
    scores = product(paired(query * facts["scale"], pairs), paired(key.transpose(-1, -2), pairs), torch.matmul)
    if facts["cap"] is not None:
        scores = bent(soft_cap(facts["cap"]), scores)
    weights = softmaxed(paired(pattern, pairs), scores, facts["sinks"])
    return product(weights, paired(value, pairs), torch.matmul)[2]


def softmaxed(
    pattern: tuple[Tensor, Tensor, Tensor], scores: tuple[Tensor, Tensor, Tensor], sinks: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A softmax, whose values are known, of scores that are known up to what both rows have in common.

    With ``u = ln p - ln p'`` the logarithmic mean is ``L = (p - p') / u``, and u is the difference of the scores less
    that of the logarithms of their sums. From ``sum(p - p') = 0`` that is ``sum(L ds) / sum(L)``.
    """
    high, low, _ = pattern
    change, run = scores[2], scores[0] - scores[1]
    if sinks:
        # What goes to no key is one more key, whose score is the same in both rows.
        high, low = (torch.cat([part, 1 - part.sum(-1, keepdim=True)], dim=-1) for part in (high, low))
        change, run = (torch.nn.functional.pad(part, (0, 1)) for part in (change, run))
    means = logarithmic_mean(high, low, run - log_sum_change(high, low, run))
    total = means.sum(-1, keepdim=True).clamp_min(torch.finfo(means.dtype).tiny)
    change = means * (change - (means * change).sum(-1, keepdim=True) / total)
    return pattern[0], pattern[1], change[..., : pattern[0].shape[-1]]


def log_sum_change(high: Tensor, low: Tensor, run: Tensor) -> Tensor:
    """The change of ``ln sum(exp(scores))``, from the probabilities of one row and the scores' differences.

    Both rows' probabilities give it; of the two the one is taken that lost less of the other row to underflow.
    """
    above = (low.log() + run).logsumexp(-1, keepdim=True)
    below = -(high.log() - run).logsumexp(-1, keepdim=True)
    lost_above = (high * (low == 0)).sum(-1, keepdim=True)
    lost_below = (low * (high == 0)).sum(-1, keepdim=True)
    return torch.where(lost_above <= lost_below, above, below)
