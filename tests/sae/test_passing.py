"""The sparse forward pass and its gradients: equal to the dense definitions in every make."""

from __future__ import annotations

import pytest
import torch
from tests.sae import dense

from microtome.sae import SAE, Architecture
from microtome.sae.passing import Full, Kept, forward, jump, step
from microtome.sae.selecting import products, ranking, selection
from microtome.sae.selecting.estimation import ByteProduct, estimator, fastest_precision
from microtome.sae.selecting.selection import Selector

MAKES = dense.makes()


@pytest.fixture(params=MAKES)
def coder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SAE:
    monkeypatch.setattr(selection, "DENSEST", 1.0)
    monkeypatch.setattr(products, "BLOCK_ROWS", 4)
    return dense.noisy(MAKES[request.param])


def _as_dense(form: object, values: torch.Tensor, rows: int) -> torch.Tensor:
    assert isinstance(form, Kept)
    kept = form.entries
    full = values.new_zeros(rows, kept.n_latents)
    return full.index_put((kept.bags, kept.latents), values)


def test_latents_outputs_and_gradients_are_the_dense_ones(coder: SAE) -> None:
    x = dense.rows(coder.architecture)
    generator = torch.Generator().manual_seed(5)
    latents, outputs = dense.outputs(coder, x)
    found = forward(coder.architecture, coder.weights, x, Selector())
    sparse = _as_dense(found.form, found.values, len(x))
    torch.testing.assert_close(sparse, latents)
    torch.testing.assert_close(found.outputs, outputs)
    assert torch.equal(found.form.fired(found.values), (latents != 0).any(0))
    pull = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    push = torch.randn(latents.shape, generator=generator, dtype=torch.float64)
    names = [name for name in coder.weights if not _untrained(coder, name)]
    weights = [coder.weights[name] for name in names]
    expected, got = (
        torch.autograd.grad((o * pull).sum() + (v * push).sum(), weights, allow_unused=True)
        for o, v in ((outputs, latents), (found.outputs, sparse))
    )
    for name, left, right in zip(names, expected, got, strict=True):
        assert (left is None) == (right is None), name
        if left is not None and right is not None:
            mask = coder.weights[name] != 0 if coder.architecture.reach != "all" else 1.0
            torch.testing.assert_close(right * mask, left * mask, msg=lambda m, n=name: f"{n}: {m}")


def _untrained(coder: SAE, name: str) -> bool:
    return name == "threshold" and coder.architecture.activation == "batchtopk"


@pytest.mark.parametrize("name", ["topk", "batchtopk", "gated", "relu", "topk later", "tied"])
def test_gradients_by_finite_differences(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "DENSEST", 1.0)
    coder = dense.noisy(MAKES[{"tied": "topk tied"}.get(name, name)])
    x = dense.rows(coder.architecture, 4)
    names = list(coder.weights)

    def outputs(*values: torch.Tensor) -> torch.Tensor:
        weights = dict(zip(names, values, strict=True))
        return forward(coder.architecture, weights, x, Selector()).outputs

    weights = [coder.weights[n].detach().requires_grad_(n != "threshold") for n in names]
    assert torch.autograd.gradcheck(outputs, weights)


def test_no_gradient_passes_a_negative_pre_activation() -> None:
    coder = SAE(Architecture(4, 8, activation="topk", k=8)).double()
    x = dense.rows(coder.architecture, 5)
    found = forward(coder.architecture, coder.weights, x, Selector())
    assert isinstance(found.form, Kept) and bool((found.pre < 0).any())
    (gradient,) = torch.autograd.grad(found.outputs.square().sum(), found.pre)
    assert not gradient[found.pre <= 0].any()
    assert gradient[found.pre > 0].all()


@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu"])
def test_dense_products_take_over_where_most_latents_are_active(name: str) -> None:
    coder = dense.noisy(MAKES[name])
    x = dense.rows(coder.architecture)
    selector = Selector()
    found = forward(coder.architecture, coder.weights, x, selector)
    assert isinstance(found.form, Full) and selector.dense_left == selection.RETRY_AFTER
    latents, outputs = dense.outputs(coder, x)
    torch.testing.assert_close(found.values, latents)
    torch.testing.assert_close(found.outputs, outputs)


