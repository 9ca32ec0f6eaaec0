"""Steps: sums that are complete, a slow reference by replacement, and a mechanism found again."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from microtome.circuits.stepping import Steps, step
from microtome.circuits.stepping.contributions import contributions
from microtome.circuits.stepping.readers import write_of
from microtome.circuits.stepping.readings import (
    Reading,
    logit_reading,
    neuron_reading,
    score_reading,
    value_reading,
)
from microtome.circuits.stepping.recorded import Recorded
from microtome.errors import (
    ConfigError,
    MicrotomeError,
    ModelSupportError,
    PromptError,
    SelectorError,
    SiteError,
    UnknownNameError,
)
from microtome.models.families import build
from microtome.tracing.model import Model
from microtome.tracing.opening import load
from microtome.tracing.sites import at

FAMILIES = ("gpt2", "llama", "gpt_neox", "granite", "qwen3")
"""Learned positions; grouped heads, biases and rotary; parallel; multipliers; query/key norm."""

TOKENS = [5, 9, 14, 22, 9, 14, 3]


@cache
def model_of(family: str) -> Model:
    return load(build(family))


@cache
def recorded_of(family: str) -> Recorded:
    return Recorded.of(model_of(family), TOKENS)


def readings_of(recorded: Recorded) -> list[Reading]:
    torch.manual_seed(1)
    direction = torch.randn(recorded.anatomy.d_model).double()
    gated = recorded.mlp(1).gate is not None
    return [
        logit_reading(recorded, 6, [3], [1.0], "one logit"),
        logit_reading(recorded, 4, [3, 8], [1.0, -1.0], "a difference"),
        *(neuron_reading(recorded, n, 7, 5, "pre") for n in range(recorded.anatomy.n_layers)),
        *([neuron_reading(recorded, 1, 7, 5, "gate")] if gated else []),
        *(score_reading(recorded, n, h, (6, 3), p) for n in (0, 2) for h in (0, 3) for p in "qk"),
        score_reading(recorded, 1, 1, (2, 2), "q"),
        *(value_reading(recorded, n, 2, 6, direction, "along") for n in (0, 1, 2)),
    ]


@pytest.mark.parametrize("neurons", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_contributions_and_constant_are_the_models_own_value(family: str, neurons: bool) -> None:
    recorded = recorded_of(family)
    for reading in readings_of(recorded):
        found = contributions(recorded, reading, neurons=neurons)
        total = float(found.values.sum()) + reading.constant
        size = float(found.values.abs().sum()) + abs(reading.constant)
        assert abs(total - reading.value) < 1e-5 * size, reading


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_read_from_the_pass(family: str) -> None:
    recorded, model = recorded_of(family), model_of(family)
    trace = model.trace([TOKENS], capture=["attn.scores", "mlp.pre"])
    assert trace.logits is not None
    one, difference, pre = readings_of(recorded)[:3]
    assert one.value == pytest.approx(float(trace.logits[0, 6, 3]), abs=1e-5)
    gap = float(trace.logits[0, 4, 3] - trace.logits[0, 4, 8])
    assert difference.value == pytest.approx(gap, abs=1e-5)
    assert pre.value == pytest.approx(float(trace["blocks.0.mlp.pre"][0, 5, 7]), abs=1e-5)
    score = score_reading(recorded, 2, 3, (6, 3), "k")
    assert score.value == pytest.approx(float(trace["blocks.2.attn.scores"][0, 3, 6, 3]), abs=1e-5)


def without(recorded: Recorded, write: torch.Tensor, layer: int, pos: int) -> torch.Tensor:
    """What a port's projection gets with a write taken out of the norm's numerator only."""
    norm = recorded.model.module.get_submodule(recorded.norm_of(layer, "attn") or "")
    stream = recorded.stream(layer, "attn")[pos].float()
    whole = norm(stream[None])[0]
    # a norm of twice the input is itself, so its difference to the shift is linear in direction
    shift = recorded.shift(layer, "attn").float()
    own = norm(write.float()[None] * 1e4)[0] - shift
    centered = write - write.mean() if isinstance(norm, torch.nn.LayerNorm) else write
    length = centered.pow(2).mean().sqrt() / recorded.scale(layer, "attn")[pos]
    return whole - own * float(length)


@pytest.mark.parametrize("port", ["q", "k"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_scores_change_by_the_contribution_when_a_write_is_taken_out(
    family: str, port: str
) -> None:
    recorded, model = recorded_of(family), model_of(family)
    layer, head, query, key = 2, 1, 6, 3
    pos = query if port == "q" else key
    reading = score_reading(recorded, layer, head, (query, key), port)
    found = contributions(recorded, reading)
    attention = recorded.attention(layer)
    heads = attention.n_heads if port == "q" else attention.n_kv_heads
    for part in ("a0.h2", "m1", "a1.h3"):
        write = write_of(recorded, part, pos).value
        changed = without(recorded, write, layer, pos)
        value = torch.zeros(1, len(TOKENS), heads, recorded.anatomy.d_model)
        value[0, pos] = changed
        site = at(f"attn.in.{port}", layer=layer, pos=pos)
        after = model.trace(
            [TOKENS],
            capture=[f"blocks.{layer}.attn.scores"],
            interventions=[site.patch(value)],
        )
        moved = reading.value - float(after[f"blocks.{layer}.attn.scores"][0, head, query, key])
        effect = float(found.values[found.parts.index((part, pos))])
        assert moved == pytest.approx(effect, abs=2e-4 * float(found.values.abs().sum()))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_source_position_counts_what_zeroing_its_attention_takes_away(family: str) -> None:
    recorded, model = recorded_of(family), model_of(family)
    torch.manual_seed(2)
    direction = torch.randn(recorded.anatomy.d_model).double()
    last = recorded.anatomy.n_layers
    reading = logit_reading(recorded, 6, [3, 8], [1.0, -1.0], "")
    assert reading.order == 2 * last
    found = contributions(recorded, reading)
    number = found.parts.index(("a1.h2", 6))
    origin, through = found.origins[number]
    along = reading.directions[0]

    def cut(value: torch.Tensor) -> torch.Tensor:
        value = value.clone()
        value[0, 2, 6, origin] = 0.0
        return value

    after = model.trace(
        [TOKENS],
        capture=["blocks.1.attn.result"],
        interventions=[at("attn.pattern", layer=1).apply(cut)],
    )
    left = float(after["blocks.1.attn.result"][0, 6, 2].double() @ along)
    assert float(found.values[number]) - left == pytest.approx(through, abs=1e-5)
    assert direction.shape == along.shape


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "qwen3"])
def test_forward_and_backward_give_the_same_number(family: str) -> None:
    recorded, model = recorded_of(family), model_of(family)
    everything = step(model, TOKENS, "a0.h2", pos=4, way="forward", top=10**6).roots[0]
    links = {link.part: link for link in everything.links}
    for port in "qk":
        link = links[f"a2.h1<{port}>"]
        assert link.other is not None
        pair = (4, link.other) if port == "q" else (link.other, 4)
        found = contributions(recorded, score_reading(recorded, 2, 1, pair, port))
        effect = float(found.values[found.parts.index(("a0.h2", 4))])
        assert link.value == pytest.approx(effect, rel=1e-6, abs=1e-9)
    split = step(model, TOKENS, "a0.h2", pos=4, way="forward", top=10**6, neurons=True).roots[0]
    for link in everything.links:
        assert link.share >= 0 and (link.share <= 1 or link.part[-2:] not in ("q>", "k>"))
    link = next(k for k in split.links if k.part.startswith("m2.n"))
    branch = "gate" if recorded.mlp(2).gate else "pre"
    found = contributions(
        recorded, neuron_reading(recorded, 2, int(link.part.split(".n")[1]), 4, branch)
    )
    effect = float(found.values[found.parts.index(("a0.h2", 4))])
    assert link.value == pytest.approx(effect, rel=1e-6, abs=1e-9)


VOCAB, PLACES, STRONG = 8, 12, 6.0


def induction_model() -> Model:
    """Two heads wired by hand: a0.h0 copies the previous token, a1.h1 completes what it saw."""
    width = 3 * VOCAB + PLACES
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=PLACES, n_embd=width, n_layer=2, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    net = GPT2LMHeadModel(config)
    token, before = range(VOCAB), range(VOCAB, 2 * VOCAB)
    out, place = range(2 * VOCAB, 3 * VOCAB), range(3 * VOCAB, width)
    size = width // 2
    with torch.no_grad():
        for name, weight in net.named_parameters():
            # a little noise keeps every part's value its own, so that the anatomy can be found
            if "ln_" not in name:
                weight.normal_(std=1e-3)
        for n in range(VOCAB):
            net.transformer.wte.weight[n, token[n]] += 1.0
            net.lm_head.weight[n, out[n]] += 1.0
        for p in range(PLACES):
            net.transformer.wpe.weight[p, place[p]] += 1.0
        first, second = (block.attn for block in net.transformer.h)
        for p in range(PLACES):
            first.c_attn.weight[place[p], p] += STRONG
            if p + 1 < PLACES:
                first.c_attn.weight[place[p], width + p + 1] += STRONG
        for n in range(VOCAB):
            first.c_attn.weight[token[n], 2 * width + n] += 1.0
            first.c_proj.weight[n, before[n]] += 1.0
            second.c_attn.weight[token[n], size + n] += STRONG
            second.c_attn.weight[before[n], width + size + n] += STRONG
            second.c_attn.weight[token[n], 2 * width + size + n] += 1.0
            second.c_proj.weight[size + n, out[n]] += 1.0
    return load(net.eval())


def test_stepping_back_finds_the_wired_induction() -> None:
    model = induction_model()
    prompt = [6, 1, 2, 3, 4, 5, 1]
    logits = model.trace([prompt]).logits
    assert logits is not None and int(logits[0, -1].argmax()) == 2
    found = step(model, prompt, "logits", token=2, depth=2, branch=1)
    best = found.roots[0].links[0]
    assert (best.part, best.pos, best.other) == ("a1.h1", 6, 2)
    steps = {s.place: s for s in found.roots[0].steps}
    assert set(steps) == {"a1.h1<v>", "a1.h1<q>", "a1.h1<k>"}
    key = steps["a1.h1<k>"]
    assert (key.pos, key.explains) == (2, "a1.h1@6")
    assert (key.links[0].part, key.links[0].pos, key.links[0].other) == ("a0.h0", 2, 1)
    assert (steps["a1.h1<v>"].links[0].part, steps["a1.h1<v>"].links[0].pos) == ("embed.token", 2)
    assert (steps["a1.h1<q>"].links[0].part, steps["a1.h1<q>"].links[0].pos) == ("embed.token", 6)
    ahead = step(model, prompt, "a0.h0", pos=2, way="forward").roots[0]
    asked = [link for link in ahead.links if link.part.endswith(("<q>", "<k>"))]
    assert asked[0].part == "a1.h1<k>" and asked[0].share > 0.5


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_attention_that_moves_is_what_the_softmax_gives(family: str) -> None:
    recorded = recorded_of(family)
    forward = step(model_of(family), TOKENS, "m0", pos=3, way="forward", top=10**6).roots[0]
    for link in forward.links:
        if not link.part.endswith(("<q>", "<k>")) or link.other is None:
            continue
        layer, head = int(link.part[1]), int(link.part[4])
        query, key = (3, link.other) if link.part.endswith("<q>") else (link.other, 3)
        scores = recorded.value(f"blocks.{layer}.attn.scores")[head, query].clone()
        before = scores.softmax(-1)[key]
        for j in range(len(TOKENS)) if link.part.endswith("<q>") else [key]:
            if scores[j] > -1e4:
                reading = score_reading(recorded, layer, head, (query, j), link.part[-2])
                found = contributions(recorded, reading)
                scores[j] -= found.values[found.parts.index(("m0", 3))]
        moved = float(before - scores.softmax(-1)[key])
        assert link.other_value == pytest.approx(moved, abs=1e-6)


def test_depth_reaches_neurons_and_their_inputs() -> None:
    found = step(model_of("llama"), TOKENS, "m1", pos=3, depth=3, branch=1, top=4)
    places = [(depth, s.place.split(".n")[0], s.place[-5:]) for depth, s in found.roots[0].walk()]
    assert places[0][1] == "m1"
    assert [(d, p) for d, p, _ in places[1:3]] == [(1, "m1"), (2, places[2][1])]
    assert {"gate>", ".n"} & {end for _, _, end in places} and found.unexplained < 1e-5
    root = found.roots[0]
    total = sum(link.value for link in root.links) + root.hidden_value + root.constant
    assert total == pytest.approx(root.value, rel=1e-5)


def test_generated_tokens_have_the_trees_of_their_prefixes() -> None:
    model = model_of("llama")
    whole = step(model, TOKENS, generate=3, depth=2, top=3)
    assert len(whole.roots) == 3 and len(whole.tokens) == len(TOKENS) + 3
    new = list(model.generate([TOKENS], max_new_tokens=3).tokens[0])
    for number, root in enumerate(whole.roots):
        alone = step(model, TOKENS + new[:number], token=new[number], depth=2, top=3).roots[0]
        assert root.pos == alone.pos == len(TOKENS) - 1 + number
        assert root.value == pytest.approx(alone.value, rel=1e-4, abs=1e-5)
        assert [k.part for k in root.links] == [k.part for k in alone.links]


def test_a_given_direction_is_of_unit_length_and_linear() -> None:
    model = model_of("gpt2")
    direction = torch.zeros(48)
    direction[5] = 3.0
    root = step(model, TOKENS, "blocks.1.resid_post", direction=direction, top=100).roots[0]
    stream = model.trace([TOKENS], capture="blocks.1.resid_post")["blocks.1.resid_post"]
    assert root.value == pytest.approx(float(stream[0, -1, 5]), rel=1e-5)


def test_results_round_trip_and_tabulate(tmp_path: Path) -> None:
    found = step(model_of("gpt2"), TOKENS, depth=2, top=3)
    again = Steps.load(found.save(tmp_path / "steps"))
    assert again.to_frame().equals(found.to_frame())
    assert len(found.to_frame()) == sum(len(s.links) for _, s in found.roots[0].walk())


@pytest.mark.parametrize(
    ("start", "options", "error", "text"),
    [
        ("a1.h9", {}, SelectorError, "9 is out of range"),
        ("m1.n7<gate>", {}, SiteError, "not gated"),
        ("blocks.1.attn.zz", {}, SiteError, "a1.h3"),
        ("blocks.1.mlp.pre", {}, SelectorError, "one neuron"),
        ("attn.z[head=1]", {}, SiteError, "one block"),
        ("embed.token", {}, SelectorError, "nothing feeds an embedding"),
        ("logits", {"way": "forward"}, SelectorError, "forward step follows"),
        ("logits", {"pos": 7}, SelectorError, "7 tokens"),
        ("a1.h1<q>", {"pos": 2, "other": 5}, SelectorError, "comes later"),
        ("logits", {"token": 97}, SelectorError, "out of range"),
        ("logits", {"way": "sideways"}, UnknownNameError, "backward"),
        ("logits", {"depth": 0}, ConfigError, "at least 1"),
        ("m1", {"direction": torch.zeros(3)}, ConfigError, "shape"),
    ],
)
def test_wrong_requests_are_named(
    start: str, options: dict[str, object], error: type[MicrotomeError], text: str
) -> None:
    with pytest.raises(error, match=text):
        step(model_of("gpt2"), TOKENS, start, **options)  # type: ignore[arg-type]


def test_scores_of_a_bfloat16_model_are_split_and_not_taken_for_capped() -> None:
    values = []
    for dtype in (torch.float32, torch.bfloat16):
        model = load(build("llama").to(dtype))
        values.append(step(model, TOKENS, "a1.h1<q>", other=2).roots[0].value)
    assert values[1] == pytest.approx(values[0], rel=0.1, abs=0.05)
    assert abs(values[0]) > 0.1


def test_models_whose_writes_do_not_add_up_are_refused() -> None:
    with pytest.raises(ModelSupportError, match="not added to the stream"):
        step(model_of("gemma2"), TOKENS)
    with pytest.raises(ModelSupportError, match="not linear"):
        step(model_of("olmo"), TOKENS, "a1.h1<q>")
    with pytest.raises(PromptError, match="empty"):
        step(model_of("gpt2"), [])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_embedding_is_named_as_circuits_name_it(family: str) -> None:
    model = model_of(family)
    found = step(model, TOKENS, "logits", top=50)
    names = {link.part for link in found.roots[0].links if link.part.startswith("embed")}
    assert names == ({"embed.token", "embed.pos"} if family == "gpt2" else {"embed.token"})
    whole = step(model, TOKENS, "embed", way="forward").roots[0]
    start = model.trace([TOKENS], capture="blocks.0.resid_pre").value("blocks.0.resid_pre")
    assert whole.value == pytest.approx(float(start[0, -1].detach().norm()), rel=1e-4)
    if family == "llama":
        with pytest.raises(SelectorError, match="adds no positions"):
            step(model, TOKENS, "embed.pos", way="forward")
    with pytest.raises(SelectorError, match="nothing feeds an embedding"):
        step(model, TOKENS, "embed")
