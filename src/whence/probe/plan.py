"""How many rows fit in one pass: an estimate of memory before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Largest share of the free memory that one pass may take.
_SHARE = 0.5
# On a CPU, longer passes than this gain nothing and cost memory: measured with 768 units, a row takes as long among
# 400 tokens as among 6,000. Narrow models need more of them, to outweigh what a pass costs by itself.
_CPU_NUMBERS = 2**20
_CPU_TOKENS = 8192
# Columns per batched vector-Jacobian product; measured best on CPU among 1, 8 and 32.
PRODUCTS = 8


@dataclass(frozen=True)
class Shape:
    """The sizes that decide about memory.

    Attributes:
        layers: Blocks that are run, of all stacks.
        hidden: Width of the residual stream.
        inner: Width of the MLP.
        heads: Query heads.
        vocab: Size of the vocabulary.
        positions: Padded length of all streams.
        kept: Positions that get logits.
        item: Bytes per number.
        quadratic: Whether attention patterns are held in memory (eager attention).
    """

    layers: int
    hidden: int
    inner: int
    heads: int
    vocab: int
    positions: int
    kept: int
    item: int
    quadratic: bool

    def graph_bytes(self) -> int:
        """Bytes of one row's activations that a backward pass needs."""
        per_layer = self.positions * (10 * self.hidden + 4 * self.inner)
        if self.quadratic:
            per_layer += 2 * self.heads * self.positions**2
        return (self.layers * per_layer + 4 * self.kept * self.vocab) * self.item

    def cpu_rows(self) -> int:
        """Rows in the longest pass that a CPU gains from, at least 1."""
        return max(1, min(_CPU_TOKENS, _CPU_NUMBERS // self.hidden) // self.positions)

    def pass_bytes(self) -> int:
        """Bytes of one row of a pass that keeps no graph."""
        widest = self.positions * (4 * self.hidden + 3 * self.inner)
        if self.quadratic:
            widest += 3 * self.heads * self.positions**2
        return (widest + 4 * self.kept * self.vocab) * self.item


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


def shape_of(config: Any, layers: int, positions: int, kept: int, item: int) -> Shape:
    """Read the sizes from a transformers configuration."""
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
        layers=layers,
        hidden=hidden,
        inner=inner,
        heads=int(text.num_attention_heads),
        vocab=int(text.vocab_size),
        positions=positions,
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
        # A dual number is two numbers; a difference is of two rows.
        row = 2 * shape.pass_bytes()
        products, derivatives = 1, total
    else:
        total = forwards = points * examples
        products = max(1, min(PRODUCTS, columns))
        row = shape.graph_bytes() + products * shape.pass_bytes()
        derivatives = total * columns
    row *= width
    if mode == "reverse":
        # In forward mode all rows of an example share its reference.
        forwards *= width
    fits = int(free * _SHARE) // max(row, 1)
    if cpu:
        fits = min(fits, max(1, shape.cpu_rows() // width))
    rows = max(1, min(fits, total, most or total))
    return Plan(mode, rows, products, forwards + examples, derivatives, rows * row)


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
