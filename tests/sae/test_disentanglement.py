"""Disentanglement on a model whose two attributes are two orthogonal parts of an embedding."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import microtome as mt
from microtome.errors import ConfigError, DataError, EmptyDataError, UnknownNameError
from microtome.sae import SAE, Architecture, Disentanglement, Origin, disentanglement
from microtome.sae.evaluation.facts import Fact, facts_of, locate, read_facts
from microtome.tracing.model import Model

N, WIDTH = 4, 16
SITE = "blocks.0.resid_pre"
COLORS, SHAPES = [f"color{i}" for i in range(N)], [f"shape{i}" for i in range(N)]
ENTITIES = {
    f"thing{i}{j}": {"color": f" {COLORS[i]}", "shape": f" {SHAPES[j]}"}
    for i in range(N)
    for j in range(N)
}
TEMPLATES = {"color": ["{entity} hue", "so {entity} hue"], "shape": ["{entity} form"]}
FACTS = facts_of(ENTITIES, TEMPLATES)
LONGER = [Fact(f.entity, f.attribute, f"so {f.prompt}", f.answer) for f in FACTS]


@cache
def model() -> Model:
    """A model that answers rightly: attention adds the entity to the question at the end."""
    words = ["so", "hue", "form", *ENTITIES, *COLORS, *SHAPES]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    module = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words), hidden_size=WIDTH, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=8,
            bos_token_id=0, eos_token_id=0, tie_word_embeddings=False,
        )
    )  # fmt: skip
    basis = torch.eye(WIDTH)  # colors, shapes, the two questions
    embedding, out = torch.zeros(len(words), WIDTH), torch.zeros(len(words), WIDTH)
    embedding[1], embedding[2] = 2 * basis[2 * N], 2 * basis[2 * N + 1]
    embedding[0] = basis[2 * N + 2]
    for i in range(N):
        for j in range(N):
            embedding[3 + N * i + j] = basis[i] + basis[N + j]
    for i in range(N):
        out[words.index(COLORS[i])] = 10 * basis[i] + 20 * basis[2 * N]
        out[words.index(SHAPES[i])] = 10 * basis[N + i] + 20 * basis[2 * N + 1]
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.copy_(torch.ones_like(weight) if "norm" in name else torch.zeros_like(weight))
        module.model.embed_tokens.weight.copy_(embedding)
        module.lm_head.weight.copy_(out)
        attention = module.model.layers[0].self_attn
        attention.v_proj.weight.copy_(basis)
        attention.o_proj.weight.copy_(2 * basis)
    return mt.load(module.eval(), tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def coder(directions: torch.Tensor, *, bias: float = 0.0) -> SAE:
    make = Architecture(WIDTH, len(directions), activation="relu", center=False)
    weights = {
        "W_enc": directions.clone(),
        "W_dec": directions.clone(),
        "b_enc": torch.full((len(directions),), bias),
        "b_dec": torch.zeros(WIDTH),
    }
    return SAE(make, origin=Origin((SITE,), (SITE,)), weights=weights)


def pure() -> SAE:
    """A latent for each color, each shape, and each direction that is neither."""
    return coder(torch.eye(WIDTH))


def tangled() -> SAE:
    """A latent for each entity: colors and shapes change together or not at all."""
    basis = torch.eye(WIDTH)
    things = [basis[i] + basis[N + j] for i in range(N) for j in range(N)]
    return coder(torch.stack(things), bias=-1.0)


def rows(found: Disentanglement, what: str) -> dict[str, dict[str, float]]:
    table = found.table[found.table["what"] == what].set_index("attribute")
    return table[["cause", "isolation", "score"]].to_dict("index")  # type: ignore[return-value]


@pytest.mark.parametrize("method", ["mask", "variance"])
@pytest.mark.parametrize("unseen", ["entities", "prompts"])
def test_latents_of_one_attribute_each_are_found(method: str, unseen: str) -> None:
    facts = FACTS if unseen == "entities" else FACTS + LONGER
    found = disentanglement(
        model(),
        pure(),
        facts,
        method=method,
        unseen=unseen,
        steps=60,
        ks=range(1, 9),  # type: ignore[arg-type]
    )
    assert found.n_right == found.n_facts == len(facts)
    assert found.score == 1.0
    assert set(found.latents["color"]) <= set(range(N))
    assert set(found.latents["shape"]) <= set(range(N, 2 * N))
    for attribute in ("color", "shape"):
        whole = rows(found, "whole value")[attribute]
        assert (whole["cause"], whole["isolation"]) == (1.0, 0.0)
        assert rows(found, "all latents")[attribute]["isolation"] == 0.0
        assert rows(found, "random")[attribute]["cause"] == 0.0
    assert (found.table["n_cause"] >= 4).all() and (found.table["n_isolation"] >= 4).all()


@pytest.mark.parametrize("method", ["mask", "variance"])
def test_latents_of_both_attributes_are_not_disentangled(method: str) -> None:
    found = disentanglement(model(), tangled(), FACTS + LONGER, method=method, steps=60,
                            unseen="prompts", among="answers")  # fmt: skip
    for attribute, row in rows(found, "latents").items():
        assert row["cause"] + row["isolation"] <= 1.1, attribute
    assert rows(found, "whole value")["color"]["cause"] == 1.0


def test_only_what_the_model_knows_is_judged() -> None:
    wrong = [Fact("thing00", "color", "thing00 hue", " color3")]
    found = disentanglement(model(), pure(), FACTS + wrong, method="variance")
    assert found.n_facts == found.n_right + 1 == len(FACTS) + 1
    with pytest.raises(EmptyDataError, match="gets 1 of 1 facts right"):
        disentanglement(model(), pure(), FACTS[:1], method="variance")


def test_facts_are_read_and_located(tmp_path: Path) -> None:
    path = tmp_path / "facts.jsonl"
    path.write_text(
        '{"entity": "thing01", "attribute": "shape", "prompt": "so thing01 form", '
        '"answer": " shape1"}\n\n'
    )
    facts = read_facts(path)
    assert facts == [Fact("thing01", "shape", "so thing01 form", " shape1")]
    located = locate(model(), facts)[0]
    assert located.position == 1 and located.ids == (0, 4, 2)
    assert model().decode([located.answer]) == "shape1"
    path.write_text('{"entity": "thing01"}\n')
    with pytest.raises(DataError, match=r"line 1: expected .*entity, attribute, prompt, answer"):
        read_facts(path)
    with pytest.raises(DataError, match="does not hold 'thing02'"):
        locate(model(), [Fact("thing02", "shape", "so thing01 form", " shape1")])
    with pytest.raises(DataError, match="does not go on"):
        locate(model(), [Fact("thing01", "shape", "thing01 form", " ")])
    with pytest.raises(DataError, match=r"no \{entity\}"):
        facts_of(ENTITIES, {"color": ["the hue"]})


def test_an_entity_of_several_tokens_ends_where_it_ends() -> None:
    code = mt.load("python-code")
    found = locate(code, [Fact("unusualword", "a", "x = unusualword + 1", "2")])[0]
    assert code.decode(found.ids[: found.position + 1]).endswith("unusualword")
    merged = locate(code, [Fact("retu", "a", "x\nreturn", " 2")])[0]
    assert "retu" in code.decode([merged.ids[merged.position]])


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    found = disentanglement(model(), pure(), FACTS, method="variance")
    again = Disentanglement.load(found.save(tmp_path / "d.json"))
    assert again.table.equals(found.table) and again.latents == found.latents
    with pytest.raises(UnknownNameError, match="nearest: mask"):
        disentanglement(model(), pure(), FACTS, method="masks")
    with pytest.raises(ConfigError, match="unseen is 'facts'"):
        disentanglement(model(), pure(), FACTS, unseen="facts")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="pairs=1"):
        disentanglement(model(), pure(), FACTS, pairs=1)
    nowhere = pure()
    nowhere.origin = Origin()
    with pytest.raises(ConfigError, match="one site"):
        disentanglement(model(), nowhere, FACTS)
