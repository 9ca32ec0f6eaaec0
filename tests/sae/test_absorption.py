"""Absorption: planted in full, in part and not at all, found after training, and its data."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.small import code_model

import microtome as mt
from microtome.errors import ConfigError, DataError, EmptyDataError, UnknownNameError
from microtome.sae import SAE, Absorption, Architecture, Origin, absorption
from microtome.sae.evaluation.labelled import Pooled
from microtome.sae.evaluation.tokens import at_tokens, first_letters

WIDTH, N, CHILDREN = 24, 1200, 8


def hierarchy(taken: float, *, sizes: bool = False) -> tuple[Pooled, SAE, np.ndarray]:
    """A property, eight rarer ones that imply it, and a coder that gives them part of it.

    Args:
        taken: Share of the property's direction that the rarer ones' latents write for it.
        sizes: Whether latents are ten times as large, and their directions as much smaller.
    """
    stream = np.random.default_rng(0)
    directions = np.linalg.qr(stream.standard_normal((WIDTH, WIDTH)))[0]
    general = stream.random(N) < 0.5
    child = np.where(general & (stream.random(N) < 0.3), stream.integers(0, CHILDREN, N), -1)
    others = (stream.random((N, WIDTH - CHILDREN - 1)) < 0.3) * 1.0
    values = general[:, None] * directions[0] + others @ directions[CHILDREN + 1 :]
    latents = np.zeros((N, WIDTH))
    latents[:, 0] = general * np.where(child >= 0, 1 - taken, 1.0)
    latents[:, CHILDREN + 1 :] = others
    decoder = directions.copy()
    for number in range(CHILDREN):
        there = child == number
        values += there[:, None] * 1.5 * directions[number + 1]
        latents[there, number + 1] = 1.5
        decoder[number + 1] += taken / 1.5 * directions[0]
    factor = 10.0 if sizes else 1.0
    coder = SAE(
        Architecture(WIDTH, WIDTH, activation="relu", center=False),
        weights={
            "W_enc": torch.zeros(WIDTH, WIDTH),
            "W_dec": torch.tensor(decoder / factor, dtype=torch.float32),
            "b_enc": torch.zeros(WIDTH),
            "b_dec": torch.zeros(WIDTH),
        },
    )
    latents = latents * factor
    train_half = np.arange(N) % 2 == 0
    labels = general.astype(np.int64)
    return Pooled(values, latents, latents, labels, ("no", "yes"), train_half), coder, child


@pytest.mark.parametrize("sizes", [False, True])
def test_planted_absorption_is_found_where_it_is(sizes: bool) -> None:
    data, coder, child = hierarchy(1.0, sizes=sizes)
    found = absorption(data, coder).to_frame().loc["yes"]
    test = ~data.train & (data.labels == 1)
    share = (child[test] >= 0).mean()
    assert found["n"] == test.sum() and found["probe_f1"] == 1
    assert found["main"] == (0,)
    assert found["full"] == pytest.approx(share)
    assert found["fraction"] == pytest.approx(share, abs=0.01)
    assert set(found["absorbers"]) == set(range(1, CHILDREN + 1))
    assert found["main_f1"] == pytest.approx(2 * (1 - share) / (2 - share), abs=0.03)
    assert found["shuffled"] == pytest.approx(share**2, abs=0.04)  # a child's latent by chance


def test_a_coder_without_absorption_has_none() -> None:
    data, coder, _ = hierarchy(0.0)
    found = absorption(data, coder, classes=["yes"])
    assert found.classes == ("yes",) and found.absorbers == ((),)
    assert found.mean_full == found.mean_fraction == found.shuffled[0] == 0
    with pytest.raises(UnknownNameError, match="nearest: yes"):
        absorption(data, coder, classes=["yess"])


def test_the_part_that_is_taken_is_the_fraction() -> None:
    data, coder, child = hierarchy(0.6)
    found = absorption(data, coder).to_frame().loc["yes"]
    share = (child[~data.train & (data.labels == 1)] >= 0).mean()
    assert found["full"] == 0  # the own latent is never silent
    assert found["fraction"] == pytest.approx(0.6 * share, abs=0.02)
    data, coder, _ = hierarchy(0.3)  # too little to count
    assert absorption(data, coder).to_frame().loc["yes", "fraction"] == 0


def test_a_property_of_two_latents_is_split_not_absorbed() -> None:
    data, coder, child = hierarchy(0.0)
    latents = data.latents.copy()
    half = (np.arange(N) // 2) % 2 == 0
    latents[:, 9] = np.where(half, latents[:, 0], 0)  # one of the two where it is even
    latents[:, 0] = np.where(half, 0, latents[:, 0])
    with torch.no_grad():
        coder.weights["W_dec"][9] = coder.weights["W_dec"][0]
    split = Pooled(data.values, latents, latents, data.labels, data.classes, data.train)
    found = absorption(split, coder).to_frame().loc["yes"]
    assert set(found["main"]) == {0, 9} and found["fraction"] == 0


def test_tokens_are_encoded_where_they_are() -> None:
    model = code_model()
    site = "blocks.1.resid_post"
    coder = SAE(Architecture(32, 40, activation="relu"), origin=Origin((site,), (site,)))
    prompts = [[5, 6, 7], [8, 9], [5, 6], [7, 7, 7, 7]] * 2
    labels = ["a", "b", "a", "b"] * 2
    data = at_tokens(model, coder, prompts, labels, positions=[1, -2, 0, 3] * 2, batch_size=3)
    for row, place in ((0, 1), (1, 0), (2, 0), (3, 3)):
        value = model.trace([prompts[row]], capture=[site])[site][0, place]
        np.testing.assert_allclose(data.values[row], value, atol=1e-5)
        np.testing.assert_allclose(data.latents[row], coder.encode(value).detach(), atol=1e-5)
    assert data.train.sum() == 4
    with pytest.raises(DataError, match="prompt 1 has 2 tokens and no token 2"):
        at_tokens(model, coder, prompts, labels, positions=2)
    with pytest.raises(DataError, match="7 labels"):
        at_tokens(model, coder, prompts, labels[:-1])


def test_first_letters_are_asked_for_at_the_end_of_the_word() -> None:
    model = mt.load("python-code")
    prompts, labels, places = first_letters(model, ["return", "import", "unusualword", "7up"])
    assert labels == ["r", "i", "u"]
    for prompt, word, place in zip(
        prompts, ["return", "import", "unusualword"], places, strict=True
    ):
        assert model.decode(prompt[: place + 1]).endswith(word)
        assert model.decode(prompt).endswith("has the first letter:")
    own, letters, _ = first_letters(model, n=30, seed=1)
    assert len(own) == len(letters) == 30 and all(len(letter) == 1 for letter in letters)
    with pytest.raises(ConfigError, match=r"no \{word\}"):
        first_letters(model, template="first letter:")


def test_what_cannot_be_measured_is_refused(tmp_path: object) -> None:
    data, coder, _ = hierarchy(1.0)
    found = absorption(data, coder)
    again = Absorption.load(found.save(f"{tmp_path}/a.json"))
    assert again.fraction == found.fraction and again.mean_full == found.mean_full
    noise = np.random.default_rng(3).permutation(data.labels)
    shuffled = Pooled(data.values, data.latents, data.latents, noise, data.classes, data.train)
    with pytest.raises(EmptyDataError, match=r"no probe reaches an F1 of 0\.8"):
        absorption(shuffled, coder, least_f1=0.8)
    wide = SAE(Architecture(WIDTH, 50, activation="relu"))
    with pytest.raises(ConfigError, match="pooled with a coder"):
        absorption(data, wide)
