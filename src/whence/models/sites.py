"""The sites of one model, collected in the order of execution from a row of the table and the module tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from whence.core.errors import ModelError
from whence.models.family import Attention, Family, Line, Stack
from whence.models.fitting import count_blocks, find, is_line

UNITS = ("batch", "position", "unit")
HEADS = ("batch", "position", "head", "unit")
KEY_HEADS = ("batch", "position", "kv_head", "unit")
CROSS_KEY_HEADS = ("batch", "source", "kv_head", "unit")
PATTERN = ("batch", "head", "query", "key")
VOCABULARY = ("batch", "position", "vocabulary")


@dataclass(frozen=True)
class Site:
    """One named internal value.

    Attributes:
        name: Such as ``"blocks.3.attn.pattern"``.
        axes: The names of its axes.
        stack: ``"decoder"`` or ``"encoder"``.
        layer: The block, or None outside of blocks.
        cut: Whether everything downstream in its stack depends on the input only through it.
        computed: Whether a read value is made from the model's own tensor (another layout, a recomputation)
            rather than being it: to differentiate with respect to it, write it back first.
        order: Its place in the order of execution.
        spec: Plain data for `whence.models.access.read_site` and ``write_site``.
    """

    name: str
    axes: tuple[str, ...]
    stack: str
    layer: int | None
    cut: bool
    computed: bool
    order: int
    spec: Mapping[str, Any]


class SiteBuilder:
    """Collects the sites of one model in the order of execution."""

    def __init__(self, hf_model: Any, tree: set[str], config: Any, row: Family) -> None:
        self.hf_model = hf_model
        self.tree = tree
        self.config = config
        self.row = row
        self.sites: dict[str, Site] = {}
        self.bends: list[dict[str, Any]] = []
        self.absent: dict[str, str] = {}
        self.n_layers: dict[str, int] = {}
        self.head_count: dict[str, int] = {}
        self.parts: dict[str, dict[str, str]] = {}
        self.paths: dict[str, Any] = {"embed": {}, "blocks": {}, "ln_final": {}, "parts": self.parts}
        self.sinks = False
        self.layer: int | None = None
        self.prefix = ""
        for self.stack, stack in row.stacks().items():
            self._stack(stack, f"{self.stack}." if row.encoder is not None else "")
        self.paths["unembed"] = find(tree, "", row.unembed) or ""
        self._module("unembed", self.paths["unembed"], axes=VOCABULARY)
        self._cap(getattr(config, row.logit_cap, None) if row.logit_cap else None)
        self._add("logits", VOCABULARY, {"kind": "logits"})

    def _stack(self, stack: Stack, start: str) -> None:
        heads = getattr(self.config, stack.heads, None)
        if heads is None:
            raise ModelError(
                f"{type(self.config).__name__} has no {stack.heads!r} to tell the number of attention heads; "
                f"pass family= with the name it has, as 'heads'."
            )
        for part in ("embed", "blocks", "ln_final"):
            self.paths[part][self.stack] = find(self.tree, "", getattr(stack, part)) or ""
        blocks = self.paths["blocks"][self.stack]
        self.head_count[self.stack] = int(heads)
        self.n_layers[self.stack] = count_blocks(self.tree, blocks)
        self._module(f"{start}embed", self.paths["embed"][self.stack], cut=True)
        self._norm(find(self.tree, "", stack.embed_norm))
        for layer in range(self.n_layers[self.stack]):
            self.layer, self.prefix = layer, f"{start}blocks.{layer}"
            self._block(stack, f"{blocks}.{layer}", int(heads))
        self.layer = None
        if self.paths["ln_final"][self.stack]:
            self._norm(self.paths["ln_final"][self.stack])
            self._module(f"{start}ln_final", self.paths["ln_final"][self.stack])
        else:
            self.absent[f"{start}ln_final"] = "this stack has no norm after its last block"

    def _add(
        self,
        name: str,
        axes: tuple[str, ...],
        spec: dict[str, Any],
        *,
        cut: bool = False,
    ) -> None:
        self.sites[name] = Site(
            name=name,
            axes=axes,
            stack=self.stack,
            layer=self.layer,
            cut=cut,
            computed=_is_computed(spec),
            order=len(self.sites),
            spec={**spec, "site": name},
        )

    def _module(
        self,
        name: str,
        path: str,
        *,
        axes: tuple[str, ...] = UNITS,
        kind: str = "output",
        cut: bool = False,
        **options: Any,
    ) -> None:
        self._add(name, axes, {"kind": kind, "path": path, **options}, cut=cut)

    def _bend(self, rule: str, **data: Any) -> None:
        """Note a place between the last site and the next where the model is not linear."""
        self.bends.append({"rule": rule, "order": len(self.sites) - 0.5, **data})

    def _norm(self, path: str | None, inside: str = "") -> None:
        """Note a norm; its site, if it has one, comes after it.

        Args:
            path: The norm, if there is one.
            inside: A module whose ``forward`` calls it, and has lines that are read.
        """
        if path:
            module = self.hf_model.get_submodule(path)
            found = [getattr(module, name) for name in ("eps", "variance_epsilon") if hasattr(module, name)]
            eps = float(found[0]) if found and found[0] is not None else None
            self._bend("norm", key=path, path=path, eps=eps, **({"instrument": inside} if inside else {}))

    def _cap(self, cap: float | None) -> None:
        """Note the soft cap between the output head and the logits, if there is one."""
        if cap is not None:
            spec = {"kind": "logits", "site": "logits"}
            self._bend("cap", key="logits", path=self.paths["unembed"], cap=float(cap), spec=spec)

    def _block(self, stack: Stack, block: str, heads: int) -> None:
        prefix = self.prefix
        children = {
            part: found
            for part in ("ln1", "ln2", "ln_cross", "attn", "cross_attn", "mlp")
            if (path := getattr(stack, part)) and (found := find(self.tree, block, path))
        }
        self.parts[block] = children
        flat: dict[str, Any] = {"flat": {"path": block, "text": stack.flat, "site": prefix}} if stack.flat else {}
        order = stack.order.split()
        for step in order:
            if step == "resid_pre":
                self._module(f"{prefix}.resid_pre", block, kind="input", cut=True)
            elif step == "resid_post":
                self._module(f"{prefix}.resid_post", block, cut=True)
            elif step.startswith("resid_mid"):
                self._residual(step, stack, block)
            elif step.startswith("ln"):
                if step in children:
                    self._norm(children[step])
                    late = step == "ln2" and order.index("ln2") < order.index("mlp")
                    self._module(f"{prefix}.{step}", children[step], **(flat if late else {}))
                else:
                    self.absent[f"{prefix}.{step}"] = "this block has no such norm"
            elif step == "mlp":
                self._mlp(stack, block, flat)
            else:
                self._attention(step, stack, block, heads)
        self._explain_absent(order, prefix)
        self._instrument(block)

    def _instrument(self, block: str) -> None:
        """Let every site up to the last that is a line of the block's ``forward`` prepare that ``forward``.

        nnsight has to instrument the source of a module before the module runs, and the first site that a
        trace asks for may come after the block has begun.
        """
        names = [name for name in self.sites if name.startswith(f"{self.prefix}.")]
        lines = [
            position
            for position, spec in enumerate(self.sites[name].spec for name in names)
            if "flat" in spec or (spec["kind"] == "line" and spec["path"] == block)
        ]
        for name in names[: max(lines, default=-1) + 1]:
            site = self.sites[name]
            self.sites[name] = replace(site, spec={**site.spec, "instrument": block})

    def _explain_absent(self, order: list[str], prefix: str) -> None:
        for name in ("ln1", "ln2"):
            if name not in order:
                self.absent[f"{prefix}.{name}"] = "this block has no norm before that branch"
        if "resid_mid" not in order:
            self.absent[f"{prefix}.resid_mid"] = "attention and MLP run side by side in this block"

    def _residual(self, step: str, stack: Stack, block: str) -> None:
        text = getattr(stack, step)
        name = f"{self.prefix}.{step}"
        if not is_line(text):
            self._module(name, find(self.tree, block, text) or "", cut=True)
            return
        nth = int(step == "resid_mid_cross" and text == stack.resid_mid)
        self._add(name, UNITS, {"kind": "line", "path": block, "text": text, "nth": nth}, cut=True)

    def _attention(self, kind: str, stack: Stack, block: str, heads: int) -> None:
        path = find(self.tree, block, getattr(stack, kind)) or ""
        name = f"{self.prefix}.{kind}"
        factor = self._factor(path, heads)
        # What transformers' attention functions call s_aux: logits beside those of the keys.
        self.sinks |= "sinks" in dict(self.hf_model.get_submodule(path).named_parameters(recurse=False))
        for norm in (stack.q_norm, stack.k_norm):
            self._norm(find(self.tree, path, norm) if norm else "", inside=path)
        for part in stack.attention.order.split():
            axes = {"q": HEADS, "k": KEY_HEADS, "v": KEY_HEADS}.get(part, PATTERN)
            if kind == "cross_attn" and part in ("k", "v"):
                axes = CROSS_KEY_HEADS
            self._add(f"{name}.{part}", axes, _attention_spec(stack.attention, part, path, factor))
            if part in ("q", "k", "v"):
                self._bend("keep", key=f"{name}.{part}", spec=self.sites[f"{name}.{part}"].spec)
        scale = None
        if stack.attention.scores is not None:
            own = stack.attention.scale
            scale = float(getattr(self.hf_model.get_submodule(path), own)) if own else factor
        self._bend("pattern", key=name, spec=self.sites[f"{name}.pattern"].spec, scale=scale)
        projection = f"{path}.{stack.attn_proj}"
        self._bend("mix", key=name, spec={"kind": "input", "path": projection, "heads": heads, "site": f"{name}.z"})
        self._module(f"{name}.z", projection, axes=HEADS, kind="input", heads=heads)
        self._add(f"{name}.result", HEADS, {"kind": "result", "path": projection, "heads": heads})
        out = projection
        if kind == "attn" and stack.attn_out:
            out = find(self.tree, block, stack.attn_out) or ""
            self._norm(out if stack.branch_norms else "")
        self._module(f"{name}_out", out)

    def _factor(self, attn: str, heads: int) -> float:
        module = self.hf_model.get_submodule(attn)
        size = getattr(module, "head_dim", None) or self.config.hidden_size // heads
        return float(size) ** -0.5

    def _mlp(self, stack: Stack, block: str, flat: dict[str, Any]) -> None:
        for part, kind in (("mlp_pre", "output"), ("mlp_post", "input"), ("mlp_out", "output")):
            text = getattr(stack, part) or (stack.mlp if part == "mlp_out" else "")
            path = find(self.tree, block, text) if text else ""
            name = f"{self.prefix}.{part if part == 'mlp_out' else part.replace('_', '.')}"
            if not path:
                self.absent[name] = "this MLP is a mixture of experts, or has no module there"
                continue
            marks = dict.fromkeys(text.split(":")[1:], True)
            if part == "mlp_post":
                self._gate(stack, block, path)
            elif part == "mlp_out" and stack.branch_norms:
                self._norm(path)
            self._module(name, path, kind=kind, **marks, **flat)

    def _gate(self, stack: Stack, block: str, post: str) -> None:
        """Note the nonlinearity of an MLP, and the product that a gated one makes of it."""
        act = find(self.tree, block, stack.mlp_act) if stack.mlp_act else ""
        up = find(self.tree, block, stack.mlp_up) if stack.mlp_up else ""
        bent, other = f"{self.prefix}.mlp.act", f"{self.prefix}.mlp.up"
        marks = dict.fromkeys(stack.mlp_up.split(":")[1:], True)
        spec = {"kind": "output", "path": up, "site": other, **marks}
        # A module that makes both halves runs before the nonlinearity, one of its own after it.
        if marks:
            self._bend("keep", key=other, spec=spec)
        if act:
            self._bend("elementwise", key=bent, path=act)
        if up and not marks:
            self._bend("keep", key=other, spec=spec)
        if act and up:
            name = f"{bent}.times"
            self._bend("gate", key=name, factors=[bent, other], spec={"kind": "input", "path": post, "site": name})


def _is_computed(spec: Mapping[str, Any]) -> bool:
    """Whether reading makes a new tensor instead of handing out the model's own."""
    remade = any(spec.get(mark) for mark in ("heads", "heads_first", "flat", "half", "factor", "sdpa"))
    return remade or spec["kind"] == "result" or spec.get("arguments") in ("interface", "plain")


def _attention_spec(attention: Attention, part: str, path: str, factor: float) -> dict[str, Any]:
    """Where one of q, k, v, scores and pattern is, as plain data."""
    line: Line | None = getattr(attention, part)
    if line is not None:
        spec = _line_spec(line, path, factor)
        if part in ("q", "k", "v"):
            return {**spec, "kind": "line", "heads_first": True}
        if attention.torch_call is None:
            return {**spec, "kind": "line"}
        spec |= {"kind": "attention", "part": part, "arguments": "line", "softmax": "own"}
        fused = _line_spec(attention.torch_call, path, factor)
        return {**spec, "sdpa": {**fused, "arguments": "torch", "call": True}}
    spec = asdict(attention)
    return {
        "kind": "attention",
        "part": part,
        "path": path,
        "text": attention.call,
        "call": True,
        **{name: spec[name] for name in ("arguments", "softmax", "divisor", "window")},
    }


def _line_spec(line: Line, path: str, factor: float) -> dict[str, Any]:
    return {
        "path": path,
        "text": line.text,
        "nth": line.nth,
        "item": line.item,
        "factor": factor if line.scaled else None,
    }
