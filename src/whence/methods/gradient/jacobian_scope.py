"""Jacobian scopes: how the state that the prediction is made from moves with each token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from whence.core.contract import AbstractMethod, Answer, Need, Probe, Subject
from whence.core.errors import InputError, unknown_name

_OF: dict[str, Subject] = {"semantic": "logit", "temperature": "norm", "fisher": "fisher"}


@dataclass(frozen=True)
class JacobianScope(AbstractMethod):
    """Length of the change of the last hidden state with each token's embedding, along chosen directions.

    With h what enters the unembedding W at the step and J its Jacobian: ``"semantic"`` is ``|| d (v . h) / d e_i ||``
    with v the token's row of W; ``"temperature"`` the same with ``v = h / ||h||``, which sharpens or flattens the
    prediction; ``"fisher"`` is ``sum over r of lam_r || d (u_r . h) / d e_i ||^2`` with (lam, u) the top eigenpairs
    of ``W' (diag p - p p') W``. At full rank that is the trace of J'FJ, and half of ``d' J'FJ d`` is how far (in
    nats) a small change d of the embedding moves the whole distribution. W includes what the model does to its
    logits (scale, soft-cap). At least 0, per unit of the embedding (fisher: nats per squared unit). A first-order
    number, like saliency.

    Source: Liu et al. 2026.

    Attributes:
        scope: ``"semantic"``, ``"temperature"`` or ``"fisher"``.
        rank: With ``"fisher"``, the number of eigenpairs, 1 up to the width of h; None is 1.
    """

    scope: Literal["semantic", "temperature", "fisher"] = "semantic"
    rank: int | None = None

    name: ClassVar[str] = "jacobian_scope"
    title: ClassVar[str] = "how the state that the prediction is made from moves with each token"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.EMBEDDINGS, Need.LOGITS, Need.GRADIENTS})
    cites: ClassVar[tuple[str, ...]] = ("liu2026",)
    cost: ClassVar[str] = "2F + T VJPs; with scope='fisher' 2F + r T VJPs"
    additive: ClassVar[bool] = False
    signed: ClassVar[bool] = False
    layer: ClassVar[bool] = True
    targets: ClassVar[frozenset[str] | None] = frozenset({"logit"})
    defaults: ClassVar[Mapping[str, Any]] = {"target": "logit"}

    def __post_init__(self) -> None:
        if self.scope not in _OF:
            raise unknown_name("scope of jacobian_scope:", str(self.scope), tuple(_OF))
        if self.rank is None:
            return
        if self.scope != "fisher":
            raise InputError(f"jacobian_scope: rank={self.rank!r} belongs to scope='fisher'; leave it out.")
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise InputError(f"jacobian_scope: rank is a whole number of at least 1, not {self.rank!r}.")

    def __call__(self, probe: Probe) -> Answer:
        """Ask for the derivatives of the last hidden state, reduced where the model is."""
        fisher = self.scope == "fisher"
        found = probe.differentiate(reduce="squares" if fisher else "l2", of=_OF[self.scope], rank=self.rank or 1)
        return Answer(
            found.values,
            axes=("layer",) * bool(found.layers),
            per="token",
            merge="sum" if fisher else "l2",
            labels={"layer": found.layers},
            gaps=found.gaps,
            record=found.record,
        )
