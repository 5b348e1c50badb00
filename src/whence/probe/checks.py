"""What every answer must satisfy: it is a number, a no-op changes nothing, both derivative modes agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from whence.core.contract import Gap
from whence.core.errors import ModelError, NonFiniteScore
from whence.models.model import Model

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_NOOP = 1e-5
_LEAK = 1e-6
_ADJOINT = 1e-3
# What rounding may do to an exact identity, beside the target, by bytes per number.
EXACT = {8: 1e-9, 4: 1e-4, 2: 5e-2}
_TINY = 1e-12


def derivative_gaps(
    model: Model, here: Float[Tensor, "example column"], found: dict[str, Any], mode: str
) -> tuple[Gap, ...]:
    """The checks that every derivative carries.

    Args:
        model: The model.
        here: Target of every column on the clean input.
        found: What the program `whence.probe.differentiate.differentiate` returned.
        mode: The derivative mode that was used.

    Returns:
        ``no-op`` (the clean value written back at the site gives the clean target), ``leak`` (reverse mode:
        nothing where a step cannot look) and, where both modes ran, ``adjoint``.
    """
    import torch

    # Half precision keeps about three digits, so its checks are as much looser.
    slack = 1.0 if model.dtype.itemsize >= 4 else 1e3
    sums = found["values"].flatten(3).abs().sum(-1).amax(0).to(here)
    scale = torch.maximum(sums, here.abs()).clamp_min(_TINY)
    gaps = []
    if found["noop"] is not None:
        gap = (found["noop"].to(here) - here).abs().amax(0)
        gaps.append(Gap("no-op", gap, scale, _NOOP * slack, "the clean value written back at the site"))
    if mode == "reverse":
        leak = found["leak"].amax(0).to(here)
        gaps.append(Gap("leak", leak, scale, _LEAK * slack, "scores where a step cannot look"))
    if found["adjoint"] is not None:
        gap, size = (part.to(here) for part in found["adjoint"])
        # A derivative that is next to nothing beside the target (a probability near 1) is the difference of
        # large ones, and the modes may differ by as much as rounding leaves of any exact identity.
        size = torch.maximum(size, scale * EXACT[model.dtype.itemsize] / (_ADJOINT * slack))
        gaps.append(Gap("adjoint", gap, size, _ADJOINT * slack, "forward mode against reverse mode"))
    return tuple(gaps)


def check_finite(model: Model, values: Tensor, what: str) -> Tensor:
    """The values, if they are all numbers.

    Args:
        model: The model they come from.
        values: The values.
        what: What they are, for the message.

    Returns:
        ``values``.

    Raises:
        NonFiniteScore: A value is NaN or infinite.
        ModelError: ... and the reason is that the model's weights are; they are named.
    """
    import torch

    if bool(torch.isfinite(values).all()):
        return values
    broken = non_finite_parameters(model)
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ModelError(
            f"the model's weights are not finite: {', '.join(broken[:5])}{more}. Load a checkpoint whose "
            "weights are numbers."
        )
    raise NonFiniteScore(
        f"{what}: NaN or infinity came out of {model.name} in {model.dtype}. Load the model in float32 "
        "(dtype='float32'), or explain another target: the probability of a token that the model masks "
        "has no logarithm."
    )


def non_finite_parameters(model: Model) -> list[str]:
    """Names of parameters that hold NaN or infinity."""
    import torch

    return [
        name
        for name, value in model.nn._module.named_parameters()
        if value.is_floating_point() and not bool(torch.isfinite(value).all())
    ]
