"""THE table of architecture families: one row per family, the only place with module paths.

`whence.models.family` says what the fields mean, and how paths and lines are written.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
    mlp_act="mlp.act",
    mlp_up="",
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
        mlp_act="mlp.act",
        mlp_up="",
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
        embed_norm="transformer.word_embeddings_layernorm",
        blocks="transformer.h",
        ln_final="transformer.ln_f",
        attn="self_attention",
        attn_proj="dense",
        mlp_pre="mlp.dense_h_to_4h",
        mlp_act="mlp.gelu_impl",
        mlp_up="",
        mlp_post="mlp.dense_4h_to_h",
        mlp_out="mlp.dense_4h_to_h",
        resid_mid="self_attention",
        attention=Attention(
            q=Line(_BLOOM_QKV, item=0),
            k=Line(_BLOOM_QKV, item=1),
            v=Line(_BLOOM_QKV, item=2),
            scores=Line("attn_weights = attention_scores.view("),
            pattern=Line("attention_probs = F.softmax("),
            scale="inv_norm_factor",
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
        mlp_act="mlp.act",
        mlp_up="",
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
        mlp_act="ffn.act",
        mlp_up="",
        mlp_post="ffn.down_proj",
        mlp_out="ffn.down_proj",
        resid_mid="hidden_states = self.resid_attn_dropout(",
        attention=Attention(
            q=Line("query_states = query_states.reshape("),
            k=Line("key_states = key_states.reshape("),
            v=Line("value_states = value_states.reshape("),
            scores=Line("attention_scores = attention_scores + position_bias"),
            pattern=Line("attn_weights = nn.functional.softmax("),
            scale="softmax_scale",
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
        mlp_act="activation_fn",
        mlp_up="",
        mlp_post="fc2",
        mlp_out="fc2",
        flat="hidden_states_shape = hidden_states.shape",
    ),
    variants=(Variant("do_layer_norm_before", False, {"order": POST_NORM}),),
)
_NORMED: dict[str, Any] = {
    "attn_out": "post_attention_layernorm",
    "mlp_out": "post_feedforward_layernorm",
    "branch_norms": True,
}
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
    mlp_act="mlp.activation_fn",
    mlp_up="mlp.gate_up_proj:rest",
    resid_mid="hidden_states = residual + self.resid_attn_dropout(hidden_states)",
)
# Layers with a mixture of experts have no single hidden layer, so these may be missing.
_LLAMA = _llama(
    "llama",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "gpt_oss",
    mlp_pre="mlp.gate_proj|",
    mlp_act="mlp.act_fn|",
    mlp_up="mlp.up_proj|",
    mlp_post="mlp.down_proj|",
)

_BART_ENCODER = Stack(
    embed="model.encoder.embed_tokens",
    embed_norm="model.encoder.layernorm_embedding|",
    blocks="model.encoder.layers",
    ln_final="",
    order=POST_NORM,
    ln1="self_attn_layer_norm",
    ln2="final_layer_norm",
    attn_proj="out_proj",
    mlp="",
    mlp_pre="fc1",
    mlp_act="activation_fn",
    mlp_up="",
    mlp_post="fc2",
    mlp_out="fc2",
    heads="encoder_attention_heads",
    attention=_OWN,
)
_BART_DECODER = replace(
    _BART_ENCODER,
    embed="model.decoder.embed_tokens",
    embed_norm="model.decoder.layernorm_embedding|",
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
    mlp_act="layer.1.DenseReluDense.act",
    mlp_up="layer.1.DenseReluDense.wi_1|",
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
    mlp_act="layer.2.DenseReluDense.act",
    mlp_up="layer.2.DenseReluDense.wi_1|",
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
