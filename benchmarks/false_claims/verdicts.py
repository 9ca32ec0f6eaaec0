"""How often the whole verdict, run as users run it, reaches a grade where there is nothing.

Twins stand for models without mechanisms, with the gate switched off; behaviors with targets
exchanged in a random half stand for tasks without meaning. Planted circuits stand beside: a rate of
0 would say nothing of rules that no circuit can pass.

Every judged case has nulls of its own, at least 20 twins and 20 permutations drawn with a seed of
its own from the very model that is judged; a judged twin's nulls are twins of that twin. Nothing is
shared between cases, so that they are independent given the models. It costs little, because the
nulls are searched only once sufficiency has passed, and up to the first twin that does as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

from benchmarks.false_claims.counting import Ledger, Row, line, mean_seconds, rate
from benchmarks.false_claims.material import CODE, COMPILED, NAMES, planted, specimen
from microtome.behaviors.check import check
from microtome.circuits.judging.briefly import BriefVerdict, brief_verdict
from microtome.circuits.results import Level
from microtome.circuits.verdict import GRADES

FINDERS: dict[Level, str] = {"node": "attribution", "edge": "eap-ig"}
"""The finder of each level: the usual one."""

TWIN = 100_000
"""Added to a case's number for the seed of the judged twin, which none of its nulls has."""

EVERY_CODE = 25
"""Every which twin is one of the code model, which takes thirty times as long."""

Cases = Iterator[tuple[str, Callable[[], Row]]]


def table(ledger: Ledger, count: int) -> tuple[str, list[Row]]:
    """Return the table and its rows.

    Args:
        ledger: What is known already.
        count: Twins at node level; a tenth of them at edge level and of permuted behaviors.
    """
    few = max(count // 10, 1)
    groups = (
        ("twins, gate off: heads and MLPs", _twins(count, "node")),
        ("twins, gate off: edges", _twins(few, "edge")),
        ("permuted targets, gate on", _permuted(few, gated=True)),
        ("permuted targets, gate off", _permuted(few, gated=False)),
        ("planted, the true heads and MLPs", _planted("node", given=True)),
        ("planted, the true edges", _planted("edge", given=True)),
        ("planted, found by attribution: heads and MLPs", _planted("node", given=False)),
        ("planted, found by eap-ig: edges", _planted("edge", given=False)),
    )
    lines = [line("verdicts", "reach a grade (exact interval)", 0)[:-7] + "  CPU s"]
    found: list[Row] = []
    for label, cases in groups:
        rows = ledger.run(cases)
        found += rows
        reached = [r for r in rows if r["grade"] != GRADES[-1]]
        lines.append(line(label, rate(len(reached), len(rows)), mean_seconds(rows)))
        lines += _details(rows, reached, true=label.startswith("planted"))
    return "\n".join(lines) + "\n", found


def _details(rows: list[Row], reached: list[Row], *, true: bool) -> list[str]:
    """Return which rules stopped the cases, and the cases that speak against the rules."""
    stopped = Counter(r["failed"][0] for r in rows if r["failed"])
    lines = []
    if stopped:
        lines.append(
            "      stopped by " + ", ".join(f"{n} ({c})" for n, c in stopped.most_common())
        )
    if true:
        grades = Counter(r["grade"] for r in rows)
        lines.append("      " + ", ".join(f"{g}: {c}" for g, c in grades.most_common()))
    else:
        lines += [f"      {r['case']}: {r['grade']}, {r['parts']} of {r['of']}" for r in reached]
    return lines


def _twins(count: int, level: Level) -> Cases:
    for number in range(count):
        last = number % EVERY_CODE == EVERY_CODE - 1 and level == "node"
        name = CODE if last else NAMES[number % len(NAMES)]
        yield f"verdict/twin/{level}/{name}/{number}", partial(_twin, name, level, number)


def _twin(name: str, level: Level, number: int) -> Row:
    model, behavior = specimen(name, number)
    examples = behavior.prepare(model)
    with model.twin(TWIN + number) as twin:
        return _row(
            brief_verdict(twin, examples, FINDERS[level], metric=behavior.metric, seed=number)
        )


def _permuted(count: int, *, gated: bool) -> Cases:
    for number in range(count):
        name = NAMES[number % len(NAMES)]
        way = "on" if gated else "off"
        yield f"verdict/permuted/{way}/{name}/{number}", partial(_meaningless, name, number, gated)


def _meaningless(name: str, number: int, gated: bool) -> Row:
    model, behavior = specimen(name, number)
    behavior = behavior.shuffle(number)
    examples = behavior.prepare(model)
    gate = check(model, behavior, seed=number, examples=examples) if gated else None
    return _row(brief_verdict(model, examples, FINDERS["node"], gate=gate, seed=number))


def _planted(level: Level, *, given: bool) -> Cases:
    for seed in range(COMPILED if given and level == "node" else 1):
        for name in NAMES:
            way = "true" if given else "found"
            yield f"verdict/{way}/{level}/{name}/{seed}", partial(_true, name, level, seed, given)


def _true(name: str, level: Level, seed: int, given: bool) -> Row:
    one = planted(name, seed)
    circuit = one.circuit(level=level) if given else None
    examples = one.behavior.prepare(one.model)
    gate = check(one.model, one.behavior, seed=seed, examples=examples)
    return _row(
        brief_verdict(one.model, examples, FINDERS[level], circuit=circuit, gate=gate, seed=seed)
    )


def _row(found: BriefVerdict) -> Row:
    f = found.evaluation.faithfulness
    return {
        "grade": found.verdict.grade,
        "parts": len(found.circuit.parts),
        "of": len(found.circuit.universe),
        "faithfulness": f.to_dict(),
        "failed": [
            r["name"]
            for r in found.verdict.rules
            if r["outcome"] == "fail" and r["name"] not in ("necessary", "stable")
        ],
    }
