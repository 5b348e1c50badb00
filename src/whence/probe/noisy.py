"""Dropout as an intervention: which sites lose values, and how many, as plain data for programs."""

from __future__ import annotations

from typing import Any

from whence.core.contract import Need
from whence.core.errors import InputError, UnsupportedError
from whence.models.components import Architecture
from whence.models.model import Model
from whence.probe.layers import leaf
from whence.step_functions import StepFunction

# What configurations call the rates, the special names before the general ones.
_NAMES = {
    "embed": ("embd_pdrop", "embedding_dropout", "embd_dropout", "hidden_dropout", "dropout", "dropout_rate"),
    "residual": ("resid_pdrop", "residual_dropout", "resid_dropout", "hidden_dropout", "dropout", "dropout_rate"),
    "attention": ("attn_pdrop", "attention_dropout", "attention_probs_dropout_prob", "dropout_rate"),
}
_SITES = {
    "residual": ("attn_out", "cross_attn_out", "mlp_out"),
    "attention": ("attn.pattern", "cross_attn.pattern"),
}


def noise_data(model: Model, function: StepFunction, seed: int) -> dict[str, Any]:
    """The runs under dropout that a step function needs (see `whence.probe.beside`).

    The embeddings of a stack, what its sublayers add to the residual stream, and its attention patterns lose values.

    Args:
        model: The model.
        function: The step function, with its options ``n_passes`` and ``rate``.
        seed: Seed of the masks.

    Raises:
        InputError: An option is out of range, or the model was trained without dropout and no rate is given.
        UnsupportedError: The place where the model runs does not give its inside.
    """
    options = function.default_options
    passes, rate = options.get("n_passes", 5), options.get("rate")
    if isinstance(passes, bool) or not isinstance(passes, int) or passes < 2:
        raise InputError(f"{function.name}: n_passes is a whole number of at least 2, not {passes!r}.")
    if rate is not None and not (isinstance(rate, int | float) and 0 < rate < 1):
        raise InputError(f"{function.name}: rate is a share between 0 and 1, not {rate!r}.")
    if Need.INTERNALS not in model.provides:
        raise UnsupportedError(
            f"{function.name} needs {Need.INTERNALS.value}, which {model.name} at place {model.place!r} does not give."
        )
    if model.rows_interact:
        raise UnsupportedError(
            f"{function.name}: rows of {model.name} change each other, so no passes run beside them."
        )
    rates = dropout_rates(model.config) if rate is None else dict.fromkeys(_NAMES, float(rate))
    if not any(rates.values()):
        raise InputError(
            f"{function.name}: {model.name} was trained without dropout; give a rate, such as "
            f"target='{function.name}:rate=0.1'."
        )
    return {"passes": passes, "seed": seed, "leaves": _leaves(model.architecture, rates)}


def dropout_rates(config: Any) -> dict[str, float]:
    """The rates that a model was trained with, of embeddings, residual stream and attention patterns; 0 for none."""
    text = config.get_text_config(decoder=True)
    return {
        kind: float(next((value for name in names if (value := getattr(text, name, None)) is not None), 0.0))
        for kind, names in _NAMES.items()
    }


def _leaves(architecture: Architecture, rates: dict[str, float]) -> list[dict[str, Any]]:
    found = []
    for stream, (stack, count) in enumerate(architecture.n_layers.items()):
        start = f"{stack}." if architecture.encoder_decoder else ""
        for layer in range(count):
            names = {"embed": ("resid_pre",) if layer == 0 else (), **_SITES}
            for kind, sites in names.items():
                for site in (f"{start}blocks.{layer}.{name}" for name in sites if rates[kind]):
                    if site not in architecture.sites:
                        continue
                    keys = {"keys": 0 if ".cross_attn." in site else stream} if kind == "attention" else {}
                    grid = "pair" if kind == "attention" else "unit"
                    found.append(
                        {**leaf(architecture.site(site), stream), **keys, "rate": float(rates[kind]), "grid": grid}
                    )
    return found
