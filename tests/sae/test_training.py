"""Training: what a finished coder is, in every make, and what keeps it well."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from tests.sae import dense
from torch import Tensor

from microtome.errors import ConfigError, UnknownNameError
from microtome.sae import SAE, ActivationStore, Architecture, Config, train
from microtome.sae import coder as coder_module
from microtome.sae.coder import reach_mask
from microtome.sae.config import PENALTIES, Asked
from microtome.sae.dead import DeadCounter, resample
from microtome.sae.losses import aux_loss, loss
from microtome.sae.metrics import Tally
from microtome.sae.optimization import Optimizer
from microtome.sae.passing import forward
from microtome.sae.selecting.estimation import fastest_precision
from microtome.sae.selecting.selection import Selector


def rows(count: int = 4000, width: int = 24, truths: int = 48) -> tuple[Tensor, Tensor]:
    """Rows that a few of some unit directions make up, off center and larger than 1."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(truths, width, generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)
    on = torch.rand(count, truths, generator=generator) < 0.06
    sizes = 5 * (1 + 0.25 * torch.randn(count, truths, generator=generator)).abs()
    return (on * sizes) @ directions + 2, directions


def fvu(target: Tensor, output: Tensor) -> float:
    error = (target - output).double().square().sum()
    return (error / (target - target.mean(0)).double().square().sum()).item()


WAYS: dict[str, dict[str, Any]] = {
    "topk": {"activation": "topk", "k": 4},
    "batchtopk": {"k": 4},
    "abstopk": {"activation": "abstopk", "k": 4},
    "relu": {"activation": "relu", "sparsity": 0.5},
    "gated": {"activation": "gated"},
    "jumprelu": {"activation": "jumprelu", "sparsity": 0.3},
    "jumprelu target": {"activation": "jumprelu", "penalty": "target", "target_l0": 4.0},
    "jumprelu tanh": {"activation": "jumprelu", "penalty": "tanh", "sparsity": 0.3},
    "prefixes": {"k": 4, "prefixes": (24, 96)},
    "tied": {"k": 4, "encoder": "tied"},
    "kronecker": {"k": 4, "encoder": "kronecker", "kronecker": (24, 2, 2)},
    "skip": {"k": 4, "skip": True},
}


@pytest.mark.parametrize("name", WAYS)
def test_a_trained_coder_reconstructs_the_rows_as_they_are(name: str) -> None:
    x, _ = rows()
    config = Config(d_sae=96, steps=150, batch_size=256, eval_rows=2048, **WAYS[name])
    run = train(ActivationStore.of(x), config)
    with torch.no_grad():
        found = fvu(x, run(x))
        l0 = (run.encode(x) != 0).sum(1).double().mean().item()
    assert found == pytest.approx(run.summary.fvu, rel=0.1)
    assert l0 == pytest.approx(run.summary.l0, rel=0.1)
    assert found < 0.7
    if config.k:
        assert l0 == pytest.approx(config.k, rel=0.06)
    norms = run.weights["W_dec"].detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(96), atol=1e-5, rtol=0)
    history = run.summary.history
    assert history["fvu"].iloc[-1] < 0.8 * history["fvu"].iloc[0]
    assert history["step"].iloc[0] == 1 and history["step"].iloc[-1] == 150


def test_the_truth_is_found() -> None:
    x, truths = rows()
    config = Config(d_sae=96, activation="topk", k=4, steps=400, batch_size=256, eval_rows=256)
    run = train(ActivationStore.of(x), config)
    similar = (truths @ run.weights["W_dec"].detach().T).amax(1)
    start = (truths @ SAE(run.architecture).weights["W_dec"].detach().T).amax(1)
    assert similar.mean() > 0.9 > 0.65 > start.mean()


@pytest.mark.parametrize("steps", [3, 12, 40])
def test_the_threshold_keeps_k_latents_however_short_the_run(steps: int) -> None:
    x, _ = rows()
    run = train(ActivationStore.of(x), Config(d_sae=96, k=4, steps=steps, batch_size=256))
    l0 = (run.encode(x) != 0).sum(1).double().mean().item()
    assert l0 == pytest.approx(4, rel=0.06)


