"""A logit shared out: what direct logit and ALTI-logit have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whence.core.contract import Answer, Extra, Gap, Probe, Stage
from whence.core.errors import UnsupportedError
from whence.methods.internals.logit_fold import logit_fold
from whence.methods.internals.part_checks import exactness, flat_rows, rebuilding
from whence.methods.internals.stages import attention_stages, norm_follows

if TYPE_CHECKING:
    from torch import Tensor

COMPONENTS = ("embedding", "attention_bias", "mlp", "final_norm_bias", "unembed_bias", "after_unembed")
# A stream that is no plain sum is off by as much as itself; rounding of half precision by a thousandth.
_PLAIN = 0.05


def share_logit(
    probe: Probe,
    name: str,
    *,
    routed: bool,
    per_layer: bool,
    per_head: bool,
    own_embedding: bool,
    spread_mlp: bool = False,
    norm: str = "l1",
) -> Answer:
    """Share out the logit of each step among tokens and components.

    Args:
        probe: The probe.
        name: The method, for messages.
        routed: To the tokens of the input, by ALTI, instead of to the positions that attention read.
        per_layer: Keep an axis of layers.
        per_head: Keep an axis of heads.
        own_embedding: The embedding of a step's position is that token's score, instead of a component.
        spread_mlp: Share out what MLPs add as ALTI shares out their position.
        norm: The norm of ALTI's proximities.

    Returns:
        The scores; components as extras.

    Raises:
        UnsupportedError: The model's residual stream is no plain sum of its branches.
    """
    anatomy = probe.anatomy
    if norm_follows(anatomy, "decoder"):
        raise _no_plain_sum(name)
    options = {
        "routed": routed,
        "norm": norm,
        "rollout": True,
        "spread_mlp": spread_mlp,
        "own_embedding": own_embedding,
        "per_layer": per_layer,
        "per_head": per_head,
        "widths": probe.widths,
    }
    found = probe.fold(_stages(probe, routed=routed), logit_fold, options)
    if bool((found["stream"] > _PLAIN).any()):
        raise _no_plain_sum(name)
    summed = {part: _columns(probe, found[part]) for part in ("scores", *COMPONENTS) if part in found}
    scores = summed.pop("scores")
    extras = {part: Extra(values, None, ("layer",) if values.dim() > 2 else ()) for part, values in summed.items()}
    gaps = [rebuilding(probe, found["rebuilding"]), _identity(probe, scores, list(summed.values()))]
    if routed:
        gaps.append(flat_rows(probe, found))
    axes = ("layer",) * per_layer + ("head",) * per_head
    return Answer(scores, axes, per="token", gaps=tuple(gaps), extras=extras)


def _stages(probe: Probe, *, routed: bool) -> list[Stage]:
    anatomy = probe.anatomy
    stages = attention_stages(anatomy, None if routed else ["decoder"])
    last = anatomy.layers["decoder"] - 1
    for layer in range(last + 1):
        sites = {"mlp": anatomy.site("decoder", "mlp_out", layer)}
        stages.append(Stage(f"decoder.{layer}.mlp", sites, {"kind": "mlp", "layer": layer}))
    end = {"stream": anatomy.site("decoder", "resid_post", last), "normed": anatomy.site("decoder", "ln_final")}
    stages.append(Stage("norm", end, {"kind": "norm"}))
    stages.append(Stage("end", {"unembed": "unembed", "logits": "logits"}, {"kind": "end"}))
    return stages


def _columns(probe: Probe, values: Tensor) -> Tensor:
    """The sum over the steps of each column."""
    import torch

    return torch.einsum("bct,bt...->bc...", probe.columns.to(values), values)


def _identity(probe: Probe, scores: Tensor, components: list[Tensor]) -> Gap:
    """Scores and components add up to the logit."""
    import torch

    parts = torch.cat(
        [scores.flatten(2), *(one.flatten(2) if one.dim() > 2 else one[..., None] for one in components)], -1
    )
    total, size = parts.sum(-1), parts.abs().sum(-1)
    here = probe.here.to(scores)
    note = "scores and components against the logit"
    return Gap("logit", (total - here).abs(), here.abs().maximum(size).clamp_min(1e-12), exactness(scores), note)


def _no_plain_sum(name: str) -> UnsupportedError:
    return UnsupportedError(
        f"{name} shares out a residual stream that is the plain sum of its branches, and in this model it passes "
        "through norms on the way. Take alti, or a gradient method with target='logit'."
    )
