"""The sparse coder: its makes, its definitions, what it refuses."""

from __future__ import annotations

import pytest
import torch
from tests.sae.makes import MAKES, made

from microtome.errors import ConfigError, ShapeError
from microtome.sae import SAE, Architecture, SparseLatents


@pytest.fixture(params=MAKES)
def coder(request: pytest.FixtureRequest) -> SAE:
    return made(request.param)


def inputs(coder: SAE, rows: int = 9) -> torch.Tensor:
    return torch.randn(rows, coder.d_in, generator=torch.Generator().manual_seed(2))


def test_sparse_latents_are_the_dense_ones(coder: SAE) -> None:
    x = inputs(coder)
    sparse = coder.encode_sparse(x)
    assert torch.equal(sparse.dense(), coder.encode(x))
    assert bool((sparse.values != 0).all())
    assert coder(x).shape == (9, coder.d_out)


def test_a_reconstruction_is_decoder_rows_bias_and_bypass(coder: SAE) -> None:
    x = inputs(coder, 1)
    expected = coder.weights["b_dec"].clone()
    for latent, value in enumerate(coder.encode(x)[0]):
        expected = expected + value * coder.weights["W_dec"][latent]
    if coder.architecture.skip:
        expected = expected + coder.weights["W_skip"] @ x[0]
    torch.testing.assert_close(coder(x)[0], expected)


def test_counting_activations_keep_at_most_k() -> None:
    coder = SAE(MAKES["topk"], seed=0)
    x = inputs(coder)
    assert int((coder.encode(x) != 0).sum(1).max()) <= 3
    signed = SAE(MAKES["abstopk"], seed=0).encode(x)
    assert bool((signed < 0).any())
    assert bool(((signed != 0).sum(1) == 3).all())


def test_a_kronecker_latent_is_the_geometric_mean_of_two_units() -> None:
    coder = SAE(Architecture(6, 12, activation="relu", encoder="kronecker", kronecker=(2, 3, 2)))
    x = inputs(coder)
    p = x @ coder.weights["W_left"].T
    q = x @ coder.weights["W_right"].T
    left, right = p[:, 3 + 1], q[:, 2 + 1]
    expected = torch.where((left > 0) & (right > 0), (left.relu() * right.relu()).sqrt(), 0)
    torch.testing.assert_close(coder.encode(x)[:, 6 + 1 * 2 + 1], expected)


def test_kronecker_gradients_are_finite_where_a_unit_is_off() -> None:
    coder = SAE(Architecture(6, 12, activation="relu", encoder="kronecker", kronecker=(2, 3, 2)))
    coder.encode(inputs(coder)).sum().backward()
    assert all(bool(torch.isfinite(w.grad).all()) for w in coder.parameters() if w.grad is not None)


def test_cross_layer_latents_read_their_own_source_and_write_it_and_later_ones() -> None:
    coder = SAE(MAKES["cross-layer"], seed=0)
    x = inputs(coder)
    other = x.clone()
    other[:, 2:] += 1
    assert torch.equal(coder.encode(x)[:, :6], coder.encode(other)[:, :6])
    assert bool((coder.weights["W_dec"][6:, :2] == 0).all())
    assert bool((coder.weights["W_dec"][:6] != 0).all())


def test_an_architecture_survives_its_dictionary() -> None:
    for make in MAKES.values():
        assert Architecture.of(make.to_dict()) == make


def test_sparse_latents_join() -> None:
    dense = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, -3.0]])
    parts = [SparseLatents.of(dense[:1]), SparseLatents.of(dense[1:])]
    assert torch.equal(SparseLatents.join(parts).dense(), dense)
    with pytest.raises(ShapeError, match="one width"):
        SparseLatents.join([parts[0], SparseLatents.of(torch.ones(1, 2))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"d_in": 0}, "d_in is 0"),
        ({"activation": "topkk"}, "topk"),
        ({"k": 13}, "12 latents"),
        ({"activation": "relu", "k": 2}, "keeps no number"),
        ({"d_out": 4}, "center=False"),
        ({"encoder": "kronecker"}, "heads"),
        ({"encoder": "kronecker", "kronecker": (2, 2, 2)}, "8 latents"),
        ({"prefixes": (4, 8)}, "d_sae = 12"),
        ({"sources": (2, 2)}, "add up to 6"),
        ({"sources": (3, 3), "reach": "later", "center": False}, "1 targets"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Architecture(**{"d_in": 6, "d_sae": 12, **values})  # type: ignore[arg-type]


def test_a_wrong_width_is_named() -> None:
    coder = SAE(MAKES["relu"])
    with pytest.raises(ShapeError, match="d_in = 6"):
        coder.encode(torch.zeros(2, 5))
    with pytest.raises(ShapeError, match="d_sae = 12"):
        coder.decode(torch.zeros(2, 5))
