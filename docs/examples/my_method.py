"""A method of one's own: how much gradient and input overlap, whatever the sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import whence
from whence.core.contract import AbstractMethod, Answer, Need, Probe
from whence.core.errors import InputError


@dataclass(frozen=True)
class ProductNorm(AbstractMethod):
    """Length of the elementwise product of gradient and input.

    ``A[t, i] = || d f_t / d e_i * e_i ||``: at least 0. Unlike `input_x_gradient`, products of different
    sign do not cancel, so it says how much a token matters and not in which direction.

    Attributes:
        order: Order of the norm; 2 is the Euclidean length.
    """

    order: float = 2.0

    name: ClassVar[str] = "product_norm"
    title: ClassVar[str] = "length of gradient times input, unit by unit"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ()
    cost: ClassVar[str] = "2F + T VJPs"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    layer: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.order > 0:
            raise InputError(f"product_norm: the order of a norm is positive, not {self.order!r}.")

    def __call__(self, probe: Probe) -> Answer:
        # [example, step, token(, layer), unit]: the products, before anybody sums them.
        found = probe.differentiate(reduce="units")
        return Answer(
            found.values.norm(p=self.order, dim=-1),
            axes=("layer",) * bool(found.layers),
            per="token",
            merge="l2",
            labels={"layer": found.layers},
            gaps=found.gaps,
            record=found.record,
        )


whence.METHODS.add("product_norm", ProductNorm, overwrite=True)

if __name__ == "__main__":
    model = whence.load("whence/stories")
    model.attribute("Once upon a time", method="product_norm", order=1.0, generate={"max_new_tokens": 12}).show()
