"""ALTI-logit: what attention adds to the logit, followed back to the tokens of the input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Need, Probe
from whence.core.errors import InputError
from whence.methods.internals.logit_parts import share_logit


@dataclass(frozen=True)
class ALTILogit(AbstractMethod):
    """What each token of the input adds to the logit of the step's token, through the positions attention reads.

    ``A[t, i] = sum over layers l and positions j of dl[t, j, l] M_(l-1)[j, i]``: what attention to position j adds to
    the logit (`direct_logit`), shared out among the tokens that position j is made of by then (`alti`). Signed, in
    logits, additive. With the components (``extras``, as for `direct_logit`) the scores sum to the logit; the check
    ``logit`` says how nearly. How a position is made up is measured by lengths, so that the sign is that of the last
    step alone. With ``target="contrast_logits_diff"`` all of it is about the token's logit less that of a foil.

    Source: Ferrando et al. 2023, section 3.2.

    Attributes:
        mlp: What MLPs of the step's position add: ``"separate"`` as in the paper, or ``"alti"``, shared out as
            the position is.
        embedding: What the embedding of the step's own position adds: ``"separate"``, or ``"self"``, part of that
            token's score.
        norm: The norm that ALTI takes lengths in: ``"l1"`` or ``"l2"``.
        per_layer: Keep an axis of layers.
        per_head: Keep an axis of heads.
    """

    mlp: Literal["separate", "alti"] = "separate"
    embedding: Literal["separate", "self"] = "separate"
    norm: Literal["l1", "l2"] = "l1"
    per_layer: bool = False
    per_head: bool = False

    name: ClassVar[str] = "alti_logit"
    title: ClassVar[str] = "what attention adds to the logit, followed back to the input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INTERNALS, Need.ATTENTION, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ("ferrando2023", "ferrando2022", "ferrando2022towards")
    cost: ClassVar[str] = "2F + L N^2 H d"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    view: ClassVar[Mapping[str, str]] = {"layer": "sum", "head": "sum", "unit": "sum"}
    targets: ClassVar[frozenset[str] | None] = frozenset({"contrast_logits_diff", "logit"})
    defaults: ClassVar[Mapping[str, object]] = {"target": "logit"}

    def __post_init__(self) -> None:
        for name, words in (("mlp", ("separate", "alti")), ("embedding", ("separate", "self")), ("norm", ("l1", "l2"))):
            given = getattr(self, name)
            if given not in words:
                raise InputError(f"alti_logit: {name} is {' or '.join(map(repr, words))}, not {given!r}.")
        if self.embedding == "self" and (self.per_layer or self.per_head):
            raise InputError(
                "alti_logit: the embedding belongs to no layer and no head, so embedding='self' goes without "
                "per_layer and per_head."
            )
        if self.mlp == "alti" and self.per_head:
            raise InputError("alti_logit: an MLP belongs to no head, so mlp='alti' goes without per_head.")

    def __call__(self, probe: Probe) -> Answer:
        """Share out the logits where the vectors are."""
        return share_logit(
            probe,
            self.name,
            routed=True,
            per_layer=self.per_layer,
            per_head=self.per_head,
            own_embedding=self.embedding == "self",
            spread_mlp=self.mlp == "alti",
            norm=self.norm,
        )
