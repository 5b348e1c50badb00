"""What is asked of a peer and of whence: calls that mean the same, and how the peer's answer is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from benchmarks.limit_rows import COMPARED, quarters

Reader = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Row:
    """A call of whence with its counterpart.

    Attributes:
        options: Arguments of `whence.Model.attribute`.
        method: What the peer calls the method.
        given: Further arguments of the peer.
        points: The argument, of both, that says how many points or samples there are; "" for none.
        counted: Whether whence takes points in what is timed; else only where scores are compared.
        same: Options of whence with which it computes exactly what the peer does; None where no two runs agree
            (random draws of its own, another definition).
        read: From the peer's [step, token, ...] to what whence's scores are compared with.
        mine: From whence's scores to what the peer's are compared with.
        whole: Whether the peer answers for all steps at once, so that no fewer can be asked for.
        families: The models that it is for.
        most: With another number of points than asked for, this one.
    """

    options: Mapping[str, Any]
    method: str
    given: Mapping[str, Any] = field(default_factory=dict)
    points: str = ""
    counted: bool = True
    same: Mapping[str, Any] | None = field(default_factory=dict)
    read: Reader = np.asarray
    mine: Reader = np.asarray
    whole: bool = False
    families: tuple[str, ...] = ("gpt2", "llama")
    most: int | None = None

    def asked(self, points: int) -> dict[str, Any]:
        """The options of whence that are timed, with so many points."""
        return {**self.options, **({self.points: points} if self.points and self.counted else {})}

    def compared(self, points: int) -> dict[str, Any]:
        """The options of whence with which it computes what the peer does."""
        return {**self.options, **({self.points: points} if self.points else {}), **(self.same or {})}


class Peer(Protocol):
    """A tool that explains the same model."""

    def run(self, row: Row, steps: int, points: int) -> tuple[np.ndarray, int]:
        """The peer's scores [step, token, ...] of so many steps, and the first of these steps."""
        ...


def over_units(values: np.ndarray) -> np.ndarray:
    """Products of units, summed."""
    return values.sum(-1)


def length(values: np.ndarray) -> np.ndarray:
    """The length of a vector of units."""
    return np.sqrt(np.square(values).sum(-1))


def all_steps(values: np.ndarray) -> np.ndarray:
    """Products of units, summed over units and steps; a step gives nothing to what it cannot see."""
    return np.nansum(values.sum(-1), axis=0, keepdims=True)


def shares(values: np.ndarray) -> np.ndarray:
    """Shares of each step and layer among the tokens that are there."""
    return values / values.sum(1, keepdims=True)


def in_quarters(source: int) -> Reader:
    """Products of units, summed over the tokens of each quarter of the prompt."""

    def read(values: np.ndarray) -> np.ndarray:
        return np.stack([values[:, part].sum((1, 2)) for part in quarters(source)], axis=1)

    return read


def inseq_rows(source: int) -> dict[str, Row]:
    """The calls that are compared with Inseq's, for a prompt of so many tokens."""
    four = {"segments": quarters(source), "sides": ["source"]}
    span = {"method": "input_x_gradient", "steps": "whole", "target": "logit"}
    sequential = "sequential_integrated_gradients"
    path = {"method": "integrated_gradients", **COMPARED}
    return {
        "saliency": Row({"method": "saliency"}, "saliency", read=length),
        "input_x_gradient": Row({"method": "input_x_gradient"}, "input_x_gradient", read=over_units),
        "integrated_gradients": Row(path, "integrated_gradients", points="n_steps", read=over_units),
        "gradient_shap": Row(
            {"method": "gradient_shap", **COMPARED}, "gradient_shap", points="n_samples", same=None, most=5
        ),
        "input_x_gradient, one span": Row(span, "input_x_gradient", {"attributed_fn": "logit"}, read=all_steps),
        "input_x_gradient, 4 segments": Row(
            {"method": "input_x_gradient", **four},
            "input_x_gradient",
            read=in_quarters(source),
            mine=lambda values: values[:, :4],
        ),
        # Inseq moves the generated tokens as well, so the ways differ.
        "integrated_gradients, 4 segments": Row(
            {**path, **four}, "integrated_gradients", points="n_steps", same=None, read=in_quarters(source)
        ),
        # whence subtracts the two ends of every way; the sum over points of a way is the same but for quadrature.
        sequential: Row(
            {"method": sequential, **COMPARED},
            sequential,
            points="n_steps",
            counted=False,
            same={"exact": False},
            read=over_units,
        ),
        "occlusion": Row({"method": "occlusion", **COMPARED}, "occlusion", mine=np.abs),
        # Inseq puts the number of the unknown word's id in every unit of a removed token.
        "lime": Row({"method": "lime", **COMPARED}, "lime", points="n_samples", same=None),
        "attention": Row({"method": "attention"}, "attention", whole=True),
        "value_zeroing": Row(
            {"method": "value_zeroing", "state": "final_norm", "threshold": 1e-5},
            "value_zeroing",
            whole=True,
            mine=lambda values: shares(values[:, :source]),
            families=("t5",),
        ),
        "reagent": Row({"method": "reagent"}, "reagent", same=None),
    }


def captum_rows() -> dict[str, Row]:
    """The calls that are compared with Captum's: log-probabilities, and the prompt only."""
    alike = {"target": "logprob", "sides": ["source"]}
    path = {"method": "integrated_gradients", **alike, **COMPARED}
    return {
        "input_x_gradient": Row({"method": "input_x_gradient", **alike}, "LayerGradientXActivation"),
        "integrated_gradients": Row(path, "LayerIntegratedGradients", points="n_steps"),
        "occlusion": Row({"method": "occlusion", **alike, **COMPARED}, "FeatureAblation", whole=True),
        "lime": Row(
            {"method": "lime", "steps": "whole", **alike, **COMPARED}, "Lime", points="n_samples", same=None, whole=True
        ),
    }
