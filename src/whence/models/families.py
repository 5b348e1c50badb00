"""THE table of architecture families: one row per family, the only place with module paths.

`whence.models.family` says what the fields mean, and how paths and lines are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from whence.core.errors import ModelError
from whence.models.family import (
    NORMED_BRANCHES,
    PARALLEL,
    POST_NORM,
    POST_NORM_CROSS,
    PRE_NORM,
    PRE_NORM_CROSS,
    Attention,
    Family,
    Line,
    Stack,
    Variant,
)
from whence.models.fitting import misfits


def _llama(name: str, *model_types: str, **changes: Any) -> Family:
    return Family(name, model_types or (name,), Stack(**changes))


_OWN = Attention(softmax="own")
_GPT = Stack(
    embed="transformer.wte",
    blocks="transformer.h",
    ln_final="transformer.ln_f",
    ln1="ln_1",
    ln2="ln_2",
    attn="attn",
    attn_proj="c_proj",
    mlp_pre="mlp.c_fc",
    mlp_post="mlp.c_proj",
    resid_mid="hidden_states = attn_output + residual",
    attention=_OWN,
)
_GPT_NEO = Family(
    "gpt_neo",
    ("gpt_neo",),
    replace(
        _GPT,
        attn="attn.attention",
        attn_proj="out_proj",
        attention=Attention(
            call="attn_output, attn_weights = self._attn(", arguments="plain", softmax="own", window="bias"
        ),
    ),
)
_GPTJ = Family(
    "gptj",
    ("gptj",),
    replace(
        _GPT,
        order="resid_pre ln1 attn mlp resid_post",
        attn_proj="out_proj",
        mlp_pre="mlp.fc_in",
        mlp_post="mlp.fc_out",
        attention=Attention(
            call="attn_output, attn_weights = self._attn(",
            arguments="plain",
            softmax="own",
            divisor="scale_attn",
        ),
    ),
)
_GPT_NEOX = Family(
    "gpt_neox",
    ("gpt_neox",),
    Stack(
        embed="gpt_neox.embed_in",
        blocks="gpt_neox.layers",
        ln_final="gpt_neox.final_layer_norm",
        attn="attention",
        attn_proj="dense",
        mlp_pre="mlp.dense_h_to_4h",
        mlp_post="mlp.dense_4h_to_h",
        resid_mid="attn_output = attn_output + hidden_states",
    ),
    unembed="lm_head|embed_out",
    variants=(Variant("use_parallel_residual", True, {"order": PARALLEL}),),
)
_BLOOM_QKV = "query_layer, key_layer, value_layer = self._reshape("
_BLOOM = Family(
    "bloom",
    ("bloom",),
    Stack(
        embed="transformer.word_embeddings",
        blocks="transformer.h",
        ln_final="transformer.ln_f",
        attn="self_attention",
        attn_proj="dense",
        mlp_pre="mlp.dense_h_to_4h",
        mlp_post="mlp.dense_4h_to_h",
        mlp_out="mlp.dense_4h_to_h",
        resid_mid="self_attention",
        attention=Attention(
            q=Line(_BLOOM_QKV, item=0),
            k=Line(_BLOOM_QKV, item=1),
            v=Line(_BLOOM_QKV, item=2),
            scores=Line("attn_weights = attention_scores.view("),
            pattern=Line("attention_probs = F.softmax("),
        ),
    ),
)
_FALCON_ROTARY = "query_layer, key_layer = apply_rotary_pos_emb("
_FALCON_TORCH = "attn_output = torch.nn.functional.scaled_dot_product_attention("
_FALCON_PARALLEL = {"order": "resid_pre ln1 ln2 attn mlp resid_post", "mlp_out": "mlp:copy"}
_FALCON = Family(
    "falcon",
    ("falcon",),
    Stack(
        embed="transformer.word_embeddings",
        blocks="transformer.h",
        ln_final="transformer.ln_f",
        ln1="ln_attn|input_layernorm",
        ln2="ln_mlp|post_attention_layernorm|",
        attn="self_attention",
        attn_proj="dense",
        mlp_pre="mlp.dense_h_to_4h",
        mlp_post="mlp.dense_4h_to_h",
        resid_mid="residual = dropout_add(",
        attention=Attention(
            q=Line(_FALCON_ROTARY, item=0),
            k=Line(_FALCON_ROTARY, item=1),
            v=Line("value_layer = value_layer.transpose("),
            scores=Line("attention_scores = query_layer @ key_layer.transpose(", scaled=True),
            pattern=Line("attention_scores = F.softmax("),
            torch_call=Line(_FALCON_TORCH),
            order="v q k scores pattern",
        ),
    ),
    variants=(
        Variant("parallel_attn", True, _FALCON_PARALLEL),
        Variant("new_decoder_architecture", True, _FALCON_PARALLEL),
        Variant(
            "alibi",
            True,
            {
                "attention": Attention(
                    q=Line("query_layer = query_layer.transpose("),
                    k=Line("key_layer = key_layer.transpose("),
                    v=Line("value_layer = value_layer.transpose("),
                    scores=Line("attention_logits = attention_scores + alibi.view(", scaled=True),
                    pattern=Line("attention_probs = F.softmax("),
                    torch_call=Line(_FALCON_TORCH, nth=1),
                )
            },
        ),
    ),
)
_MPT = Family(
    "mpt",
    ("mpt",),
    Stack(
        embed="transformer.wte",
        blocks="transformer.blocks",
        ln_final="transformer.norm_f",
        ln1="norm_1",
        ln2="norm_2",
        attn="attn",
        attn_proj="out_proj",
        mlp="ffn",
        mlp_pre="ffn.up_proj",
        mlp_post="ffn.down_proj",
        mlp_out="ffn.down_proj",
        resid_mid="hidden_states = self.resid_attn_dropout(",
        attention=Attention(
            q=Line("query_states = query_states.reshape("),
            k=Line("key_states = key_states.reshape("),
            v=Line("value_states = value_states.reshape("),
            scores=Line("attention_scores = attention_scores + position_bias"),
            pattern=Line("attn_weights = nn.functional.softmax("),
        ),
    ),
)
_OPT = Family(
    "opt",
    ("opt",),
    Stack(
        embed="model.decoder.embed_tokens",
        blocks="model.decoder.layers",
        ln_final="model.decoder.final_layer_norm|",
        ln1="self_attn_layer_norm",
        ln2="final_layer_norm",
        attn_proj="out_proj",
        mlp="",
        mlp_pre="fc1",
        mlp_post="fc2",
        mlp_out="fc2",
        flat="hidden_states_shape = hidden_states.shape",
    ),
    variants=(Variant("do_layer_norm_before", False, {"order": POST_NORM}),),
)
_NORMED = {"attn_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"}
_GEMMA = _llama(
    "gemma2",
    "gemma2",
    "gemma3",
    "gemma3_text",
    embed="model.embed_tokens|model.language_model.embed_tokens",
    blocks="model.layers|model.language_model.layers",
    ln_final="model.norm|model.language_model.norm",
    ln2="pre_feedforward_layernorm",
    **_NORMED,
)
_OLMO2 = _llama("olmo2", order=NORMED_BRANCHES, ln1="", ln2="", **_NORMED)
_PHI3 = _llama(
    "phi3",
    mlp_pre="mlp.gate_up_proj:half",
    resid_mid="hidden_states = residual + self.resid_attn_dropout(hidden_states)",
)
# Layers with a mixture of experts have no single hidden layer, so these two may be missing.
_LLAMA = _llama(
    "llama",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gpt_oss",
    mlp_pre="mlp.gate_proj|",
    mlp_post="mlp.down_proj|",
)

_BART_ENCODER = Stack(
    embed="model.encoder.embed_tokens",
    blocks="model.encoder.layers",
    ln_final="",
    order=POST_NORM,
    ln1="self_attn_layer_norm",
    ln2="final_layer_norm",
    attn_proj="out_proj",
    mlp="",
    mlp_pre="fc1",
    mlp_post="fc2",
    mlp_out="fc2",
    heads="encoder_attention_heads",
    attention=_OWN,
)
_BART_DECODER = replace(
    _BART_ENCODER,
    embed="model.decoder.embed_tokens",
    blocks="model.decoder.layers",
    order=POST_NORM_CROSS,
    ln_cross="encoder_attn_layer_norm",
    cross_attn="encoder_attn",
    resid_mid_cross="hidden_states = residual + hidden_states",
    heads="decoder_attention_heads",
)
_BART = Family("bart", ("bart", "marian"), _BART_DECODER, _BART_ENCODER)
_MBART = Family(
    "mbart",
    ("mbart", "m2m_100", "pegasus"),
    replace(_BART_DECODER, order=PRE_NORM_CROSS, ln_final="model.decoder.layer_norm"),
    replace(_BART_ENCODER, order=PRE_NORM, ln_final="model.encoder.layer_norm"),
)
_T5_ENCODER = Stack(
    embed="encoder.embed_tokens",
    blocks="encoder.block",
    ln_final="encoder.final_layer_norm",
    ln1="layer.0.layer_norm",
    ln2="layer.1.layer_norm",
    attn="layer.0.SelfAttention",
    attn_proj="o",
    mlp="layer.1.DenseReluDense",
    mlp_pre="layer.1.DenseReluDense.wi_0|layer.1.DenseReluDense.wi",
    mlp_post="layer.1.DenseReluDense.wo",
    resid_mid="layer.0",
    heads="num_heads",
    attention=_OWN,
)
_T5_DECODER = replace(
    _T5_ENCODER,
    embed="decoder.embed_tokens",
    blocks="decoder.block",
    ln_final="decoder.final_layer_norm",
    order=PRE_NORM_CROSS,
    ln2="layer.2.layer_norm",
    ln_cross="layer.1.layer_norm",
    cross_attn="layer.1.EncDecAttention",
    mlp="layer.2.DenseReluDense",
    mlp_pre="layer.2.DenseReluDense.wi_0|layer.2.DenseReluDense.wi",
    mlp_post="layer.2.DenseReluDense.wo",
    resid_mid_cross="layer.1",
)
_T5 = Family("t5", ("t5", "mt5"), _T5_DECODER, _T5_ENCODER)

FAMILIES: tuple[Family, ...] = (
    _LLAMA,
    _PHI3,
    _OLMO2,
    _GEMMA,
    Family("gpt2", ("gpt2",), _GPT),
    _GPT_NEO,
    _GPTJ,
    _GPT_NEOX,
    _OPT,
    _BLOOM,
    _FALCON,
    _MPT,
    _BART,
    _MBART,
    _T5,
)


def known_model_types() -> dict[str, Family]:
    """Every ``model_type`` of the table, and its row."""
    return {model_type: family for family in FAMILIES for model_type in family.model_types}


def family_from(row: Family | Mapping[str, Any]) -> Family:
    """Check a row that a user passes.

    Args:
        row: A `Family`, or a mapping with its fields; stacks are mappings too. ``"like"`` names a known model
            type whose row is the starting point, so that only what differs needs to be given.

    Returns:
        The row.

    Raises:
        ModelError: An unknown field, a field of the wrong type, or an unknown ``"like"``.
    """
    if isinstance(row, Family):
        return row
    import pydantic

    given = dict(row)
    like = given.pop("like", None)
    known = known_model_types()
    if like is not None and like not in known:
        raise ModelError(f"family: there is no row like {like!r}; known: {', '.join(sorted(known))}.")
    base = Family("given") if like is None else known[like]
    given = {"name": "given", **given}
    try:
        return pydantic.TypeAdapter(Family).validate_python(_merged(base, given))
    except pydantic.ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ModelError(
            f"family: {wrong}. A family has {_names(Family)}; a stack has {_names(Stack)}; "
            f"its attention has {_names(Attention)}; a line has {_names(Line)}."
        ) from None


def _merged(base: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a row, with those of a mapping put over them, stacks field by field."""
    merged = {f.name: getattr(base, f.name) for f in fields(base)}
    starts = {"decoder": Stack(), "encoder": Stack(), "attention": Attention()}
    for name, value in given.items():
        if name in starts and isinstance(value, Mapping):
            value = _merged(merged.get(name) or starts[name], value)
        merged[name] = value
    return merged


