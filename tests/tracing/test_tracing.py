"""Capture, interventions, scopes, generation, gradients and twins on small models."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from microtome.errors import (
    ConfigError,
    HookError,
    MetricError,
    PairError,
    PromptError,
    SelectorError,
    ShapeError,
    SiteAbsentError,
    SiteError,
    TokenizerError,
)
from microtome.models.families import build
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.sites import at

TOKENS = torch.randint(5, 90, (3, 9), generator=torch.Generator().manual_seed(0))
FAMILIES = ["gpt2", "llama", "gemma2", "gpt_neox", "mixtral", "gpt_oss", "bert", "falcon"]


def clean_of_hooks(module: nn.Module) -> bool:
    return not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("family", FAMILIES)
def test_reading_changes_no_bit_and_leaves_nothing_behind(family: str) -> None:
    module = build(family)
    plain = module(TOKENS).logits
    model = load(module)
    before = module.config._attn_implementation
    trace = model.trace(TOKENS, capture=[s.name for s in model.sites() if s.readable])
    assert torch.equal(trace.logits, plain)  # type: ignore[arg-type]
    assert clean_of_hooks(module) and module.config._attn_implementation == before
    assert all(p.requires_grad for p in module.parameters())

    def fail(_value: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        model.trace(TOKENS, interventions=[at("resid_post", layer=1).apply(fail)])
    assert clean_of_hooks(module) and module.config._attn_implementation == before
    assert torch.equal(module(TOKENS).logits, plain)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_patching_a_whole_stream_gives_the_other_run(family: str) -> None:
    model = load(build(family))
    other = TOKENS.flip(1)
    source = model.trace(other, capture="resid_post")
    patched = model.trace(TOKENS, interventions=[at("resid_post", layer=0).patch(source)])
    torch.testing.assert_close(patched.logits, source.logits)


def model() -> Model:
    return load(build("llama"))


def test_operations_by_hand() -> None:
    m = model()
    site = at("blocks.1.attn.z[head=2][pos=1:4]")
    v = torch.linspace(-1, 1, m.anatomy.d_head)  # type: ignore[union-attr]
    old = m.trace(TOKENS, capture="blocks.1.attn.z")["blocks.1.attn.z"]
    unit = v / v.norm()
    expected = {
        "zero": (site.zero(), torch.zeros_like(old)),
        "add": (site.add(v), old + v),
        "scale": (site.scale(2.0), old * 2),
        "set": (site.set(v), v.expand_as(old)),
        "project": (site.project_out(v), old - (old @ unit).unsqueeze(-1) * unit),
        "two": ([site.add(1.0), site.scale(3.0)], (old + 1) * 3),
        "row": (site.add(v, rows=[1]), torch.cat([old[:1], old[1:2] + v, old[2:]])),
    }
    for name, (change, whole) in expected.items():
        changes = change if isinstance(change, list) else [change]
        got = m.trace(TOKENS, capture="blocks.1.attn.z", interventions=changes)["blocks.1.attn.z"]
        wanted = old.clone()
        wanted[:, 1:4, 2] = whole[:, 1:4, 2]
        torch.testing.assert_close(got, wanted, msg=name)


def test_mean_resample_and_positions_by_row() -> None:
    m = model()
    trace = m.trace(TOKENS, capture="mlp.out")
    name = "blocks.0.mlp.out"
    got = m.trace(TOKENS, capture=name, interventions=[at(name).mean(over=trace)])[name]
    torch.testing.assert_close(got, trace[name].mean((0, 1)).expand_as(got))
    drawn = m.trace(TOKENS, capture=name, interventions=[at(name).resample(trace, seed=1)])[name]
    assert sorted(float(r.sum()) for r in drawn) == pytest.approx(
        sorted(float(r.sum()) for r in trace[name]), rel=1e-5
    )
    assert not any(torch.equal(a, b) for a, b in zip(drawn, trace[name], strict=True))
    rows = at(name).at_positions([[0, 2], [1, -1], [-1, -1]]).zero()
    zeroed = m.trace(TOKENS, capture=name, interventions=[rows])[name]
    where = (zeroed == 0).all(-1)
    assert where.nonzero().tolist() == [[0, 0], [0, 2], [1, 1]]


def test_unequal_prompts_are_padded_on_the_right() -> None:
    m = model()
    prompts = [[5, 6, 7, 8, 9], [10, 11, 12]]
    both = m.trace(prompts, capture="resid_post")
    alone = m.trace([prompts[1]], capture="resid_post")
    torch.testing.assert_close(both.stack("resid_post")[:, 1, :3], alone.stack("resid_post")[:, 0])
    torch.testing.assert_close(both.last()[1], alone.last()[0])
    ends = m.trace(prompts, capture="blocks.0.resid_post[pos=-1]")["blocks.0.resid_post[pos=-1]"]
    torch.testing.assert_close(ends[1, 0], alone["blocks.0.resid_post"][0, 2])
    with pytest.raises(PairError, match="5 tokens but its source has 3"):
        m.trace([prompts[0]], interventions=[at("blocks.0.resid_post").patch(alone)])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("blocks.1.attn.zz", SiteError),
        ("blocks.9.resid_pre", SelectorError),
        ("blocks.0.attn.z[head=99]", SelectorError),
        ("blocks.0.resid_pre[head=1]", SelectorError),
        ("blocks.0.resid_pre[pos=50]", SelectorError),
        ("blocks.0.mlp.router", SiteAbsentError),
        ("module:nowhere:out", SiteError),
        ("blocks.0.attn.hook_q", SiteError),
        ("", SiteError),
    ],
)
def test_wrong_sites_are_errors(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        model().trace(TOKENS, capture=text)


def test_names_of_transformer_lens() -> None:
    assert str(at("blocks.3.hook_resid_pre")) == "blocks.3.resid_pre"
    assert str(at("blocks.*.attn.hook_pattern[head=1]")) == "blocks.*.attn.pattern[head=1]"
    with pytest.raises(SiteError, match="before rotary"):
        at("blocks.3.attn.hook_k")


def test_wrong_values_are_errors() -> None:
    m = model()
    site = at("blocks.0.resid_post")
    for change, error in (
        (site.add(torch.ones(7)), ShapeError),
        (site.add(float("nan")), ShapeError),
        (site.apply(lambda v: v[:1]), ShapeError),
        (site.zero(rows=[7]), SelectorError),
    ):
        with pytest.raises(error):
            m.trace(TOKENS, interventions=[change])
    for prompts in ([], [[]], [[1, 999]], "text", torch.rand(2, 3), [[1.5, "a"]]):
        with pytest.raises((PromptError, TokenizerError)):
            m.trace(prompts)  # type: ignore[arg-type]
    m.module.train()
    with pytest.raises(ConfigError, match="eval"):
        m.trace(TOKENS)


def test_scopes_reach_plain_calls_and_check_that_sites_were_passed() -> None:
    m = model()
    change = [at("blocks.1.mlp.out").scale(3.0)]
    wanted = m.trace(TOKENS, interventions=change).logits
    with m.under(change):
        got = m.module(TOKENS).logits
    torch.testing.assert_close(got, wanted)
    with pytest.raises(HookError), m.under(change):
        m.module.model.embed_tokens(TOKENS)
        m.module.lm_head(torch.zeros(1, 1, m.anatomy.d_model))  # type: ignore[union-attr]
        raise HookError("left by an error")


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "bloom-plain"])
def test_generation_is_the_same_with_and_without_a_cache(family: str) -> None:
    m = load(build(family))
    v = torch.ones(m.anatomy.d_model)  # type: ignore[union-attr]
    prompts = [[5, 6, 7, 8], [9, 10]]
    for changes in (
        [],
        [at("blocks.1.resid_post").add(v)],
        [at("blocks.0.mlp.out[pos=-1]").zero()],
    ):
        a, b = (
            m.generate(prompts, max_new_tokens=6, interventions=changes, use_cache=c)
            for c in (True, False)
        )
        assert a.tokens == b.tokens
        alone = [
            m.generate([p], max_new_tokens=6, interventions=changes).tokens[0] for p in prompts
        ]
        assert tuple(alone) == a.tokens
    theirs = m.module.generate(
        torch.tensor([prompts[0]]), max_new_tokens=6, do_sample=False, eos_token_id=None
    )
    ours = m.generate([prompts[0]], max_new_tokens=6).tokens[0]
    assert theirs[0, 4 : 4 + len(ours)].tolist() == list(ours)
    with pytest.raises(ConfigError):
        m.generate(prompts, max_new_tokens=0)


@pytest.mark.parametrize(
    "site", ["blocks.1.attn.z", "blocks.0.mlp.act", "blocks.1.attn.pattern", "blocks.0.attn.q"]
)
def test_gradients_against_differences(site: str) -> None:
    m = load(build("llama").double())
    prompts = TOKENS[:1]

    def metric(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 7] - logits[:, -1, 11]

    found = m.gradients(metric, site, prompts)
    direction = torch.randn(
        found[site].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    # norms compute in float32 whatever the model is, so the step must not be tiny
    step = 3e-3
    up, down = (
        metric(
            m.trace(
                prompts, interventions=[at(site).apply(lambda v, s=s: v + s * direction)]
            ).logits,
            None,
        )
        for s in (step, -step)
    )  # type: ignore[arg-type,misc]
    assert float((found[site] * direction).sum()) == pytest.approx(
        float((up - down) / (2 * step)), rel=5e-3, abs=1e-3
    )
    assert all(p.grad is None and p.requires_grad for p in m.module.parameters())
    with pytest.raises(MetricError):
        m.gradients(lambda lo, le: lo.sum(), site, prompts)


def test_gradients_at_a_part_of_a_site_are_those_of_the_whole() -> None:
    m = model()

    def metric(logits: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return logits[:, -1, 7]

    part, rows = "blocks.0.attn.z[head=1]", "blocks.*.mlp.act[neuron=3,5][pos=-1]"
    found = m.gradients(metric, [part, rows, "attn.z", "mlp.act"], TOKENS)
    whole = found["blocks.0.attn.z"][:, :, 1:2]
    torch.testing.assert_close(found[part], whole, rtol=0, atol=0)
    assert float(whole.abs().max()) > 0
    one = found["blocks.1.mlp.act[neuron=3,5][pos=-1]"]
    torch.testing.assert_close(one, found["blocks.1.mlp.act"][:, -1:, [3, 5]], rtol=0, atol=0)


def test_a_twin_is_restored_bit_for_bit() -> None:
    m = model()
    before = m.fingerprint
    with m.twin(3) as other:
        assert other.fingerprint != before
    assert m.fingerprint == before
    with pytest.raises(RuntimeError), m.twin(3):
        raise RuntimeError
    assert m.fingerprint == before


def test_replay_and_tail_are_the_whole_pass() -> None:
    m = model()
    base = m.record([[5, 6, 7, 8], [9, 10, 11]])
    rows = torch.tensor([1, 0, 1])
    for start in range(m.anatomy.n_layers):  # type: ignore[union-attr]
        last = m.replay(base, start, base.streams[start][rows], rows=rows)
        torch.testing.assert_close(last[1], base.streams[-1][0])
    ends = torch.tensor([[2], [3], [2]])
    torch.testing.assert_close(m.tail(last, ends)[1, 0], base.logits[0, 3])


@pytest.mark.parametrize("family", ["mpt", "bloom-plain", "falcon", "gpt2", "llama"])
def test_replays_of_as_many_rows_as_heads(family: str) -> None:
    """A bias with one entry for each head is not one with an entry for each row."""
    m = load(build(family))
    assert m.anatomy is not None
    tokens = torch.randint(
        5, 90, (m.anatomy.n_heads, 6), generator=torch.Generator().manual_seed(1)
    )
    base = m.record(tokens)
    rows = torch.tensor([len(tokens) - 1, 0])
    last = m.replay(base, 0, base.streams[0][rows], rows=rows)
    torch.testing.assert_close(last, base.streams[-1][rows], rtol=1e-4, atol=1e-5)


def test_weights_by_head_reproduce_captured_values() -> None:
    m = model()
    trace = m.trace(TOKENS, capture=["attn.in", "attn.v", "attn.z", "attn.result"])
    w = m.weights
    for head in range(m.anatomy.n_heads):  # type: ignore[union-attr]
        torch.testing.assert_close(
            trace["blocks.1.attn.z"][:, :, head] @ w.W_O(1, head),
            trace["blocks.1.attn.result"][:, :, head],
        )
    folded = w.view(fold_norm=True).W_U
    last = m.trace(TOKENS, capture=["final.norm", "final.norm.scale", "resid_post"])
    stream = last.stack("resid_post")[-1] / last["final.norm.scale"]
    torch.testing.assert_close(stream @ folded, last["final.norm"] @ w.W_U, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_verified_by_its_own_tolerance() -> None:
    assert load(build("llama"), dtype="bfloat16").verify().passed


def test_a_network_on_digits_is_opened_and_patched() -> None:
    digits = load_digits()
    x = torch.tensor(digits.data[:200], dtype=torch.float32) / 16
    y = torch.tensor(digits.target[:200])
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    step = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        step.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        step.step()
    m = load(net)
    assert m.anatomy is None and "module sites only" in repr(m)
    trace = m.trace(x, capture="module:1:out")
    torch.testing.assert_close(trace["module:1:out"], net[:2](x))
    assert (trace.logits.argmax(-1) == y).float().mean() > 0.9  # type: ignore[union-attr]
    other = m.trace(x.flip(0), capture="module:1:out")
    patched = m.trace(x, interventions=[at("module:1:out").patch(other)])
    torch.testing.assert_close(patched.logits, net(x.flip(0)))
    slopes = m.gradients(lambda lo, le: lo[:, 3], "module:1:out", x[:4])
    torch.testing.assert_close(slopes["module:1:out"], net[2].weight[3].expand(4, -1))
    with pytest.raises(SiteAbsentError, match="module:PATH"):
        m.trace(x, capture="resid_post")
    with pytest.raises(PromptError, match="NaN"):
        m.trace(x * float("nan"))


def test_the_sorter_agrees_with_its_golden_file(shared_data: Path) -> None:
    folder = shared_data / "models/sorter"
    golden = json.loads((folder / "gpt-nano-sort-t0-partials.json").read_text())

    def value(key: str) -> torch.Tensor:
        entry = golden[key]
        raw = entry.get("data") or entry.get("base64") or entry.get("values")
        flat = np.frombuffer(base64.b64decode(raw), dtype="<f4").reshape(entry["shape"])
        return torch.tensor(flat)

    m = load(folder)
    tokens = torch.tensor(
        [
            [0, 0, 2, 1, 0, 1, 0, 0, 0, 0, 0],
            [0, 1, 2, 2, 2, 0, 0, 0, 0, 0, 0],
            [1, 0, 2, 1, 2, 2, 0, 0, 0, 0, 0],
        ]
    )
    names = [
        "embed.token",
        "attn.in",
        "attn.q",
        "attn.k",
        "attn.v",
        "attn.pattern",
        "attn.scores",
        "attn.z",
        "attn.out",
        "resid_mid",
        "mlp.in",
        "mlp.pre",
        "mlp.act",
        "mlp.out",
        "resid_post",
        "final.norm",
    ]
    t = m.trace(tokens, capture=names)
    b = {n: t[f"blocks.0.{n}"] for n in names if f"blocks.0.{n}" in t}
    pairs = {
        "tok_emb": t["embed.token"],
        "ln1": b["attn.in"],
        "attSm": b["attn.pattern"],
        "yProj": b["attn.out"],
        "q": b["attn.q"].transpose(1, 2),
        "k": b["attn.k"].transpose(1, 2),
        "v": b["attn.v"].transpose(1, 2),
        "y": b["attn.z"].flatten(2),
        "attnResid": b["resid_mid"],
        "ln2": b["mlp.in"],
        "fc": b["mlp.pre"],
        "gelu": b["mlp.act"],
        "mlp": b["mlp.out"],
        "mlpResid": b["resid_post"],
        "block1": t["blocks.1.resid_post"],
        "block2": t["blocks.2.resid_post"],
        "ln_f": t["final.norm"],
        "lm_head": t.logits,
    }
    for key, got in pairs.items():
        torch.testing.assert_close(got, value(key).reshape(got.shape), rtol=0, atol=1e-5, msg=key)  # type: ignore[union-attr]
    scores = value("att")
    seen = torch.isfinite(scores)
    torch.testing.assert_close(b["attn.scores"][seen], scores[seen], rtol=0, atol=1e-5)


def test_stories_continue_as_published(shared_data: Path) -> None:
    m = load(shared_data / "models/stories260K")
    expected = json.loads((shared_data / "models/stories260K/expected.json").read_text())["greedy"]
    new = m.generate([expected["prompt_ids"]], max_new_tokens=200).tokens[0]
    published = expected["ids"][-200:] if len(expected["ids"]) >= 200 else expected["ids"]
    assert list(new)[: len(published)] == published[: len(new)]


def test_asking_for_the_last_logits_narrows_no_block() -> None:
    model = load(build("gemma4_text"))
    prompts = [[1, 2, 3, 4, 5]] * 2
    short = model.trace(prompts, capture="resid_post", logits="last")
    whole = model.trace(prompts, capture="resid_post")
    for site in short.sites:
        torch.testing.assert_close(short[site], whole[site], rtol=0, atol=0)
    torch.testing.assert_close(short.logits[:, 0], whole.logits[:, -1])