def pair() -> dict[str, Tensor]:
    x, _ = rows()
    turned = torch.randn(24, 10, generator=torch.Generator().manual_seed(4))
    return {"a": x, "b": 30 * (x @ turned).relu()}


def test_a_transcoder_maps_one_site_to_another() -> None:
    data = pair()
    config = Config(d_sae=96, k=6, steps=300, batch_size=256, skip=True)
    run = train(ActivationStore.of(data), config, sources=["a"], targets=["b"])
    make = run.architecture
    assert (make.d_in, make.d_out, make.center) == (24, 10, False)
    assert run.origin.sources == ("a",) and run.origin.targets == ("b",)
    with torch.no_grad():
        found = fvu(data["b"], run(data["a"]))
    assert found == pytest.approx(run.summary.fvu, rel=0.1) and found < 0.3


@pytest.mark.parametrize("encoder", ["dense", "tied"])
def test_every_target_of_a_crosscoder_counts_alike(encoder: str) -> None:
    data = pair()  # the second site is two orders of magnitude larger
    config = Config(d_sae=136, k=6, steps=300, batch_size=256, encoder=encoder)  # type: ignore[arg-type]
    run = train(ActivationStore.of(data), config)
    both = torch.cat([data["a"], data["b"]], 1)
    with torch.no_grad():
        output = run(both)
    parts = [fvu(both[:, part], output[:, part]) for part in run.architecture.target_slices]
    if encoder == "dense":
        assert max(parts) < 0.6
    else:  # one factor for both: the small site is left out
        assert parts[1] < 0.6


def test_latents_of_a_cross_layer_coder_write_later_targets_only() -> None:
    x, _ = rows()
    data = {"a": x, "b": x + 0.5 * x.roll(1, 1)}
    config = Config(d_sae=64, k=6, steps=60, batch_size=256, reach="later", center=False)
    run = train(ActivationStore.of(data), config)
    mask = reach_mask(run.architecture)
    assert mask is not None and not run.weights["W_dec"].detach()[mask == 0].any()
    with torch.no_grad():
        both = torch.cat([data["a"], data["b"]], 1)
        assert fvu(both, run(both)) == pytest.approx(run.summary.fvu, rel=0.15)


@pytest.mark.parametrize("reach", ["own", "later"])
def test_a_skip_connection_reaches_what_its_latents_reach(reach: str) -> None:
    x, _ = rows(400)
    config = Config(d_sae=32, k=4, steps=5, batch_size=64, reach=reach, skip=True, center=False)
    run = train(ActivationStore.of({"a": x, "b": x + 0.5 * x.roll(1, 1)}), config)
    (a, b), skip = run.architecture.source_slices, run.weights["W_skip"].detach()
    assert skip[a, a].any() and skip[b, b].any() and not skip[a, b].any()
    assert bool(skip[b, a].any()) == (reach == "later")


def test_the_same_seed_is_the_same_coder_and_another_is_not() -> None:
    x, _ = rows(800)
    runs = [
        train(ActivationStore.of(x), Config(d_sae=48, k=4, steps=8, batch_size=64, seed=seed))
        for seed in (1, 1, 2)
    ]
    decoders = [run.weights["W_dec"] for run in runs]
    assert torch.equal(decoders[0], decoders[1]) and not torch.equal(decoders[0], decoders[2])


def test_an_early_look_is_given() -> None:
    x, _ = rows(800)
    seen: list[Mapping[str, Any]] = []
    train(ActivationStore.of(x), Config(d_sae=48, k=4, steps=200, batch_size=64), watch=seen.append)
    assert seen[0]["step"] == 2 and len(seen) == 100
    assert {"fvu", "l0", "dead_share", "seconds_left", "lr", "loss"} <= set(seen[0])
    assert seen[-1]["seconds_left"] == 0 and seen[0]["l0"] == pytest.approx(4)


