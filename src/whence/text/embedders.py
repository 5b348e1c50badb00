"""Vectors for the words of a text, by which words of two texts are aligned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from whence.core.errors import InputError, ModelError, unknown_name
from whence.core.extras import require
from whence.text.encoded import whole_numbers

LABSE = "sentence-transformers/LaBSE"
# Jalili Sabet et al. 2020, Dou and Neubig 2021: of 12 layers, the eighth aligns words best.
LAYER = 8


class Embedder(Protocol):
    """What makes vectors of words: any function of this form."""

    def __call__(self, words: Sequence[str]) -> tuple[Any, Sequence[int]]:
        """Embed the words of one text, in order.

        Args:
            words: The words, without blanks; at least one.

        Returns:
            An array or tensor ``[n_sub, d]`` with a vector for every part of a word, and for every vector the place
            of its word. A word may have no vector; it is then aligned with nothing.
        """
        ...


@dataclass(frozen=True)
class EncoderEmbedder:
    """Words as the hidden states of an encoder that reads them together.

    Attributes:
        name: What was loaded.
        encoder: A transformers model, in evaluation mode.
        tokenizer: Its tokenizer.
        layer: Which hidden states; 0 are the embeddings that enter the first layer.
    """

    name: str
    encoder: Any
    tokenizer: Any
    layer: int = LAYER

    def __call__(self, words: Sequence[str]) -> tuple[Float[np.ndarray, "n_sub d"], list[int]]:
        """Embed the words of one text; a text too long for the encoder is read in parts that follow each other."""
        import torch

        read = self.tokenizer(list(words), add_special_tokens=False)["input_ids"]
        pieces = [(piece, place) for place, ids in enumerate(read) for piece in ids]
        begin, end = self._ends()
        room = self._positions() - len(begin) - len(end)
        states = [np.zeros((0, self.encoder.config.hidden_size))]
        for start in range(0, len(pieces), room):
            part = [piece for piece, _ in pieces[start : start + room]]
            ids = torch.tensor([[*begin, *part, *end]], device=self.encoder.device)
            with torch.inference_mode():
                out = self.encoder(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
            hidden = out.hidden_states[self.layer][0, len(begin) : len(begin) + len(part)]
            states.append(hidden.double().cpu().numpy())
        return np.concatenate(states), [place for _, place in pieces]

    def _ends(self) -> tuple[list[int], list[int]]:
        # Put there by hand: what `build_inputs_with_special_tokens` does depends on the version of transformers.
        ends = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        begin, end = ([] if one is None else [one] for one in ends)
        return begin, end

    def _positions(self) -> int:
        # RoBERTa counts positions from 2.
        table = getattr(self.encoder.config, "max_position_embeddings", None) or 514
        return min(self.tokenizer.model_max_length, table - 2)


@dataclass(frozen=True)
class MatrixEmbedder:
    """Words as the input embeddings of their tokens, without context: offline, and for one language.

    Attributes:
        name: Whose embeddings they are.
        matrix: An array or tensor ``[vocabulary, d]``.
        tokenizer: The transformers tokenizer that belongs to it.
    """

    name: str
    matrix: Any
    tokenizer: Any

    def __call__(self, words: Sequence[str]) -> tuple[Any, list[int]]:
        """Embed the words of one text."""
        read = [self._ids(word) for word in words]
        return self.matrix[[piece for ids in read for piece in ids]], [k for k, ids in enumerate(read) for _ in ids]

    def _ids(self, word: str) -> list[int]:
        # Some vocabularies have a word with the blank in front of it, others put that there themselves. The one that
        # needs fewer tokens is how the word stands inside a text.
        spellings = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (f" {word}", word)]
        return min(spellings, key=len)


def load_embedder(
    name: str | Path = "labse", *, layer: int = LAYER, download: bool = True, device: Any = "cpu"
) -> EncoderEmbedder:
    """Load an encoder whose hidden states align words.

    Args:
        name: ``"labse"`` (LaBSE, Feng et al. 2022: 109 languages; needs the extra ``align``), a folder with a
            transformers or sentence-transformers encoder, or a hub id of one (needs the extra too).
        layer: Which hidden states; 0 are the embeddings that enter the first layer.
        download: Fetch what the cache of the hub does not have, where the environment allows it.
        device: Where the encoder runs.

    Returns:
        The embedder, to be given to `align`, so that several calls load it once.

    Raises:
        UnknownNameError: It is the name of nothing.
        UnsupportedError: The extra is not installed.
        ModelError: The encoder cannot be found, fetched or loaded.
        InputError: The encoder has no such layer, or is none.
    """
    where = LABSE if name == "labse" else str(name)
    folder = Path(where).is_dir()
    if not folder and "/" not in where:
        raise unknown_name(
            "embedder", where, ("labse",), "Or give a folder or a hub id; align takes functions and 'lexical'."
        )
    if not folder and (where.startswith((".", "/", "~")) or where.count("/") > 1):
        raise ModelError(f"{where}: there is no such folder.")
    if folder:
        local, plain = True, not (Path(where) / "modules.json").is_file()
    else:
        local, plain = _cached(where, download=download), False
    sentences = None if plain else require("sentence_transformers", "align")
    try:
        if sentences is None:
            from transformers import AutoModel, AutoTokenizer

            encoder, tokenizer = AutoModel.from_pretrained(where), AutoTokenizer.from_pretrained(where)
        else:
            loaded = sentences.SentenceTransformer(where, device="cpu", local_files_only=local)
            encoder, tokenizer = loaded[0].auto_model, loaded.tokenizer
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"the embedder {name} could not be loaded: {error}") from error
    if encoder.config.is_encoder_decoder:
        raise InputError(f"the embedder {name} has a decoder; give an encoder, such as 'labse'.")
    layers = encoder.config.num_hidden_layers
    if not 0 <= layer <= layers:
        raise InputError(f"the embedder {name} has hidden states 0 to {layers}, so layer={layer} is none of them.")
    return EncoderEmbedder(where, encoder.eval().to(device), tokenizer, layer)


def _cached(where: str, *, download: bool) -> bool:
    """Whether the cache of the hub has an encoder; an error where it has not and it cannot be fetched."""
    if find_spec("sentence_transformers") is None:
        # Without the library nothing here works, and importing it takes seconds.
        require("sentence_transformers", "align")
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(where, "config.json"), str):
            return True
    except ValueError as error:
        raise ModelError(f"{where} is neither a folder nor a hub id: {error}") from error
    if not download:
        raise ModelError(f"{where} is not in the cache of the hub; whence.load_embedder({where!r}) fetches it.")
    try:
        # Asked first, because the loaders try again for a minute before they say that there is no network.
        HfApi().model_info(where, timeout=10)
    except Exception as error:
        # The errors are those of whatever client the hub's library uses at the time.
        raise ModelError(f"{where} is not in the cache of the hub, which cannot be asked: {error}") from error
    return False


def embed(embedder: Embedder, words: Sequence[str]) -> tuple[Float[np.ndarray, "n_sub d"], list[int]]:
    """Ask an embedder, and check what it says.

    Args:
        embedder: Any embedder.
        words: The words of one text.

    Returns:
        The vectors in double precision, and the place of the word of each.

    Raises:
        InputError: The answer has another form, or numbers that are none.
    """
    answer = embedder(words)
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise InputError(f"an embedder returns a pair (vectors, places), not {type(answer).__name__}.")
    vectors, places = answer
    if hasattr(vectors, "detach"):
        vectors = vectors.detach().double().cpu()
    array = np.asarray(vectors, dtype=np.float64)
    numbers = whole_numbers(places)
    if array.ndim != 2 or numbers is None or len(numbers) != len(array):
        raise InputError(
            "an embedder returns vectors [n_sub, d], and for each the place of its word; "
            f"this one returned an array of shape {array.shape} and {places!r:.80}"
        )
    if odd := [place for place in numbers if not 0 <= place < len(words)]:
        raise InputError(f"the embedder names the word {odd[0]}, but words are counted from 0 to {len(words) - 1}.")
    if not np.isfinite(array).all():
        raise InputError("the embedder returned numbers that are infinite or none.")
    return array, numbers
