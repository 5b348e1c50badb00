"""The byte-level BPE tokenizers of the bundled models."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

PAD, UNK, BOS, EOS = "<pad>", "<unk>", "<s>", "</s>"


def build_tokenizer(texts: Iterable[str], *, size: int, bos: bool) -> PreTrainedTokenizerFast:
    """Train a tokenizer.

    Args:
        texts: The texts that decide the merges.
        size: Number of entries, special tokens and the 256 bytes included.
        bos: Begin every text with a start token; without it, texts get an end token instead.

    Returns:
        The tokenizer, ready to be saved.
    """
    specials = [PAD, UNK, BOS, EOS] if bos else [PAD, UNK, EOS]
    tokenizer = Tokenizer(BPE(unk_token=UNK))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    added = BOS if bos else EOS
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A" if bos else f"$A {EOS}",
        pair=f"{BOS} $A $B" if bos else f"$A $B {EOS}",
        special_tokens=[(added, tokenizer.token_to_id(added))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNK,
        eos_token=EOS,
        **({"bos_token": BOS} if bos else {}),
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        padding_side="left" if bos else "right",
        model_max_length=256,
    )
