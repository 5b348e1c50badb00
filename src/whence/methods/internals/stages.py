"""Which sites say what an attention module added to the residual stream, for every module of a model."""

from __future__ import annotations

from collections.abc import Sequence

from whence.core.contract import Anatomy, Stage

# Norm after the sum, branch, and the sums before and after, of self attention and of cross attention.
_SELF = ("ln1", "resid_pre", "resid_mid")
_CROSS = ("ln_cross", "resid_mid", "resid_mid_cross")


def attention_stages(anatomy: Anatomy, stacks: Sequence[str] | None = None) -> list[Stage]:
    """A stage for every attention module, in the order of the forward pass.

    Their values are what `whence.probe.branches.attention_block` takes: ``v``, ``pattern``, ``z``, ``out`` (what is
    added to the stream), ``before`` and ``after`` (the stream; the latter is missing where attention and MLP run
    side by side) and ``normed`` (where a norm comes after the sum).

    Args:
        anatomy: The model's stacks and sites.
        stacks: Which stacks; None is all.

    Returns:
        The stages. Their facts are ``stack``, ``layer``, ``kind`` (``"attn"`` or ``"cross_attn"``), ``closes`` (the
        last attention module of its block) and ``last`` (the last of all).
    """
    found = []
    chosen = list(anatomy.layers) if stacks is None else list(stacks)
    for stack in chosen:
        for layer in range(anatomy.layers[stack]):
            crosses = anatomy.has(stack, "cross_attn.pattern", layer)
            last = stack == chosen[-1] and layer == anatomy.layers[stack] - 1
            for kind in ("attn", "cross_attn")[: 1 + crosses]:
                closes = kind == "cross_attn" or not crosses
                facts = {"stack": stack, "layer": layer, "kind": kind, "closes": closes, "last": last and closes}
                sites = _sites(anatomy, stack, layer, kind)
                found.append(Stage(f"{stack}.{layer}.{kind}", sites, facts))
    return found


def _sites(anatomy: Anatomy, stack: str, layer: int, kind: str) -> dict[str, str]:
    norm, before, after = _SELF if kind == "attn" else _CROSS
    names = {"v": f"{kind}.v", "pattern": f"{kind}.pattern", "z": f"{kind}.z", "out": f"{kind}_out", "before": before}
    if anatomy.has(stack, after, layer):
        names["after"] = after
    if anatomy.before(stack, after, norm, layer):
        names["normed"] = norm
    return {short: anatomy.site(stack, name, layer) for short, name in names.items()}


def norm_follows(anatomy: Anatomy, stack: str) -> bool:
    """Whether a stack's norms come after its sums, so that the residual stream passes through them."""
    return anatomy.before(stack, "resid_mid", "ln1", 0)
