"""How often the tests beside the verdict find something where there is nothing.

* ``shi``: the tests of Shi et al. (2024) take the properties that one hopes for as their null
  hypotheses. On the true circuit they should reject at most 5 %; the converse test, which speaks
  for a circuit, should not reject for random circuits of the same make that miss part of the truth.
* ``scrub``: causal scrubbing of claims about the true parts that are false: what they carry is a
  random label of four values. A claim stands if no relabeling recovers as much.
* ``versus``: two random halves of one sample are no two conditions.
* ``names``: twins have no mechanisms, so that any name is false; the false-discovery rate is then
  the share of twins in which any part gets a name.

Where the truth is known, true claims stand beside, to show that something can be found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from benchmarks.false_claims.counting import Ledger, Row, line, mean_seconds, rate
from benchmarks.false_claims.material import CODE, ITEMS, NAMES, compiled, drawn, planted, specimen
from microtome.behaviors import Behavior
from microtome.behaviors.examples import Examples
from microtome.circuits.hypotheses.hypothesis import parse_hypothesis
from microtome.circuits.hypotheses.scrubbing import scrub
from microtome.circuits.hypotheses.second_opinion import LEVEL, second_opinion
from microtome.circuits.judging.contrasts import versus
from microtome.circuits.judging.matching import matched
from microtome.circuits.results import Circuit
from microtome.circuits.taxonomy.naming import name_parts
from microtome.core.seeds import rng

Cases = Iterator[tuple[str, Callable[[], Row]]]
Table = tuple[str, list[Row]]

FROM_WEIGHTS = (
    "previous token", "attention sink", "local", "positional", "duplicate token", "induction",
    "fuzzy induction", "retrieval", "copying", "copy suppression", "composition",
)  # fmt: skip
"""Detectors that need neither a behavior nor a corpus."""


def shi(ledger: Ledger, count: int) -> Table:
    """Return the table of the tests of Shi et al."""
    few = max(count // 10, 1)
    true = ledger.run(_cases("shi/true", few // 2, _shi_true))
    wrong = ledger.run(_cases("shi/random", few, _shi_random))
    lines = [_head("tests of Shi et al. (at 5 %)", "rejected")]
    for key, label in (
        ("equivalence", "true circuits: equivalent to the model"),
        ("independence", "true circuits: the rest is independent"),
        ("needless", "true circuits: every part is needed"),
    ):
        lines.append(_count(label, true, key))
    lines.append(_count("true circuits: not equivalent (wanted)", true, "inequivalence"))
    lines.append(_count("random circuits: not equivalent (false)", wrong, "inequivalence"))
    for key, label in (
        ("equivalence", "random circuits: equivalent (wanted)"),
        ("independence", "random circuits: the rest is independent (wanted)"),
        ("against", "random circuits: any of the three (wanted)"),
    ):
        lines.append(_count(label, wrong, key))
    return "\n".join(lines) + "\n", true + wrong


def scrubbing(ledger: Ledger, count: int) -> Table:
    """Return the table of causal scrubbing."""
    few = max(count // 10, 1)
    false = ledger.run(_cases("scrub/false", few, partial(_scrub, true=False)))
    true = ledger.run(_cases("scrub/true", few // 5, partial(_scrub, true=True)))
    lines = [
        _head("causal scrubbing (p at most 5 %)", "stand"),
        _count("true parts carry a random label (false)", false, "stands"),
        _count("true parts carry the answer (wanted)", true, "stands"),
    ]
    return "\n".join(lines) + "\n", false + true


def contrasts(ledger: Ledger, count: int) -> Table:
    """Return the table of ``versus``."""
    rows = ledger.run(_cases("versus", max(count // 10, 1), _versus))
    lines = [
        _head("versus, two halves of one sample", "found"),
        _count("any part differs (false-discovery rate 5 %)", rows, "parts"),
        _count("the circuits overlap too little (p below 5 %)", rows, "overlap"),
    ]
    return "\n".join(lines) + "\n", rows


def names(ledger: Ledger, count: int) -> Table:
    """Return the table of names."""
    rows = ledger.run(
        (f"names/{CODE}/{number}", partial(_names, number)) for number in range(count // 40 or 1)
    )
    tested = sum(r["tested"] for r in rows)
    lines = [
        _head(f"names on twins of {CODE}", "found"),
        _count("twins in which any part gets a name", rows, "any"),
        line(f"names in all, of {tested} tests", str(sum(r["names"] for r in rows)), 0)[:-7],
    ]
    return "\n".join(lines) + "\n", rows


def _head(left: str, right: str) -> str:
    return line(left, right, 0)[3:-7] + "     CPU s"


def _count(label: str, rows: Sequence[Row], key: str) -> str:
    return line(label, rate(sum(r[key] for r in rows), len(rows)), mean_seconds(rows))


def _cases(kind: str, count: int, make: Callable[[str, int], Row]) -> Cases:
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        yield f"{kind}/{name}/{number}", partial(make, name, number)


def _shi_true(name: str, number: int) -> Row:
    return _opinion(name, number, planted(name, 0).circuit())


def _shi_random(name: str, number: int) -> Row:
    """Test a circuit of the true one's make, or of any nodes, that lacks one of its parts."""
    true, random = planted(name, 0).circuit(), rng(number, "random circuit", name)
    kept = matched(true, random)
    while kept >= true.kept:
        chosen = random.choice(len(true.universe), size=len(true.parts), replace=False)
        kept = frozenset(true.universe[int(i)] for i in chosen)
    parts = tuple(p for p in true.universe if p in kept)
    return _opinion(name, number, Circuit(parts, true.universe, "random"))


