"""``microtome sae latents`` and ``show``: descriptions in words, pages, Neuronpedia batches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.cli.test_sae_reading import SITE, TEXT, run
from tests.sae.test_explanations import KNOWN, made
from tests.small import byte_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

import microtome as mt
from microtome.cli.sae_latents import _holding as found_with
from microtome.sae import SAE, Architecture, Origin, save
from microtome.sae.reading.explanations import Explanation
from microtome.sae.reading.neuronpedia import read_batches
from microtome.sae.reading.scoring import explain_all


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A coder, texts, and a folder for the index of both."""
    folder = tmp_path_factory.mktemp("reading")
    width = mt.load("python-code").trace([[1]], capture=[SITE])[SITE].shape[-1]
    make = Architecture(width, 64, activation="topk", k=4)
    coder = save(SAE(make, origin=Origin((SITE,), (SITE,))), folder / "sae")
    for number in range(6):
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / f"{number}.py").write_text(TEXT * (number + 2))
    return [coder, folder / "texts", folder / "index"]


@pytest.fixture(scope="module")
def explainer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explainer") / "tiny"
    tokenizer = byte_tokenizer(["Yes No yes no " * 50, TEXT * 5], 400)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=4000)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def read(place: list[Path], verb: str, *words: object) -> list[object]:
    coder, texts, index = place
    given = ["sae", verb, "python-code", coder, texts, "--index", index, "--context", 32]
    return [*given, "--tokens", 50_000, *words]


def test_a_local_model_describes_and_its_record_gives_the_same(
    place: list[Path], explainer: Path, tmp_path: Path
) -> None:
    asked = tmp_path / "asked.jsonl"
    words = ["--top", 2, "--json"]
    direct = run(*read(place, "latents", "--explainer", explainer, "--asked", asked, *words))
    again = run(*read(place, "latents", "--answers", asked, *words))
    assert direct.stdout == again.stdout
    rows = json.loads(direct.stdout)
    assert all(0 <= r["words_fuzzing"] <= 1 for r in rows)
    table = run(*read(place, "latents", "--answers", asked, "--top", 2))
    assert "says asked.jsonl" in " ".join(table.stdout.split())
    before = asked.read_bytes()
    refused = run(*read(place, "latents", "--answers", asked, "--asked", asked), code=2)
    assert "give two files" in str(refused.exception) and asked.read_bytes() == before
    refused = run(*read(place, "latents", "--answers", asked, "--explainer", explainer), code=2)
    assert "either" in str(refused.exception)


def test_questions_are_written_in_two_rounds(place: list[Path], tmp_path: Path) -> None:
    asked, answers = tmp_path / "asked.jsonl", tmp_path / "answers.jsonl"
    done = run(*read(place, "latents", "--asked", asked, "--top", 2, "--json"))
    assert "words_fuzzing" not in done.stdout
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    assert {r["asks"] for r in rows} == {"words"}
    answers.write_text("\n".join(json.dumps({**r, "answer": "brackets"}) for r in rows))
    words = ["--answers", answers, "--top", 2, "--json"]
    refused = run(*read(place, "latents", *words), code=2)
    assert "--asked" in str(refused.exception)
    run(*read(place, "latents", *words, "--asked", asked))
    rows = [json.loads(line) for line in asked.read_text().splitlines()]
    assert {r["asks"] for r in rows} == {"yes or no"}
    with answers.open("a") as more:
        more.writelines("\n" + json.dumps({"id": r["id"], "answer": "no"}) for r in rows)
    done = run(*read(place, "latents", *words))
    assert {r["words_fuzzing"] for r in json.loads(done.stdout)} == {0.5}


def test_latents_whose_first_rule_holds_the_text_come_first() -> None:
    found = explain_all(made(KNOWN), [0, 3])
    cat, quotation = (e.explanation.rules[0] for e in found)
    second = replace(found[0], explanation=Explanation(0, (cat, quotation), 1.0))
    worse = replace(found[1], scores=replace(found[1].scores, simulation=0.1))
    shown = found_with([second, found[0], worse], "Quotation")
    assert shown == [worse, second]
    assert found_with(found, "the token is `·cat`") == found[:1]


def test_show_writes_pages_and_batches(place: list[Path], explainer: Path, tmp_path: Path) -> None:
    page, batches = tmp_path / "coder.html", tmp_path / "batches"
    done = run(*read(place, "show", "-o", page, "--neuronpedia", batches, "--json"))
    shown = json.loads(done.stdout)["latents"]
    html = page.read_text()
    assert 'data-browser="latent"' in html
    assert "On all" in html
    assert sorted(f.feature_index for f in read_batches(batches)) == sorted(shown)
    one = tmp_path / "latent.html"
    run(*read(place, "show", "--latent", shown[0], "-o", one, "--explainer", explainer))
    html = one.read_text()
    assert "What tiny says" in html
    assert "neuron of blocks.2.mlp.act" in html
    refused = run(*read(place, "show"), code=2)
    assert "--neuronpedia" in str(refused.exception)