def test_aux_gradients_reach_dead_latents_alone() -> None:
    make = Architecture(6, 12, activation="topk", k=2)
    coder = dense.noisy(make)
    x = dense.rows(make, 40)
    dead = torch.tensor([3, 7, 8, 11])
    passed = forward(make, coder.weights, x, Selector())
    errors = (x - passed.outputs[-1]).detach()
    value = aux_loss(make, coder.weights, x, errors, dead, aux_k=2)
    pre = ((x - coder.weights["b_dec"]) @ coder.weights["W_enc"].T + coder.weights["b_enc"])[
        :, dead
    ]
    top = pre.relu().topk(2, dim=1)
    latents = torch.zeros_like(pre).scatter(1, top.indices, top.values)
    left = (errors - latents @ coder.weights["W_dec"][dead]).square().sum()
    torch.testing.assert_close(value, left / (errors - errors.mean(0)).square().sum())
    value.backward()
    for name in ("W_enc", "W_dec", "b_enc"):
        gradient = coder.weights[name].grad
        assert gradient is not None
        moved = gradient.reshape(12, -1).any(1).nonzero().flatten()
        assert moved.tolist() == dead.tolist(), name
    assert coder.weights["b_dec"].grad is None

    def of(encoder: Tensor, decoder: Tensor) -> Tensor:
        weights = {**coder.weights, "W_enc": encoder, "W_dec": decoder}
        return aux_loss(make, weights, x, errors, dead, aux_k=2)

    leaves = [coder.weights[n].detach().clone().requires_grad_() for n in ("W_enc", "W_dec")]
    assert torch.autograd.gradcheck(of, leaves)


@pytest.mark.parametrize("name", ["topk later", "topk kronecker", "topk tied", "gated"])
def test_aux_works_in_every_make(name: str) -> None:
    make = dense.makes()[name]
    coder = dense.noisy(make)
    x = dense.rows(make, 40)
    errors = torch.randn(40, make.d_out, dtype=torch.float64)
    value = aux_loss(make, coder.weights, x, errors, torch.tensor([1, 4, 9]), aux_k=2)
    value.backward()
    assert torch.isfinite(value) and coder.weights["W_dec"].grad is not None
    assert set(coder.weights["W_dec"].grad.any(1).nonzero().flatten().tolist()) <= {1, 4, 9}


@pytest.mark.parametrize("name", ["topk", "topk tied", "gated", "topk later", "topk kronecker"])
def test_gradients_of_dead_rows_are_those_of_whole_matrices(name: str) -> None:
    make = dense.makes()[name]
    config = Config(activation=make.activation, aux=0.5, aux_k=2)
    x, dead = dense.rows(make, 40), torch.tensor([1, 4, 9])
    found = []
    for whole in (True, False):
        coder = dense.noisy(make)
        weights = coder.weights
        passed = forward(make, weights, x, Selector())
        if whole:
            part = loss(make, config, weights, passed, x, x, sparsity=1.0)
            aux = aux_loss(make, weights, x, part.errors, dead, aux_k=2)
            (part.total + 0.5 * aux).backward()
        else:
            loss(make, config, weights, passed, x, x, sparsity=1.0, dead=dead).backward(weights)
        found.append({n: w.grad for n, w in weights.items() if w.grad is not None})
    assert found[0].keys() == found[1].keys()
    for weight, gradient in found[0].items():
        torch.testing.assert_close(found[1][weight], gradient)


