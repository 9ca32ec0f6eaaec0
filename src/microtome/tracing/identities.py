"""The identities a transformer's values obey, each for the placement of its norms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from microtome.errors import MicrotomeError
from microtome.models import hf
from microtome.models.anatomy import Anatomy, BlockAnatomy
from microtome.models.compare import relative_error
from microtome.models.discovery import logits_of
from microtome.tracing.norms import centers, divisor
from microtome.tracing.padding import padding_error, policy_of
from microtome.tracing.replay import record, replay, tail

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.trace import Trace
    from microtome.tracing.verification import Identity


def check_identities(
    model: Model, tokens: torch.Tensor, plain: Any, whole: Trace | None
) -> tuple[Identity, ...]:
    """Check every identity.

    Args:
        model: The model.
        tokens: Token ids of the probe.
        plain: Output of the untouched module on them.
        whole: A trace with every readable site captured, None if that failed.
    """
    checks = _Checks(model, tokens, logits_of(plain), whole)
    return (
        checks.bit_equal(),
        checks.over_blocks("streams are as wide as the model", width_error, "no stream is seen"),
        checks.over_blocks(
            "resid_mid = resid_pre + attn.out", _mid_error, "no stream between them"
        ),
        checks.over_blocks(
            "resid_post = resid_mid + mlp.out", _post_error, "what the MLP adds is not seen"
        ),
        checks.over_blocks(
            "z @ W_O + bias = attention's output", _heads_error, "heads do not add up"
        ),
        checks.over_blocks(
            "act @ W_down + bias = the MLP's output", _neurons_error, "no dense neurons"
        ),
        checks.over_blocks("pattern rows and sink sum to 1", _rows_error, "no softmax is seen"),
        checks.over_blocks(
            "norm(x) = x / scale * weight + bias", _norm_error, "no norm of a known form"
        ),
        checks.tail(),
        checks.replay(),
        checks.right_padding(),
        checks.left_padding(),
    )


class _Checks:
    def __init__(
        self, model: Model, tokens: torch.Tensor, logits: torch.Tensor, whole: Trace | None
    ) -> None:
        from microtome.tracing.verification import limit

        self.model = model
        self.tokens = tokens
        self.logits = logits
        self.whole = whole
        self.anatomy: Anatomy = model.anatomy  # type: ignore[assignment]
        self.bound = limit(model.dtype)

    def _result(
        self, name: str, error: float, bound: float | None = None, reason: str = ""
    ) -> Identity:
        from microtome.tracing.verification import Identity

        allowed = self.bound if bound is None else bound
        return Identity(name, "pass" if error <= allowed else "fail", error, allowed, reason)

    def _skip(self, name: str, reason: str) -> Identity:
        from microtome.tracing.verification import Identity

        return Identity(name, "not applicable", float("nan"), self.bound, reason)

    def bit_equal(self) -> Identity:
        """All hooks on, everything only read: the logits keep every bit."""
        name = "logits bit-equal with every site read"
        if self.whole is None or self.whole.logits is None:
            return self._skip(name, "the sites could not be captured together")
        return self._result(name, float((self.whole.logits - self.logits).abs().max()), 0.0)

    def over_blocks(self, name: str, error_of: Any, why: str) -> Identity:
        """The largest error over the blocks that an identity applies to."""
        if self.whole is None:
            return self._skip(name, "the sites could not be captured together")
        worst, where = -1.0, ""
        for layer, block in enumerate(self.anatomy.blocks):
            error = error_of(self.model, self.whole, block, layer)
            if error is not None and not error <= worst:
                worst, where = error, f"block {layer}"
        return self._skip(name, why) if worst < 0 else self._result(name, worst, reason=where)

    def tail(self) -> Identity:
        """Unembedding(final norm(last stream)), with scale and soft cap, gives the logits."""
        name = "unembedding(final norm(last stream)) = logits"
        if not self.anatomy.tail.exact:
            return self._skip(name, self.anatomy.tail.reason)
        base = record(self.model, self.tokens)
        rows, width = self.tokens.shape
        positions = torch.arange(width).expand(rows, width)
        return self._result(
            name, relative_error(tail(self.model, base.streams[-1], positions), self.logits)
        )

    def replay(self) -> Identity:
        """Replaying the blocks from each one on gives the last stream of the whole pass."""
        name = "replay from every block = the whole pass"
        odd = next((b.reasons["*"] for b in self.anatomy.blocks if "*" in b.reasons), "")
        if odd:
            return self._skip(name, odd)
        try:
            base = record(self.model, self.tokens)
            rows = torch.tensor([1, 0, 1])
            errors = [
                relative_error(
                    replay(self.model, base, start, base.streams[start][rows], rows=rows),
                    base.streams[-1][rows],
                )
                for start in range(self.anatomy.n_layers)
            ]
        except (MicrotomeError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            return self._result(name, float("inf"), reason=f"{type(error).__name__}: {error}"[:160])
        return self._result(name, max(errors))

    def right_padding(self) -> Identity:
        """Each row of a padded batch equals the same prompt alone."""
        name = "a padded batch equals the unpadded rows"
        rows = self.tokens.tolist()
        prompts = [rows[0][:-3], rows[1]] if len(rows[0]) > 4 else [rows[0][:1], rows[1]]
        both = self.model.trace(prompts, logits="last").logits
        alone = [self.model.trace([p], logits="last").logits for p in prompts]
        if both is None or alone[0] is None or alone[1] is None:
            return self._skip(name, "the model returned no logits")
        return self._result(
            name, relative_error(both, torch.cat([alone[0], alone[1]])), 10 * self.bound
        )

    def left_padding(self) -> Identity:
        """The last logits of a left-padded row equal those of the row alone (for generation)."""
        name = "a left-padded row equals the row alone"
        policy = policy_of(self.model)
        if policy == "none" or not self.anatomy.causal:
            return self._skip(name, "generation needs a causal model that takes a mask")
        if policy == "alone":
            return self._skip(
                name, "padding changes this model: rows of other length are generated apart"
            )
        error = padding_error(self.model, policy)
        return self._result(name, error, 10 * self.bound, f"position ids: {policy}")


def width_error(model: Model, trace: Trace, block: BlockAnatomy, layer: int) -> float | None:
    """Return 1 where a residual stream is not as wide as the model, else 0."""
    width = 0 if model.anatomy is None else model.anatomy.d_model
    keys = ("resid_pre", "resid_mid", "resid_post", "attn.out", "mlp.out")
    found = [v for key in keys if (v := _added(trace, layer, key)) is not None]
    return float(any(v.shape[-1] != width for v in found)) if found else None


def _added(trace: Trace, layer: int, key: str) -> torch.Tensor | None:
    name = f"blocks.{layer}.{key}"
    return trace[name] if name in trace else None  # noqa: SIM401 (a trace has no get)


def _mid_error(model: Model, trace: Trace, block: BlockAnatomy, layer: int) -> float | None:
    stream, added, mid = (_added(trace, layer, k) for k in ("resid_pre", "attn.out", "resid_mid"))
    if stream is None or added is None or mid is None:
        return None
    total = stream + added.reshape(stream.shape)
    if block.placement == "post-addition" and block.mid is not None:
        total = model.module.get_submodule(block.mid.path)(total)
    return relative_error(total.reshape(mid.shape), mid)


def _post_error(model: Model, trace: Trace, block: BlockAnatomy, layer: int) -> float | None:
    added, post = (_added(trace, layer, k) for k in ("mlp.out", "resid_post"))
    start = _added(trace, layer, "resid_pre" if block.placement == "parallel" else "resid_mid")
    if added is None or post is None or start is None:
        return None
    total = start.reshape(post.shape) + added.reshape(post.shape)
    if block.placement == "parallel":
        attended = _added(trace, layer, "attn.out")
        if attended is None:
            return None
        total = total + attended.reshape(post.shape)
    if block.placement == "post-addition":
        norm = block.norms.get("mlp.after")
        if norm is None:
            return None
        total = model.module.get_submodule(norm)(total)
    return relative_error(total, post)


def _heads_error(model: Model, trace: Trace, block: BlockAnatomy, layer: int) -> float | None:
    result, out = (_added(trace, layer, k) for k in ("attn.result", "attn.out"))
    attention = block.attention
    if result is None or out is None or attention is None or attention.out_proj is None:
        return None
    bias = getattr(model.module.get_submodule(attention.out_proj), "bias", None)
    total = result.sum(2)
    if isinstance(bias, torch.Tensor):
        total = total + bias * attention.scale
    return relative_error(total.reshape(out.shape), out)


def _neurons_error(model: Model, trace: Trace, block: BlockAnatomy, layer: int) -> float | None:
    act, out = (_added(trace, layer, k) for k in ("mlp.act", "mlp.out"))
    mlp = block.mlp
    if act is None or out is None or mlp is None or mlp.down is None or not mlp.neurons_add_up:
        return None
    down = model.module.get_submodule(mlp.down)
    total = act @ hf.projection_weight(down)
    bias = getattr(down, "bias", None)
    if isinstance(bias, torch.Tensor):
        total = total + bias
    return relative_error((total * mlp.scale).reshape(out.shape), out)


def _rows_error(model: Model, trace: Trace, block: BlockAnatomy, layer: int) -> float | None:
    pattern, sink = (_added(trace, layer, k) for k in ("attn.pattern", "attn.sink"))
    if pattern is None:
        return None
    total = pattern.float().sum(-1)
    if sink is not None:
        total = total + sink.float().sum(-1)
    return float((total - 1).abs().max())


def _norm_error(model: Model, trace: Trace, block: BlockAnatomy, layer: int) -> float | None:
    """Norm of the value before attention or MLP: its output is what they receive."""
    pairs = (("attn.norm", "resid_pre", "attn.in"), ("mlp.norm", "resid_mid", "mlp.in"))
    errors = []
    for kind, source, target in pairs:
        path = block.norms.get(kind)
        before, after = _added(trace, layer, source), _added(trace, layer, target)
        if path is None or before is None or after is None or block.placement == "post-addition":
            continue
        norm = model.module.get_submodule(path)
        weight = getattr(norm, "weight", None)
        x = before.float()
        x = (x - x.mean(-1, keepdim=True)) if centers(norm, x.shape[-1]) else x
        x = x / divisor(norm, before)
        if isinstance(weight, torch.Tensor):
            bias = getattr(norm, "bias", None)
            shift = bias if isinstance(bias, torch.Tensor) else 0.0
            candidates = [x * weight + shift, x * (1 + weight) + shift]
        else:
            candidates = [x]
        errors.append(
            min(relative_error(c.reshape(after.shape), after.float()) for c in candidates)
        )
    return max(errors) if errors else None
