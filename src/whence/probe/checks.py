"""What every answer must satisfy: it is a number, a no-op changes nothing, both derivative modes agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whence.core.contract import Gap, Need
from whence.core.errors import ModelError, NonFiniteScore
from whence.models.model import Model
from whence.probe.batch import Batch
from whence.probe.layers import leaf
from whence.probe.locate import locate
from whence.probe.payload import run_data, score_data
from whence.step_functions import StepFunction

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_NOOP = 1e-5
_LEAK = 1e-6
_ADJOINT = 1e-3
# How far slopes by finite differences may be from adding up, by bytes per number.
_DIFFERENCES = {8: 1e-2, 4: 1e-2, 2: 2e-1}
# How far main directions may be from being eigenvectors, by bytes per number.
_RESIDUAL = {8: 1e-4, 4: 1e-4, 2: 5e-2}
# What rounding may do to an exact identity, beside the target, by bytes per number.
EXACT = {8: 1e-9, 4: 1e-4, 2: 5e-2}
_TINY = 1e-12


def derivative_gaps(model: Model, here: Float[Tensor, "example column"], found: dict[str, Any]) -> tuple[Gap, ...]:
    """The checks that every derivative carries.

    Args:
        model: The model.
        here: Target of every column on the clean input.
        found: What the program `whence.probe.differentiate.differentiate` returned.

    Returns:
        ``no-op`` (the clean value written back at the site gives the clean target), ``leak`` (reverse mode:
        nothing where a step cannot look), where both modes ran ``adjoint``, for finite differences
        ``additivity`` (the slopes of the features add up to the slope along all of them), for main directions
        ``eigenvectors``, and for ways over words ``word distance``.
    """
    import torch

    # Half precision keeps about three digits, so its checks are as much looser.
    item = model.dtype.itemsize
    slack = 1.0 if item >= 4 else 1e3
    sums = found["values"].flatten(3).abs().sum(-1).amax(0).to(here)
    scale = torch.maximum(sums, here.abs()).clamp_min(_TINY)
    gaps = []
    if found["noop"] is not None:
        gap = (found["noop"].to(here) - here).abs().amax(0)
        gaps.append(Gap("no-op", gap, scale, _NOOP * slack, "the clean value written back at the site"))
    if found["mode"] == "reverse":
        leak = found["leak"].amax(0).to(here)
        gaps.append(Gap("leak", leak, scale, _LEAK * slack, "scores where a step cannot look"))
    if found["adjoint"] is not None:
        gap, size = (part.to(here) for part in found["adjoint"])
        # A derivative that is next to nothing beside the target (a probability near 1) is the difference of
        # large ones, and the modes may differ by as much as rounding leaves of any exact identity.
        size = torch.maximum(size, scale * EXACT[item] / (_ADJOINT * slack))
        gaps.append(Gap("adjoint", gap, size, _ADJOINT * slack, "forward mode against reverse mode"))
    if found["residual"] is not None:
        gap, size = (part.to(here) for part in found["residual"])
        note = "how far main directions are from being eigenvectors, beside the largest eigenvalue"
        gaps.append(Gap("eigenvectors", gap, size.clamp_min(_TINY), _RESIDUAL[item], note))
    if found["distance"] is not None:
        gap = found["distance"].to(here)[:, None].expand_as(here)
        note = "mean distance of the points on the way to the nearest word of the vocabulary"
        gaps.append(Gap("word distance", gap, torch.ones_like(gap), None, note))
    if found["whole"] is not None:
        gap, size = (part.to(here) for part in found["whole"])
        note = "slopes of the features against the slope along all of them; finite differences"
        gaps.append(Gap("additivity", gap, torch.maximum(size, scale), _DIFFERENCES[item], note))
    return tuple(gaps)


def check_finite(model: Model, batch: Batch, values: Tensor, what: str, target: StepFunction | None = None) -> Tensor:
    """The values, if they are all numbers.

    Args:
        model: The model they come from.
        batch: The sequences they come from.
        values: The values.
        what: What they are, for the message.
        target: The step function, where the values are its derivatives.

    Returns:
        ``values``.

    Raises:
        NonFiniteScore: A value is NaN or infinite; the layer where it begins is named.
        ModelError: ... and the reason is that the model's weights are; they are named.
    """
    import torch

    if bool(torch.isfinite(values).all()):
        return values
    names = [name for name, site in model.architecture.sites.items() if site.cut or name.endswith("resid_post")]
    # A target that compares runs is not taken apart here: the passes before it are looked at all the same.
    backward = target is not None and not target.needs and Need.GRADIENTS in model.provides
    found = model.run(
        locate,
        run=run_data(model, batch),
        score=score_data(target) if target is not None and backward else None,
        leaves=[leaf(model.architecture.sites[name], 0) for name in names],
        count=len(batch.sequences),
    )
    if broken := found["weights"]:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ModelError(
            f"the model's weights are not finite: {', '.join(broken[:5])}{more}. Load a checkpoint whose "
            "weights are numbers."
        )
    if found["forward"]:
        where = f"the forward pass is not finite from {found['forward']} on"
    elif found["backward"]:
        where = f"the forward pass is finite, the backward pass is not from {found['backward']} on"
    else:
        where = "every layer is finite, so it begins at the logits or in the target"
    raise NonFiniteScore(
        f"{what}: NaN or infinity came out of {model.name} in {model.dtype}; {where}. Load the model in float32 "
        "(dtype='float32'), or explain another target: the probability of a token that the model masks "
        "has no logarithm."
    )
