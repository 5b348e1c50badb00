"""Write the checkpoint that the servers of ``scripts/petals_swarm.sh`` hold: a random Llama, and its tokenizer.

Usage: python checkpoint.py DIR      (in the servers' environment)
"""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

WORDS = "the a cat dog bird man woman sat ran saw on to from mat rug tree house red blue and then , . ? !"
SIZE = 64
IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def main(folder: str) -> None:
    """Write it; the same weights every time."""
    config = LlamaConfig(
        vocab_size=SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        rope_theta=10000.0,
        torch_dtype="float32",
        **IDS,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).eval().save_pretrained(folder, safe_serialization=True)
    tokenizer().save_pretrained(folder)


def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a token for each word."""
    names = ["<pad>", "<s>", "</s>", "<unk>", *WORDS.split()]
    names += [f"w{number}" for number in range(len(names), SIZE)]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


if __name__ == "__main__":
    main(sys.argv[1])