def _names(kind: type) -> str:
    return ", ".join(f.name for f in fields(kind))


def recognise(hf_model: Any, config: Any) -> Family:
    """The row of a model whose ``model_type`` is not in the table: the only one that its modules fit.

    Args:
        hf_model: The model.
        config: Its (text) configuration, for the rows that depend on it.

    Returns:
        The row.

    Raises:
        ModelError: No row, or more than one, fits.
    """
    reasons = {family.name: misfits(hf_model, family.configured(config)) for family in FAMILIES}
    fitting = [family for family in FAMILIES if not reasons[family.name]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        found = f"its modules fit {' and '.join(family.name for family in fitting)} alike"
    else:
        # Without the blocks nothing inside them could be looked for.
        nearest = min(reasons, key=lambda name: len(reasons[name]) + 50 * (".blocks" in str(reasons[name])))
        shown = reasons[nearest][:6]
        more = f" and {len(reasons[nearest]) - 6} more" if len(reasons[nearest]) > 6 else ""
        found = f"the nearest family is {nearest!r}, but it does not fit: {', '.join(shown)}{more}"
    raise ModelError(
        f"whence does not know the architecture {hf_model.config.model_type!r}: {found}. Pass family= to say "
        f"where its parts are, starting from a known one: {{'like': 'llama', 'decoder': {{'mlp': 'ffn'}}}}; "
        f"whence.models.family explains the fields. Known: {', '.join(sorted(known_model_types()))}."
    )
