"""A norm with its statistics held: an elementwise gain, an offset, and whether it removes the mean.

Travels with `whence.models.access`; the same rules hold.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from whence.models.operations import resolve

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

# So large that no norm's epsilon shows beside its square, and exact in every precision.
_LARGE = 128.0


def norm_form(model: Any, path: str, like: Float[Tensor, "... unit"], eps: float = 0.0) -> dict[str, Any]:
    """What a norm ``gain * (x - mean) / size + offset`` multiplies and adds, seen from outside.

    The module is called on three vectors, rather than asked for its attributes: families name their weights and
    epsilons differently, and some multiply by one plus the weight.

    Args:
        model: The nnsight model, in a trace.
        path: Path of the norm.
        like: A tensor of the dtype, device and width of its input.
        eps: What it adds to the mean square, for a gain that is exact in float64 too.

    Returns:
        ``gain`` and ``offset`` [unit], in float32 or better, and ``centred``, whether the mean is removed.
    """
    norm = resolve(model, path)
    wave = torch.ones_like(like.flatten(0, -2)[:1][None])
    wave[..., 1::2] = -1
    offset = wide(norm(torch.zeros_like(wave))[0, 0])
    flat = wide(norm(_LARGE * torch.ones_like(wave))[0, 0]) - offset
    shape = wide(norm(_LARGE * wave)[0, 0]) - offset
    # A vector of equal numbers has nothing but its mean.
    centred = bool(flat.abs().max() < 1e-2 * shape.abs().max())
    inner = without_mean(wide(wave[0, 0]), centred)
    size = (inner.square().mean() + eps / _LARGE**2).sqrt()
    return {"gain": shape * size / inner, "offset": offset, "centred": centred}


def passed_on(form: dict[str, Any], x: Float[Tensor, "... unit"]) -> Float[Tensor, "... unit"]:
    """A part of a norm's input as the norm passes it on, but for the division by the input's size."""
    return form["gain"] * without_mean(x, form["centred"])


def norm_scale(
    form: dict[str, Any], x: Float[Tensor, "... unit"], y: Float[Tensor, "... unit"]
) -> Float[Tensor, "..."]:
    """One over the size that a norm divided by, from its input and its output (least squares over units)."""
    inner = passed_on(form, x)
    return (inner * (y - form["offset"])).sum(-1) / inner.square().sum(-1).clamp_min(torch.finfo(inner.dtype).tiny)


def without_mean(x: Float[Tensor, "... unit"], centred: bool) -> Float[Tensor, "... unit"]:
    """A vector less its mean, if that is asked for."""
    return x - x.mean(-1, keepdim=True) if centred else x


def wide(x: Tensor) -> Tensor:
    """A tensor in float32 or better."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
