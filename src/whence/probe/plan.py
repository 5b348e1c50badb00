"""How many rows fit in one pass: an estimate of memory before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Largest share of the free memory that one pass may take.
_SHARE = 0.5
# On a CPU, longer passes than this gain nothing and cost memory: measured with 768 units, a row takes as long among
# 400 tokens as among 6,000. Narrow models need more of them, to outweigh what a pass costs by itself. What holds for
# rows holds for products: 8 rows with 8 products each took a quarter longer than 8 rows with one, or 1 row with 8.
_CPU_NUMBERS = 2**20
_CPU_TOKENS = 8192
# Columns per batched vector-Jacobian product of a short text; measured best on CPU among 1, 8 and 32.
PRODUCTS = 8


# Numbers that are held at once, per position and block unless said otherwise, in hidden states and MLPs (`inner`) or in
# copies of the logits. Fitted to the peaks that `benchmarks.memory` measures with GPT-2 and Llama, which a count of
# the tensors explains but for what the nonlinearity of an MLP keeps: GPT-2's more than Llama's.
_GRAPH = (10, 4.5)
_BODY = (4, 5.2)
_PRODUCT = 4
_TANGENT = 2.75
_LOGITS_PLAIN, _LOGITS_TANGENT, _LOGITS_GRAPH = 2.6, 4.5, 4
# What a call takes however small it is.
_LEAST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Shape:
    """The sizes that decide about memory.

    Attributes:
        stacks: Blocks and padded length of every stack.
        hidden: Width of the residual stream.
        inner: Width of the MLP.
        heads: Query heads.
        vocab: Size of the vocabulary.
        kept: Positions that get logits.
        item: Bytes per number.
        quadratic: Whether attention patterns are held in memory (eager attention).
    """

    stacks: tuple[tuple[int, int], ...]
    hidden: int
    inner: int
    heads: int
    vocab: int
    kept: int
    item: int
    quadratic: bool

    @property
    def positions(self) -> int:
        """Padded length of all streams."""
        return sum(length for _, length in self.stacks)

    def cpu_rows(self, products: int = 1) -> int:
        """Rows in the longest pass that a CPU gains from, at least 1; of derivatives, so many products of each."""
        return max(1, min(_CPU_TOKENS, _CPU_NUMBERS // self.hidden // products) // self.positions)

    def pass_bytes(self) -> int:
        """Bytes of one row of a pass that keeps no graph."""
        return int(max(self._body(self.quadratic), _LOGITS_PLAIN * self._logits()))

    def tangent_bytes(self) -> int:
        """Bytes of one row of a pass in forward mode, which has no fused attention."""
        return int(max(_TANGENT * self._body(quadratic=True), _LOGITS_TANGENT * self._logits()))

    def graph_bytes(self, products: int) -> int:
        """Bytes of one row with its graph: while its logits are there, or so many products at once."""
        graph = sum(
            blocks * (length * self._numbers(_GRAPH) + 2 * self._patterns(length, self.quadratic))
            for blocks, length in self.stacks
        )
        longest = self._longest()
        product = longest * _PRODUCT * self.inner + self._patterns(longest, self.quadratic)
        return int(graph * self.item + max(_LOGITS_GRAPH * self._logits(), products * product * self.item))

    def _body(self, quadratic: bool) -> float:
        longest = self._longest()
        return (longest * self._numbers(_BODY) + 3 * self._patterns(longest, quadratic)) * self.item

    def _numbers(self, counts: tuple[float, float]) -> float:
        return counts[0] * self.hidden + counts[1] * self.inner

    def _patterns(self, length: int, quadratic: bool) -> int:
        return self.heads * length**2 if quadratic else 0

    def _logits(self) -> int:
        # Step functions compute in float32 or better.
        return self.kept * self.vocab * max(self.item, 4)

    def _longest(self) -> int:
        return max(length for _, length in self.stacks)


@dataclass(frozen=True)
class Plan:
    """Chunk sizes of a question, with what they will take.

    Attributes:
        mode: ``"forward"``, ``"reverse"`` or ``"finite"``.
        rows: Rows per pass.
        products: Vector-Jacobian products per batch.
        forwards: Rows that are run forward in all.
        derivatives: Vector-Jacobian or Jacobian-vector products in all.
        bytes: Estimated peak above the model's own memory.
    """

    mode: str
    rows: int
    products: int
    forwards: int
    derivatives: int
    bytes: int


def shape_of(config: Any, stacks: tuple[tuple[int, int], ...], kept: int, item: int) -> Shape:
    """Read the sizes from a transformers configuration; arguments as those of `Shape`."""
    text = config.get_text_config(decoder=True)
    hidden = int(text.hidden_size)
    inner = next(
        (
            int(v)
            for k in ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner")
            if (v := getattr(text, k, None))
        ),
        4 * hidden,
    )
    return Shape(
        stacks=stacks,
        hidden=hidden,
        inner=inner,
        heads=int(text.num_attention_heads),
        vocab=int(text.vocab_size),
        kept=kept,
        item=item,
        quadratic=getattr(text, "_attn_implementation", "eager") == "eager",
    )


def choose_mode(asked: str, *, features: int, columns: int, contracts: bool) -> str:
    """Forward mode costs a row per feature, reverse mode a product per column: take the fewer.

    Args:
        asked: ``"auto"``, ``"forward"``, ``"reverse"`` or ``"finite"``.
        features: Features that can have a displacement, at most over the examples.
        columns: Columns.
        contracts: Whether the derivative is contracted with the displacement; only then can
            forward mode answer.

    Returns:
        ``"forward"``, ``"reverse"`` or ``"finite"``.
    """
    if asked != "auto":
        return asked
    return "forward" if contracts and features < columns else "reverse"


def make_plan(
    shape: Shape,
    *,
    mode: str,
    examples: int,
    points: int,
    features: int,
    columns: int,
    free: int,
    cpu: bool,
    most: int | None = None,
    width: int = 1,
) -> Plan:
    """Choose chunk sizes so that a pass fits.

    Args:
        shape: Sizes of the model and the batch.
        mode: ``"forward"``, ``"reverse"`` or ``"finite"``.
        examples: Sequences in the batch.
        points: Points per sequence.
        features: Rows per point in forward mode, pairs of rows by finite differences, over the whole batch.
        columns: Columns.
        free: Bytes that are free.
        cpu: Whether the model runs on a CPU.
        most: Rows that may run together at most, or None.
        width: How many rows run for each: itself, and its reference or others beside it; ``rows`` counts such groups.

    Returns:
        The plan.
    """
    if mode in ("forward", "finite"):
        total = points * features
        forwards = total * (2 if mode == "finite" else 1)
        # A difference is of two rows.
        row = 2 * shape.pass_bytes() if mode == "finite" else shape.tangent_bytes()
        products, derivatives = 1, total
    else:
        total = forwards = points * examples
        products = max(1, min(PRODUCTS, columns, shape.cpu_rows() if cpu else columns))
        row = shape.graph_bytes(products)
        derivatives = total * columns
    row *= width
    if mode == "reverse":
        # In forward mode all rows of an example share its reference.
        forwards *= width
    fits = int(free * _SHARE) // max(row, 1)
    if cpu:
        fits = min(fits, max(1, shape.cpu_rows(products) // width))
    rows = max(1, min(fits, total, most or total))
    return Plan(mode, rows, products, forwards + examples, derivatives, rows * row + _LEAST_BYTES)


def make_plain_plan(shape: Shape, rows: int, total: int, *, width: int = 1) -> Plan:
    """The plan of passes that keep no graph.

    Args:
        shape: Sizes of the model and the batch.
        rows: Rows per pass.
        total: Rows in all.
        width: How many rows run for each.
    """
    return Plan("", rows, 0, width * total, 0, width * rows * shape.pass_bytes() + _LEAST_BYTES)


def make_rows(shape: Shape, total: int, *, free: int, cpu: bool, width: int = 1) -> int:
    """Rows per pass that keeps no graph.

    Args:
        shape: Sizes of the model and the batch.
        total: Rows in all.
        free: Bytes that are free.
        cpu: Whether the model runs on a CPU.
        width: How many rows run for each.

    Returns:
        How many rows fit, at least 1.
    """
    fits = int(free * _SHARE) // max(width * shape.pass_bytes(), 1)
    if cpu:
        fits = min(fits, shape.cpu_rows() // width)
    return max(1, min(fits, total))
