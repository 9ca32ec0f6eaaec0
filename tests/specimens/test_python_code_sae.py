"""The sparse autoencoder that ships with the Python specimen: what it is, reads and changes."""

from __future__ import annotations

import pytest
from specimens.python_code.corpus import standard_library
from specimens.python_code_sae.measure import Quotes

import microtome as mt
from microtome.sae import SAE, evaluate, index, load
from microtome.sae.reading.explanations import explain
from microtome.sae.reading.families import Families
from microtome.tracing.model import Model

CODE = """class Store:
    def __init__(self, path, mode='r'):
        self.path = path
        self.items = {"first": [1, 2], 'second': (3, "x")}

    def get(self, key, default=None):
        if key not in self.items:
            return default
        return self.items[key]


def read(path, sep=','):
    with open(path, "r") as handle:
        return [line.split(sep) for line in handle]
"""


@pytest.fixture(scope="module")
def model() -> Model:
    return mt.load("python-code")


@pytest.fixture(scope="module")
def coder() -> SAE:
    return load("python-code")


def test_it_belongs_to_the_specimen_and_rebuilds_its_values(model: Model, coder: SAE) -> None:
    assert coder.origin.fingerprint == model.fingerprint
    assert coder.origin.sources == ("blocks.2.resid_post",)
    rows = evaluate(model, coder, [CODE] * 3).rows
    assert rows[0].reconstruction.fvu < 0.2 < 0.5 * rows[1].reconstruction.fvu
    assert rows[0].recovery.recovered() > 0.95


def test_latents_of_quotations_are_found_by_their_explanation(model: Model, coder: SAE) -> None:
    held = [f.text[:4000] for f in standard_library() if f.split == "validation"]
    read = index(model, coder, held[:25], tokens=20_000)
    families = Families.of(read)
    here, there = Quotes.of(model, coder, n=80).pair()
    assert "a quotation in ' is open" in explain(families, here).text
    assert 'a quotation in " is open' in explain(families, there).text


def test_two_latents_flip_the_closing_quote_and_an_unchanged_one_nothing(
    model: Model, coder: SAE
) -> None:
    quotes = Quotes.of(model, coder, n=200)
    here, there = quotes.pair()
    assert quotes.flips()["flipped"] == 0
    assert quotes.flips(quotes.swap(here, there, 4.0))["flipped"] > 0.8
    unchanged = mt.at(quotes.latents_site).scale(1.0)
    assert quotes.drift([list(model.tokenize(CODE))[:60]], unchanged) == 0
