"""The two architectures: untrained models around a tokenizer."""

from __future__ import annotations

from typing import Any

from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    PreTrainedModel,
)

MAX_POSITIONS = 256


def new_model(name: str, tokenizer: Any) -> PreTrainedModel:
    """Build an untrained model.

    Args:
        name: "stories" or "en-it".
        tokenizer: The tokenizer that its embeddings are for.

    Returns:
        The model, with the generation settings that go into its checkpoint.
    """
    model = _llama(tokenizer) if name == "stories" else _marian(tokenizer)
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if name == "stories":
        model.generation_config = GenerationConfig(**ids, do_sample=False, max_length=192)
    else:
        model.generation_config = GenerationConfig(
            **ids,
            do_sample=False,
            num_beams=1,
            max_length=64,
            decoder_start_token_id=tokenizer.pad_token_id,
            bad_words_ids=[[tokenizer.pad_token_id]],
        )
    return model


def _llama(tokenizer: Any) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.05,
        )
    )


def _marian(tokenizer: Any) -> PreTrainedModel:
    return MarianMTModel(
        MarianConfig(
            vocab_size=len(tokenizer),
            d_model=128,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=384,
            decoder_ffn_dim=384,
            max_position_embeddings=MAX_POSITIONS,
            # As in the published Marian models: word embeddings of the same size as the positions.
            scale_embedding=True,
            activation_function="swish",
            dropout=0.0,
            attention_dropout=0.0,
            activation_dropout=0.0,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            decoder_start_token_id=tokenizer.pad_token_id,
            forced_eos_token_id=None,
            init_std=0.08,
        )
    )
