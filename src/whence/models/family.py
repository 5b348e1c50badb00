"""What a row of the table of architecture families says: the fields, and what each of them means.

A path is relative to the block (or, for ``embed``, ``blocks``, ``ln_final`` and ``unembed``, to the model).
``"a|b"`` takes the first that the module tree has; an empty alternative (``"a|"``) means that it may be
missing. ``:half`` after a path takes the first half of the module's output, ``:rest`` the second; ``:copy`` marks
an output that the model changes in place later. Where no module holds a value, a row quotes the line of the
``forward`` that makes it: the whole line, or its beginning up to an opening parenthesis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

PRE_NORM = "resid_pre ln1 attn resid_mid ln2 mlp resid_post"
POST_NORM = "resid_pre attn resid_mid ln1 mlp ln2 resid_post"
NORMED_BRANCHES = "resid_pre attn resid_mid mlp resid_post"
PARALLEL = "resid_pre ln1 attn ln2 mlp resid_post"
PRE_NORM_CROSS = "resid_pre ln1 attn resid_mid ln_cross cross_attn resid_mid_cross ln2 mlp resid_post"
POST_NORM_CROSS = "resid_pre attn resid_mid ln1 cross_attn resid_mid_cross ln_cross mlp ln2 resid_post"


@dataclass(frozen=True)
class Line:
    """A value that a line of a ``forward`` makes.

    Attributes:
        text: The line, or its beginning up to an opening parenthesis.
        nth: Which of the lines that read so, in the order of the source.
        item: Which element, where the line makes a tuple.
        scaled: Whether the next line divides the value in place by the square root of the head size.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    text: str
    nth: int = 0
    item: int | None = None
    scaled: bool = False


@dataclass(frozen=True)
class Attention:
    """How the attention modules of a family compute.

    Most call one function with query, key, value and mask, and everything is had from that ``call``;
    values that have a ``Line`` of their own are taken from there.

    Attributes:
        call: The line of the call, when the implementation is not the one of ``torch_call``.
        arguments: ``"interface"``: module, query, key, value, mask, as in transformers' attention interface;
            ``"plain"``: without the module.
        softmax: ``"float32"`` or ``"own"`` (the scores' dtype): what the family's eager function computes in.
        divisor: Attribute of the module that divides the scores, where the call does not say.
        window: Attribute of the module with a boolean mask that the call applies on its own.
        scale: Attribute of the module that multiplies the products of queries and keys, where scores have a ``Line``
            of their own; without one it is the inverse square root of the head size.
        torch_call: Call of torch's fused attention in the module's own ``forward``, if it has one.
        order: The order in which the values can be read.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    call: str = "attn_output, attn_weights = attention_interface("
    arguments: str = "interface"
    softmax: str = "float32"
    divisor: str = ""
    window: str = ""
    scale: str = ""
    q: Line | None = None
    k: Line | None = None
    v: Line | None = None
    scores: Line | None = None
    pattern: Line | None = None
    torch_call: Line | None = None
    order: str = "q k v scores pattern"


@dataclass(frozen=True)
class Stack:
    """Names of one stack of blocks; the defaults are Llama's.

    Attributes:
        order: What a block does, in the order of execution.
        attn_proj: The output projection, relative to the attention module.
        attn_out: What the attention branch adds to the residual stream, if not the projection's output.
        q_norm: Norm of the queries, relative to the attention module.
        k_norm: Norm of the keys, likewise.
        embed_norm: Norm between the embedding and the first block, relative to the model.
        branch_norms: Whether ``attn_out`` and ``mlp_out`` are norms.
        mlp_pre: Module whose output goes into the nonlinearity.
        mlp_act: The nonlinearity.
        mlp_up: Module whose output the nonlinearity's is multiplied with, in gated MLPs.
        mlp_post: Module whose input comes out of the MLP's hidden layer.
        resid_mid: Line of the block that adds the attention branch, or the module that returns the sum.
        heads: Attribute of the configuration with the number of query heads.
        flat: Line of the block before which batch and position are flattened into one axis.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    embed: str = "model.embed_tokens"
    blocks: str = "model.layers"
    ln_final: str = "model.norm"
    order: str = PRE_NORM
    ln1: str = "input_layernorm"
    ln2: str = "post_attention_layernorm"
    ln_cross: str = ""
    attn: str = "self_attn"
    attn_proj: str = "o_proj"
    attn_out: str = ""
    q_norm: str = "q_norm|"
    k_norm: str = "k_norm|"
    embed_norm: str = ""
    branch_norms: bool = False
    cross_attn: str = ""
    mlp: str = "mlp"
    mlp_pre: str = "mlp.gate_proj"
    mlp_act: str = "mlp.act_fn"
    mlp_up: str = "mlp.up_proj"
    mlp_post: str = "mlp.down_proj"
    mlp_out: str = ""
    resid_mid: str = "hidden_states = residual + hidden_states"
    resid_mid_cross: str = ""
    heads: str = "num_attention_heads"
    flat: str = ""
    attention: Attention = field(default_factory=Attention)


@dataclass(frozen=True)
class Variant:
    """Names that change when an attribute of the configuration has a value."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    config: str
    value: Any
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        name: The family's name.
        model_types: The ``config.model_type`` values it covers.
        decoder: The stack that makes the logits.
        encoder: The stack that reads the source, in encoder-decoder models.
        unembed: The output head.
        logit_cap: Attribute of the configuration with the soft cap between the output head and the logits.
        variants: Changes of the decoder's names, applied in order.
    """

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012 - read by pydantic, not a field

    name: str
    model_types: tuple[str, ...] = ()
    decoder: Stack = field(default_factory=Stack)
    encoder: Stack | None = None
    unembed: str = "lm_head"
    logit_cap: str = "final_logit_softcapping"
    variants: tuple[Variant, ...] = ()

    def stacks(self) -> dict[str, Stack]:
        """The stacks by name, in the order in which they run."""
        both = {"encoder": self.encoder, "decoder": self.decoder}
        return {name: stack for name, stack in both.items() if stack is not None}

    def configured(self, config: Any) -> Family:
        """This row with the variants that a configuration asks for."""
        decoder = self.decoder
        for variant in self.variants:
            if getattr(config, variant.config, None) == variant.value:
                decoder = replace(decoder, **variant.changes)
        return replace(self, decoder=decoder, variants=())