@pytest.mark.parametrize("width,k", [(8192, 40), (2048, 3), (1021, 7), (64, 64), (512, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_of_each_row_are_exact(width: int, k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(k)
    pre = torch.randn(5, width, generator=generator).to(dtype)
    latents = ranking.top_latents(ranking.sortable(pre), k)
    assert all(len(set(row)) == k for row in latents.tolist())
    expected = pre.float().topk(k).values
    positive = expected > 0  # below it, entries are worth nothing and may be any
    got = pre.gather(1, latents).float().sort(descending=True).values
    assert torch.equal(got[positive], expected[positive])


def test_batch_top_k_is_exact_whatever_the_last_threshold() -> None:
    make = Architecture(16, 64, activation="batchtopk", k=4)
    coder = dense.noisy(make)
    x = dense.rows(make, 700)
    whole = (x - coder.weights["b_dec"]) @ coder.weights["W_enc"].T + coder.weights["b_enc"]
    expected = whole.flatten().topk(4 * 700).indices.sort().values
    selector = Selector()
    for threshold in (None, 1e9, 1e-9, None):
        selector.threshold = selector.threshold if threshold is None else threshold
        found = selector.select(make, coder.weights, x)
        assert found is not None
        assert torch.equal(found.entries.bags * 64 + found.entries.latents, expected)
    assert selector.fallbacks == 1
    assert selector.threshold == whole.flatten()[expected].min().item()


def test_batch_top_k_keeps_no_more_than_what_is_positive() -> None:
    make = Architecture(4, 32, activation="batchtopk", k=30)
    coder = dense.noisy(make)
    x = dense.rows(make, 20)
    found = Selector().select(make, coder.weights, x)
    latents, _ = dense.outputs(coder, x)
    assert found is not None and found.known is not None
    assert int((found.known > 0).sum()) == int((latents > 0).sum()) < 30 * 20


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "abstopk"])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_estimates_only_propose(
    activation: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "ESTIMATED_WEIGHTS", 1)
    make = Architecture(64, 2048, activation=activation, k=8)  # type: ignore[arg-type]
    coder = SAE(make)
    x = torch.randn(900, 64, generator=torch.Generator().manual_seed(0))
    exact = forward(make, coder.weights, x, Selector())
    selector = Selector(precision)  # type: ignore[arg-type]
    quick = forward(make, coder.weights, x, selector)
    ours, theirs = (_as_dense(f.form, f.values, 900) for f in (quick, exact))
    both = (ours != 0) & (theirs != 0)
    assert int(both.sum()) >= 0.999 * int((theirs != 0).sum())
    assert int((ours != 0).sum()) == int((theirs != 0).sum())
    torch.testing.assert_close(ours[both], theirs[both])
    assert selector.precision == precision and selector.energy > 0.9999


def test_estimates_that_miss_too_much_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ESTIMATED_WEIGHTS", 1)
    monkeypatch.setattr(products, "ESTIMATED_ROWS", 1)
    make = Architecture(64, 2048, activation="topk", k=8)
    coder = SAE(make)
    x = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    x[:, 0] *= 1e4  # one huge direction takes all of the 7 bits; it is the same for every latent
    with torch.no_grad():
        coder.weights["W_enc"][:, 0] = 0
    selector = Selector("int8")
    found = forward(make, coder.weights, x, selector)
    assert selector.precision == "float32" and selector.energy < 0.9
    torch.testing.assert_close(found.outputs, dense.outputs(coder, x)[1])


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_estimates_are_the_product_but_for_rounding(precision: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, encoder = (torch.randn(n, 96, generator=generator) for n in (20, 256))
    bias = torch.randn(256, generator=generator)
    estimate = estimator(precision, encoder, bias)  # type: ignore[arg-type]
    assert estimate is not None
    error = estimate(x).float() - (x @ encoder.T + bias)
    assert error.std() < 0.03 * 96**0.5


def test_without_such_products_the_choice_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "ESTIMATED_WEIGHTS", 1)
    monkeypatch.setattr(ByteProduct, "of", staticmethod(lambda *_: None))
    make = Architecture(64, 2048, activation="topk", k=8)
    coder = SAE(make)
    x = torch.randn(900, 64, generator=torch.Generator().manual_seed(0))
    assert fastest_precision.__wrapped__("cpu") != "int8"
    found = forward(make, coder.weights, x, Selector("int8"))
    torch.testing.assert_close(found.outputs, forward(make, coder.weights, x, Selector()).outputs)


def test_weights_that_have_no_estimate_are_left_to_float32() -> None:
    assert estimator("int8", torch.zeros(8, 4), torch.zeros(8)) is None
    assert estimator("int8", torch.full((8, 4), torch.nan), torch.zeros(8)) is None
    assert estimator("float32", torch.ones(8, 4), torch.zeros(8)) is None
    assert fastest_precision("cpu") in ("float32", "bfloat16", "int8")


def test_straight_through_gradients_by_hand() -> None:
    values = torch.tensor([0.2, 0.51, 0.56, 0.9], requires_grad=True)
    threshold = torch.tensor(0.53, requires_grad=True)
    spread = threshold.expand(4)
    assert jump(values, spread, 0.1).tolist() == pytest.approx([0, 0, 0.56, 0.9])
    jump(values, spread, 0.1).sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0, 0, 1, 1]
    assert threshold.grad is not None
    assert float(threshold.grad) == pytest.approx(-2 * 0.53 / 0.1)
    threshold.grad = None
    step(values, threshold.expand(4), 0.1).sum().backward()
    assert float(threshold.grad) == pytest.approx(-2 / 0.1)
