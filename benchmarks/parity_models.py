"""The small models that every place serves, made from nothing so that every machine has the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

WORDS = (
    "the a cat dog bird man woman sat ran saw ate liked on under mat rug tree and but because he she it was not".split()
)
NAMES = ("gpt2", "llama", "t5")
_SPREAD = 0.1
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "vocab_size": 64}
# bitsandbytes quantises blocks of 64 numbers; a swarm wants blocks to share out.
_CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 64},
    "llama": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
    },
    "t5": {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_decoder_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "decoder_start_token_id": 0,
    },
}


def make_models(folder: Path) -> dict[str, Path]:
    """Write the checkpoints, with tokenizers.

    Args:
        folder: Where to.

    Returns:
        The folder of each model.
    """
    import transformers

    made = {}
    for name, settings in _CONFIGS.items():
        config = transformers.AutoConfig.for_model(name, **_IDS, **settings)
        kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
        torch.manual_seed(0)
        model = kind.from_config(config)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                noise = _SPREAD * torch.randn(parameter.shape)
                # Wide enough that attention is not uniform; norms stay close to one, embeddings of usual length.
                norm = "norm" in path or "ln_" in path
                wide = 5.0 if "embed" in path or "shared" in path or "wte" in path else 1.0
                parameter.copy_(parameter + noise if norm else wide * noise)
        model.tie_weights()
        where = folder / name
        model.save_pretrained(where)
        tokenizer(config.is_encoder_decoder).save_pretrained(where)
        file = where / "config.json"
        # What the servers of a swarm read, whose transformers is of 2023.
        told = {"rope_theta": 10000.0, "torch_dtype": "float32", **json.loads(file.read_text(encoding="utf-8"))}
        file.write_text(json.dumps(told, indent=2), encoding="utf-8")
        made[name] = where
    return made


def tokenizer(encoder_decoder: bool) -> Any:
    """Words by their place in a list; the source of an encoder ends with a token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", *WORDS]
    names += [f"w{number}" for number in range(len(names), 64)]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if encoder_decoder:
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
