"""Every rule on and off, over families and sites, against one forward pass for each run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.small import code_model, interruptible
from tests.sweeps.test_sweeps import pairs

from microtome.behaviors import Example, Examples, quote_closing
from microtome.errors import FormatError
from microtome.models.families import build
from microtome.sweeps import plan, sweep
from microtome.sweeps.cells import SWEPT
from microtome.sweeps.rules import NEEDS, RULES, Rule
from microtome.sweeps.schedule import _buckets
from microtome.tracing.model import Model
from microtome.tracing.opening import load

FAMILIES = (
    "gpt2", "gpt_neo", "gptj", "opt", "bloom-plain", "falcon", "gpt_neox", "codegen", "mpt",
    "gpt_bigcode", "llama", "mistral", "mixtral", "gemma", "gemma2", "gemma3_text", "qwen2",
    "qwen3", "qwen3_moe", "phi", "phi3", "olmo2", "cohere2", "granite", "stablelm", "starcoder2",
    "gpt_oss", "deepseek_v3", "nemotron", "jamba", "bert", "roberta", "modernbert",
)  # fmt: skip


def largest(model: Model, examples: Examples, site: str, **settings: object) -> float:
    """Largest difference from the naive way, as a share of the values."""
    slow = sweep(model, examples, site, rules=(), **settings)  # type: ignore[arg-type]
    worst = 0.0
    for rules in subsets():
        fast = sweep(model, examples, site, rules=rules, **settings)  # type: ignore[arg-type]
        assert fast.certificate["passed"], (rules, fast.certificate)
        worst = max(worst, float(np.abs(fast.values - slow.values).max()))
    return worst / max(1.0, float(np.abs(slow.values).max()))


def subsets() -> list[tuple[Rule, ...]]:
    """All rules, and all without each one and what builds on it."""
    found: list[tuple[Rule, ...]] = [RULES]
    for left_out in RULES[1:]:
        gone = {left_out}
        for rule in RULES:
            if gone & set(NEEDS.get(rule, ())):
                gone.add(rule)
        found.append(tuple(rule for rule in RULES if rule not in gone))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_rule_on_and_off_in_every_family(family: str) -> None:
    model = load(build(family))
    number = FAMILIES.index(family)
    operation = ("patch", "zero", "mean")[number % 3]
    base = ("corrupt", "clean")[number % 2]
    assert largest(model, pairs((9, 9)), "resid_pre", operation=operation, base=base) < 2e-5
    heads = ("attn.z", "mlp.out", "attn.out")[number % 3]
    assert largest(model, pairs((9, 9)), heads, operation="patch", base=base) < 2e-5


@pytest.mark.parametrize("site", [s for s in SWEPT if s != "mlp.act"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_site(family: str, site: str) -> None:
    model = load(build(family))
    for operation in ("patch", "zero", "mean"):
        assert largest(model, pairs((7, 7)), site, operation=operation) < 2e-5


def test_neurons_by_every_rule() -> None:
    model = load(build("llama"))
    assert largest(model, pairs((7, 7)), "mlp.act", neurons=[0, 3], over="neuron") < 2e-5


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "mixtral"])
def test_answers_of_several_tokens(family: str) -> None:
    rows = []
    for n in range(3):
        clean = (5 + n, 9, 20, 30)
        rows.append(
            Example(
                n,
                clean,
                (5 + n, 60, 20, 30),
                ((11, 12), (13, 14)),
                ((15, 16, 17),),
                f"c{n}",
                "t",
                "test",
                {},
                {},
                "",
            )  # fmt: skip
        )
    examples = Examples(tuple(rows))
    model = load(build(family))
    metric = "sequence_log_probability"
    assert largest(model, examples, "resid_pre", metric=metric) < 2e-5
    found = sweep(model, examples, metric=metric)
    np.testing.assert_allclose(found.values.sel(layer=0, pos=1), found.source, atol=1e-5)


def test_known_cells_are_filled_and_exact() -> None:
    model = load(build("gpt2"))
    planned = plan(model, pairs((8, 8)), "resid_pre")
    group = next(planned.groups())
    # nothing can change before the first difference at position 1, nor elsewhere in block 0
    assert not group.moved[[c.place == 0 for c in planned.cells]].any()
    first = np.array([c.layer == 0 and c.place != 1 for c in planned.cells])
    assert not group.moved[first].any()
    found = planned.execute()
    for layer in found.values["layer"]:
        np.testing.assert_array_equal(found.values.sel(pos=0, layer=layer), found.base)


def test_a_wave_keeps_within_the_budget() -> None:
    planned = plan(load(build("gpt2")), pairs((9, 9, 9)), memory_mb=0.2)
    group = next(planned.groups())
    sizes = [int((group.width - w.firsts).sum()) for w in planned.waves(group)]
    assert len(sizes) > 1 and max(sizes) <= planned.tokens
    whole = plan(load(build("gpt2")), pairs((9, 9, 9)))
    np.testing.assert_allclose(planned.execute().values, whole.execute().values, atol=1e-6)


def test_buckets_cost_no_more_than_any_other_cuts() -> None:
    firsts = np.sort(np.random.default_rng(0).integers(0, 12, 40))
    parts = _buckets(np.arange(40), firsts, 12)
    assert np.concatenate(parts).tolist() == list(range(40))

    def cost(pieces: list[np.ndarray]) -> float:
        return sum(len(p) * (12 - firsts[p].min()) + 64 for p in pieces)

    starts = np.unique(firsts)
    for cuts in range(2 ** (len(starts) - 1)):
        edges = [starts[i + 1] for i in range(len(starts) - 1) if cuts >> i & 1]
        other = np.split(np.arange(40), np.searchsorted(firsts, edges))
        assert cost(parts) <= cost(other)


KILLED = """
import sys, time
from tests.small import code_model
from microtome.behaviors import quote_closing
from microtome.sweeps import checkpoint, execution, plan, plans
checkpoint.EVERY = 0.0
honest, count = execution.run_wave, 0

def slowly(*args):
    global count
    count += 1
    if count == 6:
        print("half", flush=True)
        time.sleep(60)
    return honest(*args)

plans.run_wave = slowly
planned = plan(code_model(), quote_closing(40), over="role", memory_mb=2.0)
planned.execute(resume=sys.argv[1])
"""


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_sweep_goes_on_and_gives_the_same(tmp_path: Path, number: int) -> None:
    kept = tmp_path / "sweep.safetensors"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(kept)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=interruptible,
        cwd=Path(__file__).parents[2],
    )
    with process:
        assert process.stdout is not None and process.stdout.readline().strip() == "half"
        process.send_signal(number)
    assert kept.exists()
    planned = plan(code_model(), quote_closing(40), over="role", memory_mb=2.0)
    whole = planned.execute()
    steps: list[int] = []
    again = planned.execute(Steps(steps), resume=kept)
    np.testing.assert_array_equal(again.values, whole.values)
    assert steps and not kept.exists()


class Steps:
    """Keeps what a sweep reports."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def step(self, done: int, total: int, label: str) -> None:
        self.steps.append(done)


def test_a_file_of_another_sweep_is_refused(tmp_path: Path) -> None:
    from microtome.store.arrays import save_arrays

    kept = tmp_path / "sweep.safetensors"
    save_arrays(kept, {"values": np.zeros((3, 12))}, metadata={"sweep": "other"})
    with pytest.raises(FormatError, match="another sweep"):
        plan(load(build("gpt2")), pairs()).execute(resume=kept)
    assert kept.exists()
