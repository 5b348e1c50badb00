"""The tests' model table: one tiny random model per architecture family, and per variant of the wiring.

Everything is built from a config, so no test needs a network. Weights are drawn wide (0.3 instead of
0.02) so that attention is not uniform, positions matter, and an edit anywhere moves the logits visibly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 64
PAD, BOS, EOS, UNK = 0, 1, 2, 3
SPREAD = 0.3

_IDS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
_GROUPED = {**_BASE, "num_key_value_heads": 2}
_GPT = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
_SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 64,
    "scale_embedding": True,
    "decoder_start_token_id": BOS,
    "forced_eos_token_id": None,
}
_T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "d_kv": 6,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 12,
    "decoder_start_token_id": PAD,
}
_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
_FALCON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "alibi": False,
    "multi_query": True,
    "parallel_attn": True,
    "new_decoder_architecture": False,
    "bias": True,
}

# id -> (model type of transformers, config options)
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 4}),
    "qwen2": ("qwen2", _GROUPED),
    "qwen3": ("qwen3", {**_GROUPED, "head_dim": 6}),
    "gemma2": (
        "gemma2",
        {
            **_GROUPED,
            "head_dim": 6,
            "query_pre_attn_scalar": 6,
            "sliding_window": 4,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": ("gemma3_text", {**_GROUPED, "head_dim": 6, "query_pre_attn_scalar": 6, "sliding_window": 4}),
    "phi3": ("phi3", {**_GROUPED, "sliding_window": None}),
    "gpt_neox": ("gpt_neox", {**_BASE, "use_parallel_residual": True, "rotary_pct": 0.5}),
    "opt": ("opt", {**_BASE, "ffn_dim": 24, "word_embed_proj_dim": 16, "do_layer_norm_before": True}),
    "bloom": ("bloom", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 4}),
    "falcon": ("falcon", _FALCON),
    "gptj": ("gptj", {**_GPT, "rotary_dim": 2}),
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 4,
            "max_position_embeddings": 64,
        },
    ),
    "mpt": ("mpt", {"vocab_size": VOCABULARY, "d_model": 16, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "olmo2": ("olmo2", _GROUPED),
    "qwen3_moe": ("qwen3_moe", {**_GROUPED, **_MOE, "head_dim": 6}),
    "gpt_oss": (
        "gpt_oss",
        {
            **_GROUPED,
            "head_dim": 6,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 4,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    ),
    "marian": ("marian", {**_SEQ2SEQ, "decoder_vocab_size": VOCABULARY}),
    "bart": ("bart", _SEQ2SEQ),
    "mbart": ("mbart", _SEQ2SEQ),
    "t5": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "m2m_100": ("m2m_100", _SEQ2SEQ),
    "pegasus": ("pegasus", _SEQ2SEQ),
    # variants
    "falcon_alibi": ("falcon", {**_FALCON, "alibi": True, "parallel_attn": False, "multi_query": False}),
    "falcon_sequential": ("falcon", {**_FALCON, "parallel_attn": False}),
    "falcon_new": (
        "falcon",
        {**_FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 2},
    ),
    "gpt_neox_sequential": ("gpt_neox", {**_BASE, "use_parallel_residual": False, "rotary_pct": 0.5}),
    "opt_post_norm": (
        "opt",
        {**_BASE, "ffn_dim": 24, "word_embed_proj_dim": 12, "do_layer_norm_before": False},
    ),
    "bloom_post_residual": (
        "bloom",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "n_layer": 2,
            "n_head": 4,
            "apply_residual_connection_post_layernorm": True,
        },
    ),
    "t5_tied": ("t5", {**_T5, "feed_forward_proj": "relu", "tie_word_embeddings": True}),
    "qwen3_moe_mixed": ("qwen3_moe", {**_GROUPED, **_MOE, "head_dim": 6, "mlp_only_layers": [0]}),
}

ENCODER_DECODER = ("marian", "bart", "mbart", "t5", "mt5", "m2m_100", "pegasus")
VARIANTS = (
    "falcon_alibi",
    "falcon_sequential",
    "falcon_new",
    "gpt_neox_sequential",
    "opt_post_norm",
    "bloom_post_residual",
    "t5_tied",
    "qwen3_moe_mixed",
)
DECODER_ONLY = tuple(name for name in _CONFIGS if name not in ENCODER_DECODER + VARIANTS)
FAMILIES = DECODER_ONLY + ENCODER_DECODER

# Families whose modelling code has no attention but the eager one.
EAGER_ONLY = ("bloom", "gptj", "gpt_neo", "mpt", "gpt_oss", "gemma2", "bloom_post_residual")

_WORDS = """
the a cat dog bird man woman child sat ran saw ate liked gave took went home away mat rug tree house red blue
big small old new in on under to from and but because he she it they was is not very quickly then , . ? !
"""


def is_encoder_decoder(family: str) -> bool:
    """Whether the model of this table entry has an encoder."""
    return _CONFIGS[family][0] in {_CONFIGS[name][0] for name in ENCODER_DECODER}


def tiny_model(
    family: str, dtype: torch.dtype = torch.float32, *, attention: str = "eager", **options: Any
) -> PreTrainedModel:
    """Build a fresh tiny model, the same weights every time.

    Args:
        family: An id of ``FAMILIES`` or ``VARIANTS``.
        dtype: The dtype of the weights.
        attention: The attention implementation, such as ``"eager"`` or ``"sdpa"``.
        options: Further options of the config.

    Returns:
        The model in evaluation mode, on the CPU.
    """
    import transformers

    model_type, settings = _CONFIGS[family]
    config = transformers.AutoConfig.for_model(model_type, **{**_IDS, **settings, **options})
    config._attn_implementation = attention
    # The fused kernel of mixture-of-experts layers knows neither float64 nor forward-mode differentiation.
    config._experts_implementation = "eager"
    kind = transformers.AutoModelForCausalLM
    if is_encoder_decoder(family):
        kind = transformers.AutoModelForSeq2SeqLM
    state = torch.get_rng_state()
    torch.manual_seed(0)
    try:
        model = kind.from_config(config, attn_implementation=attention)
        _scatter_weights(model)
    finally:
        torch.set_rng_state(state)
    model.generation_config.update(**_IDS, max_length=None)
    return model.to(dtype).eval()


def _scatter_weights(model: PreTrainedModel) -> None:
    """Draw every parameter wide enough that nothing downstream is degenerate; norms stay close to one."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(parameter + 0.2 * noise if norm else SPREAD * noise)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer.copy_(torch.randn(buffer.shape, generator=generator))
    model.tie_weights()


def tiny_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """Build a word-level tokenizer over the tiny vocabulary, with a trivial chat template.

    Encoder-decoder models get an end-of-text token after the source, as their own tokenizers do.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", *_WORDS.split()]
    names += [f"w{number}" for number in range(len(names), VOCABULARY)]
    numbers = {name: number for number, name in enumerate(names)}
    inner = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if is_encoder_decoder(family):
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ bos_token }} {{ message['content'] }} {{ eos_token }} {% endfor %}"
        "{% if add_generation_prompt %}{{ bos_token }}{% endif %}"
    )
    return tokenizer


def tiny_inputs(family: str, *, batch: int = 2, length: int = 7, steps: int = 4) -> dict[str, torch.Tensor]:
    """Random ids for one forward pass; with ``decoder_input_ids`` for an encoder-decoder model."""
    generator = torch.Generator().manual_seed(2)
    inputs = {"input_ids": torch.randint(4, VOCABULARY, (batch, length), generator=generator)}
    if is_encoder_decoder(family):
        inputs["decoder_input_ids"] = torch.randint(4, VOCABULARY, (batch, steps), generator=generator)
    return inputs