@pytest.mark.parametrize("way", ["none", "aux", "resampled"])
def test_aux_and_resampling_bring_dead_latents_back(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the encoder rows begin too small to be among the largest ever."""
    drawn = coder_module.initial_weights

    def crippled(make: Architecture, seed: int) -> dict[str, Tensor]:
        weights = drawn(make, seed)
        weights["W_enc"][48:] *= 0.02
        return weights

    monkeypatch.setattr(coder_module, "initial_weights", crippled)
    changes: dict[str, Any] = {
        "none": {"aux": 0.0}, "aux": {}, "resampled": {"aux": 0.0, "resample_every": 50},
    }[way]  # fmt: skip
    config = Config(
        d_sae=96, activation="topk", k=4, steps=200, batch_size=256, dead_after=2560, **changes
    )
    x, _ = rows()
    sae = train(ActivationStore.of(x), config)
    alive = (sae.encode(x) != 0).any(0)[48:].double().mean().item()
    assert alive == 0 if way == "none" else alive > 0.3


def test_resampled_latents_start_fresh() -> None:
    coder = SAE(Architecture(6, 12, activation="topk", k=2))
    config = Config(activation="topk")
    optimizer, counter = Optimizer(coder, config), DeadCounter(12, 100)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    forward(coder.architecture, coder.weights, x, Selector()).outputs.square().sum().backward()
    optimizer.step(1e-3)
    counter.add(torch.arange(12) < 9, 100)
    errors = torch.zeros(50, 6)
    errors[7, 2] = 3.0
    before = coder.weights["W_enc"].detach().clone()
    assert resample(coder, optimizer, counter, x, errors, seed=0, step=1) == 3
    assert coder.weights["W_dec"].detach()[9:].tolist() == [[0, 0, 1, 0, 0, 0]] * 3
    expected = torch.nn.functional.normalize(x[7] - coder.weights["b_dec"], dim=0)
    size = before[:9].norm(dim=1).mean()
    torch.testing.assert_close(coder.weights["W_enc"][9].detach(), (size * expected).detach())
    assert torch.equal(coder.weights["W_enc"][:9], before[:9])
    assert not optimizer.state()["W_enc.exp_avg"][9:].any()
    assert optimizer.state()["W_enc.exp_avg"][:9].any()
    assert not len(counter.dead())


@pytest.mark.parametrize("asked", ["float32", "bfloat16", "auto"])
def test_the_summary_says_what_proposed(asked: Asked) -> None:
    x, _ = rows(200)
    run = train(ActivationStore.of(x), Config(d_sae=24, steps=1, precision=asked))
    expected = fastest_precision("cpu") if asked == "auto" else asked
    assert run.summary.precision == expected


@pytest.mark.parametrize(
    "changes,norm",
    [
        ({"activation": "topk"}, 0.1),
        ({"activation": "batchtopk"}, 0.1),
        ({"activation": "topk", "encoder": "tied"}, 1.0),
        ({"activation": "relu"}, 1.0),
    ],
)
def test_encoders_begin_small_where_latents_are_counted(
    changes: dict[str, Any], norm: float
) -> None:
    x, _ = rows()
    config = Config(d_sae=24, steps=1, lr=1e-12, **changes)
    run = train(ActivationStore.of(x), config)
    found = run.weights["W_dec" if "encoder" in changes else "W_enc"].norm(dim=1)
    torch.testing.assert_close(found, torch.full((24,), norm), rtol=1e-4, atol=0)


def test_parallel_gradients_are_removed_and_norms_cut() -> None:
    coder = SAE(Architecture(6, 12, activation="topk", k=12))
    config = Config(activation="topk", clip=0.5)
    x = 100 * torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    optimizer = Optimizer(coder, config)
    before = coder.weights["W_dec"].detach().clone()
    forward(coder.architecture, coder.weights, x, Selector()).outputs.square().sum().backward()
    assert optimizer.step(1e-3) > 0.5
    averages = {n: v for n, v in optimizer.state().items() if n.endswith(".exp_avg")}
    seen = {n: v / (1 - config.betas[0]) for n, v in averages.items()}  # after the first step
    along = (seen["W_dec.exp_avg"] * before).sum(1)
    torch.testing.assert_close(along, torch.zeros(12), atol=1e-6, rtol=0)
    total = torch.stack([g.square().sum() for g in seen.values()]).sum().sqrt()
    torch.testing.assert_close(total, torch.tensor(0.5))


def test_metrics_are_summed_in_double_precision() -> None:
    tally = Tally()
    targets = torch.full((1, 1), 1.0)
    tally.squared_error = tally.variance = 2.0**26
    for _ in range(8):
        tally.add(targets, targets, torch.zeros(1))
        tally.add_active(targets)
    assert tally.squared_error == 2.0**26 + 8 and tally.fvu == 1 and tally.l0 == 1


def test_matryoshka_errors_add_up() -> None:
    make = dense.makes()["topk prefixes"]
    coder = dense.noisy(make)
    x = dense.rows(make)
    passed = forward(make, coder.weights, x, Selector())
    config = Config(activation="topk", prefixes=make.prefixes, aux=0.0)
    found = loss(make, config, coder.weights, passed, x, x, sparsity=0)
    _, outputs = dense.outputs(coder, x)
    expected = sum(((x - output) ** 2).mean() for output in outputs)
    torch.testing.assert_close(found.total, expected)
    torch.testing.assert_close(found.errors, (x - outputs[-1]).detach())


@pytest.mark.parametrize(
    "kind,penalty", [(kind, p) for kind, all_ in PENALTIES.items() for p in all_]
)
def test_penalties_by_hand(kind: str, penalty: str) -> None:
    make = dense.makes()[kind]
    coder = dense.noisy(make)
    x = dense.rows(make)
    config = Config(activation=kind, penalty=penalty, target_l0=3.0, aux=0.0)  # type: ignore[arg-type]
    passed = forward(make, coder.weights, x, Selector(), bandwidth=config.bandwidth)
    found = loss(make, config, coder.weights, passed, x, x, sparsity=2.0)
    latents, _ = dense.outputs(coder, x)
    l0 = (latents != 0).double().sum(1).mean()
    if kind == "gated":
        pre = (x - coder.weights["b_dec"]) @ coder.weights["W_enc"].T
        gate = (pre + coder.weights["b_gate"]).relu()
        expected = gate.sum(1).mean() * 2 / 6
        output = gate @ coder.weights["W_dec"] + coder.weights["b_dec"]
        torch.testing.assert_close(found.parts["gate"], ((x - output) ** 2).mean().detach())
    else:
        expected = {
            "l1": latents.sum(1).mean() * 2 / 6,
            "l0": l0 * 2 / 6,
            "tanh": torch.tanh(4 * latents).sum(1).mean() * 2 / 6,
            "target": 2 * (l0 / 3 - 1) ** 2,
        }[penalty]
    torch.testing.assert_close(found.parts["penalty"], expected.detach())


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"activation": "topkk"}, "activation is 'topkk'.*nearest: topk"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"steps": 0}, "steps is 0; expected a whole number from 1"),
        ({"decay": 1.5}, "decay is 1.5; expected a number from 0 to 1"),
        ({"penalty": "l0"}, "penalty is 'l0'; with activation 'batchtopk' expected none"),
        ({"activation": "relu", "penalty": "l0"}, "expected one of l1"),
        ({"encoder": "tied", "resample_every": 5}, "cannot be resampled"),
        ({"betas": (0.9, 1.0)}, "betas are"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"precision": "float16"}, "precision is 'float16'"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config(**changes)


def test_the_learning_rate_fits_the_length_of_the_run() -> None:
    config = Config()
    assert config.peak_lr(2**14, 100_000) == config.peak_lr(2**14, 10**7) == pytest.approx(2e-4)
    assert config.peak_lr(2**14, 25_000) == pytest.approx(4e-4)
    assert config.peak_lr(2**13, 100) == 5e-3
    rates = [config.lr_at(step, 400, 1.0) for step in range(400)]
    assert rates[0] == 1 / 20 and rates[19] == rates[319] == 1.0
    assert 0 < rates[399] < 0.02 and all(a > b for a, b in itertools.pairwise(rates[320:]))
    again = Config(resample_every=50)
    assert [step for step in range(1, 401) if again.resamples(step, 400)] == list(
        range(50, 321, 50)
    )
    assert config.planned_steps(10) == 1000 and config.planned_steps(2048 * 3000) == 3000
    assert config.dead_rows(400) == 20 * 2048 and config.dead_rows(10**6) == 10_000_000


def test_sites_that_do_not_exist_are_named() -> None:
    with pytest.raises(UnknownNameError, match="c"):
        train(ActivationStore.of(pair()), Config(k=4), sources=["c"])
    with pytest.raises(ConfigError, match="at least one site"):
        train(ActivationStore.of(pair()), Config(k=4), sources=[])
