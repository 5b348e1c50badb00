"""Wrapped tiny models, and traces that read or rewrite their sites; shared by the tests of sites."""

from __future__ import annotations

from functools import cache
from typing import Any

import nnsight
import torch

from tiny_models import EAGER_ONLY, FAMILIES, VARIANTS, tiny_inputs, tiny_model
from whence.models.access import read_site, write_site
from whence.models.components import Architecture, architecture, nnsight_names

ALL = FAMILIES + VARIANTS
FUSED = tuple(family for family in ALL if family not in EAGER_ONLY)
# Their scores have a bias by position or a soft cap on top of the products of queries and keys.
BIASED = ("bloom", "bloom_post_residual", "mpt", "falcon_alibi", "t5", "mt5", "t5_tied", "gemma2")
SINKS = ("gpt_oss",)


@cache
def wrapped(family: str, dtype: torch.dtype = torch.float32, attention: str = "eager") -> tuple[Any, Architecture]:
    """A model as `whence.load` makes it."""
    model = tiny_model(family, dtype, attention=attention).requires_grad_(False)
    found = architecture(model)
    rename, envoys = nnsight_names(found)
    return nnsight.NNsight(model, rename=rename, envoys=envoys), found


def read_all(model: Any, found: Architecture, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    specs = {name: site.spec for name, site in found.sites.items()}
    with model.trace(**inputs, use_cache=False):
        values = {}
        for name, spec in specs.items():
            values[name] = read_site(model, spec)
        nnsight.save(values)
    return values


@cache
def values_of(family: str, attention: str = "eager") -> dict[str, torch.Tensor]:
    return read_all(*wrapped(family, attention=attention), tiny_inputs(family))


def read(model: Any, spec: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with model.trace(**inputs, use_cache=False):
        value = nnsight.save(read_site(model, spec))
    return value


def rewritten(model: Any, spec: Any, inputs: dict[str, Any], noise: float) -> torch.Tensor:
    """Logits after reading a site and writing it back, with noise added."""
    with model.trace(**inputs, use_cache=False):
        value = read_site(model, spec)
        torch.manual_seed(0)
        write_site(model, spec, value + noise * torch.randn_like(value) if noise else value)
        logits = nnsight.save(model.output.logits)
    return logits


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return float((value - expected).abs().max() / expected.abs().max())


def blocks(found: Architecture) -> list[tuple[str, str]]:
    """The stack and the prefix of every block."""
    return [
        (stack, f"{stack}.blocks.{layer}" if found.encoder_decoder else f"blocks.{layer}")
        for stack, count in found.n_layers.items()
        for layer in range(count)
    ]


def attentions(found: Architecture) -> list[str]:
    return [name.removesuffix(".z") for name in found.sites if name.endswith(".z")]


def post_norm(family: str) -> bool:
    """Whether norms come after the sums, so that the residual stream passes through them."""
    return family in ("bart", "marian", "opt_post_norm")
