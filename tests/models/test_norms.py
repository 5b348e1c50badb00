"""Norms seen from outside: what they multiply and add, whether they remove the mean."""

from __future__ import annotations

import nnsight
import pytest
import torch

from site_traces import ALL, values_of, wrapped
from tiny_models import tiny_inputs
from whence.models.norms import norm_form, norm_scale, passed_on


def forms(family: str) -> dict[str, dict]:
    """The form of every norm of a model, by the norm's site."""
    model, found = wrapped(family)
    names = [name for name in found.sites if name.rpartition(".")[2].startswith("ln")]
    like = values_of(family)[names[0]]
    made = {}
    with torch.no_grad(), model.trace(**tiny_inputs(family), use_cache=False):
        for name in names:
            made[name] = norm_form(model, found.site(name).spec["path"], like)
        nnsight.save(made)
    return made


@pytest.mark.parametrize("family", ALL)
def test_a_norm_with_held_statistics_is_the_norm_where_they_were_taken(family: str):
    model, found = wrapped(family)
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0)) * 3 + 1
    for name, form in forms(family).items():
        norm = model._module.get_submodule(found.site(name).spec["path"])
        with torch.no_grad():
            y = norm(x)
        scale = norm_scale(form, x, y)[..., None]
        torch.testing.assert_close(scale * passed_on(form, x) + form["offset"], y, rtol=1e-4, atol=1e-5)
        # Linear in the parts of its input, and blind to a constant exactly where the mean is removed.
        parts = scale * passed_on(form, 0.25 * x) + scale * passed_on(form, 0.75 * x)
        torch.testing.assert_close(parts + form["offset"], y, rtol=1e-4, atol=1e-5)
        assert form["centred"] == isinstance(norm, torch.nn.LayerNorm)
        gain = 1 + norm.weight if family.startswith("gemma") else norm.weight
        torch.testing.assert_close(form["gain"], gain.detach(), rtol=1e-4, atol=1e-5)
        bias = getattr(norm, "bias", None)
        torch.testing.assert_close(form["offset"], torch.zeros(16) if bias is None else bias.detach())
