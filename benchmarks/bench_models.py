"""Models of known sizes with random weights, and texts for them: what the speed benchmarks run on.

Nothing is downloaded. Weights are drawn from a configuration, and every word is a token, so that text and ids are
the same to every tool.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
# Wider than a fresh model's, so that the scores that are compared are far from nothing.
_SPREAD = 0.05
_LLAMA = {"num_key_value_heads": None, "max_position_embeddings": 2048, "tie_word_embeddings": False}
_T5 = {"feed_forward_proj": "relu", "tie_word_embeddings": False, "decoder_start_token_id": 0}

# The sizes of gpt2, JackFram/llama-160m and t5-small; and of the model that reads long texts.
SIZES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024}),
    "llama": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            **_LLAMA,
        },
    ),
    "t5": (
        "t5",
        {
            "vocab_size": 32128,
            "d_model": 512,
            "d_kv": 64,
            "d_ff": 2048,
            "num_layers": 6,
            "num_decoder_layers": 6,
            "num_heads": 8,
            **_T5,
        },
    ),
    "long": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            **_LLAMA,
            "max_position_embeddings": 16384,
        },
    ),
}

# The same architectures, so small that a run takes no time: for trying a command.
QUICK: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {"vocab_size": 97, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 256}),
    "llama": (
        "llama",
        {
            "vocab_size": 97,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            **_LLAMA,
        },
    ),
    "t5": (
        "t5",
        {
            "vocab_size": 97,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 2,
            **_T5,
        },
    ),
}
QUICK = {**QUICK, "long": QUICK["llama"]}


@dataclass(frozen=True)
class Text:
    """A prompt and its continuation, as text and as ids.

    Attributes:
        prompt: The source or prompt.
        continuation: What is explained; it begins with its own space.
        source: The ids of the prompt.
        generated: The ids of the continuation.
    """

    prompt: str
    continuation: str
    source: tuple[int, ...]
    generated: tuple[int, ...]


def make_model(name: str, folder: Path, *, quick: bool = False) -> Path:
    """Write a checkpoint with its tokenizer, unless it is there.

    Args:
        name: A name of `SIZES`, or the folder of another checkpoint, which is left as it is.
        folder: Where to.
        quick: Make the very small one.

    Returns:
        The checkpoint's folder.

    Raises:
        ValueError: There is neither a size nor a folder of that name.
    """
    import transformers

    if name not in SIZES:
        if (Path(name) / "config.json").is_file():
            return Path(name)
        raise ValueError(f"{name!r} is neither one of {', '.join(SIZES)} nor a folder with a checkpoint")
    where = folder / (f"{name}-quick" if quick else name)
    if (where / "tokenizer.json").is_file():
        return where
    kind, settings = (QUICK if quick else SIZES)[name]
    config = transformers.AutoConfig.for_model(kind, **_IDS, **settings)
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    torch.manual_seed(0)
    model = auto.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, _SPREAD)
    model.tie_weights()
    model.save_pretrained(where)
    word_tokenizer(config.vocab_size).save_pretrained(where)
    return where


def word_tokenizer(size: int) -> Any:
    """A tokenizer whose tokens are the words ``w4``, ``w5``, ... and four special ones; it adds none of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(4, size))]
    inner = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def make_text(tokenizer: Any, source: int, generated: int) -> Text:
    """A text of so many tokens, the same every time.

    Args:
        tokenizer: The model's tokenizer.
        source: Tokens of the prompt.
        generated: Tokens of the continuation.

    Raises:
        ValueError: The tokenizer makes other tokens of the text than those it was made of.
    """
    draw = torch.Generator().manual_seed(1)
    special = set(tokenizer.all_special_ids)
    plain = torch.tensor([k for k in range(len(tokenizer)) if k not in special])
    chosen = plain[torch.randint(len(plain), (source + generated,), generator=draw)].tolist()
    words = tokenizer.convert_ids_to_tokens(chosen)
    prompt, continuation = " ".join(words[:source]), " " + " ".join(words[source:])
    if tokenizer(prompt + continuation)["input_ids"] != chosen:
        raise ValueError(
            "the tokenizer does not read a text of its tokens as these tokens; take one of the made models"
        )
    return Text(prompt, continuation, tuple(chosen[:source]), tuple(chosen[source:]))


def load_model(folder: Path, *, device: str, dtype: str, attention: str = "sdpa") -> tuple[Any, Any]:
    """A transformers model and its tokenizer.

    Args:
        folder: The checkpoint.
        device: Such as ``"cpu"`` or ``"cuda"``.
        dtype: Such as ``"float32"``.
        attention: The implementation of attention.
    """
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder)
    auto = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model: Any = auto.from_pretrained(folder, dtype=getattr(torch, dtype), attn_implementation=attention)
    for weight in model.parameters():
        # A file's pages are memory once they are read, and these are the model's, not a call's.
        weight.detach().sum()
    return model.to(device).eval(), transformers.AutoTokenizer.from_pretrained(folder)
