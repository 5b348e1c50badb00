"""Direct logit: what attention to each token adds to the logit, straight through the residual stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Need, Probe
from whence.core.errors import InputError
from whence.methods.internals.logit_parts import share_logit


@dataclass(frozen=True)
class DirectLogit(AbstractMethod):
    """What attention from the step's position to each token adds to the logit of the step's token.

    ``A[t, j] = sum over layers and heads of < u_t , part[l, h, q(t), j] >``, where the part is the attention weight
    times the value through the output projection, and ``u_t`` the output head's row of the token before the last
    norm, its statistics held. Signed, in logits, additive. With the components (``extras``: ``embedding``,
    ``attention_bias``, ``mlp``, ``final_norm_bias``, ``unembed_bias``, and ``after_unembed``, which is what a soft
    cap takes away or a bias adds) the scores sum to the logit; the check ``logit`` says how nearly. What reaches a
    token's position in earlier layers is counted as that token's; `alti_logit` follows it to the input. With
    ``target="contrast_logits_diff"`` all of it is about the token's logit less that of a foil.

    Source: Ferrando et al. 2023, section 3.1.

    Attributes:
        embedding: What the embedding of the step's own position adds: ``"separate"``, or ``"self"``, part of that
            token's score.
        per_layer: Keep an axis of layers.
        per_head: Keep an axis of heads.
    """

    embedding: Literal["separate", "self"] = "separate"
    per_layer: bool = False
    per_head: bool = False

    name: ClassVar[str] = "direct_logit"
    title: ClassVar[str] = "what attention to each token adds to the logit"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.INTERNALS, Need.ATTENTION, Need.LOGITS})
    cites: ClassVar[tuple[str, ...]] = ("ferrando2023",)
    cost: ClassVar[str] = "2F"
    additive: ClassVar[bool] = True
    signed: ClassVar[bool] = True
    view: ClassVar[Mapping[str, str]] = {"layer": "sum", "head": "sum", "unit": "sum"}
    targets: ClassVar[frozenset[str] | None] = frozenset({"contrast_logits_diff", "logit"})
    defaults: ClassVar[Mapping[str, object]] = {"target": "logit"}

    def __post_init__(self) -> None:
        if self.embedding not in ("separate", "self"):
            raise InputError(f"direct_logit: embedding is 'separate' or 'self', not {self.embedding!r}.")
        if self.embedding == "self" and (self.per_layer or self.per_head):
            raise InputError(
                "direct_logit: the embedding belongs to no layer and no head, so embedding='self' goes without "
                "per_layer and per_head."
            )

    def __call__(self, probe: Probe) -> Answer:
        """Share out the logits where the vectors are."""
        return share_logit(
            probe,
            self.name,
            routed=False,
            per_layer=self.per_layer,
            per_head=self.per_head,
            own_embedding=self.embedding == "self",
        )