def _opinion(name: str, number: int, circuit: Circuit) -> Row:
    made = planted(name, 0)
    behavior = drawn(made.compiled, number)
    test = behavior.prepare(made.model).split("test")
    found = second_opinion(made.model, test, circuit, seed=number)
    row: Row = {
        "equivalence": found.equivalence < LEVEL,
        "inequivalence": found.inequivalence < LEVEL,
        "independence": found.independence < LEVEL,
        "needless": bool(found.needless),
        "clusters": found.clusters,
        "outdoes": found.outdoes,
    }
    return row | {"against": row["equivalence"] or row["independence"] or row["needless"]}


def _scrub(name: str, number: int, *, true: bool) -> Row:
    made = planted(name, 0)
    behavior = drawn(made.compiled, number)
    carries = "answer" if true else 'feature("coin")'
    parts = ", ".join(f'"{p}"' for p in made.circuit().parts)
    hypothesis = parse_hypothesis(f"[claims.circuit]\nparts = [{parts}]\ncarries = '{carries}'\n")
    test = _with_coins(behavior.prepare(made.model).split("test"), number)
    found = scrub(made.model, test, hypothesis, metric="logit_difference", seed=number)
    return {"stands": found.p <= LEVEL, "p": found.p, "recovered": found.recovered.value}


def _with_coins(examples: Examples, seed: int) -> Examples:
    coins = rng(seed, "coins").integers(0, 4, len(examples)).tolist()
    items = (
        replace(e, features={**e.features, "coin": float(c)})
        for e, c in zip(examples, coins, strict=True)
    )
    return Examples(tuple(items), examples.drops, examples.behavior)


def _versus(name: str, number: int) -> Row:
    made = compiled(name, 0)
    whole = drawn(made, number, n=2 * ITEMS)
    a, b = _halves(whole, number)
    found = versus(made.model, a, b, seed=number)
    return {
        "parts": bool(found.differs.any()),
        "overlap": bool(found.overlap_p < LEVEL),
        "least_p": float(found.p.min()),
        "overlap_p": found.overlap_p,
    }


def _halves(behavior: Behavior, seed: int) -> tuple[Behavior, Behavior]:
    """Return two random halves of the clusters of each split."""
    side: dict[str, int] = {}
    for split in ("train", "validation", "test"):
        clusters = sorted({i.cluster for i in behavior.items if i.split == split})
        order = rng(seed, "halves", split).permutation(len(clusters))
        side |= {c: int(n % 2) for c, n in zip(clusters, np.argsort(order), strict=True)}
    a, b = (
        replace(behavior, name=f"half {n}", items=tuple(i for i in behavior.items
                if side[i.cluster] == n))
        for n in (0, 1)
    )  # fmt: skip
    return a, b


def _names(number: int) -> Row:
    model, _ = specimen(CODE, number)
    with model.twin(300_000 + number) as twin:
        found = name_parts(twin, detectors=FROM_WEIGHTS, seed=number)
    labelled = found.labelled
    return {
        "any": len(labelled) > 0,
        "names": len(labelled),
        "tested": len(found.table),
        "what": [f"{r.part}: {r.name}" for r in labelled.itertuples()],
    }
