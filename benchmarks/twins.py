"""False claims: twins of small specimens through steps 2 to 4 with the gate switched off."""

from __future__ import annotations

import os
import time

import torch

from microtome.behaviors import get
from microtome.circuits.finding import find
from microtome.circuits.judging.cutting import cut
from microtome.core.progress import quiet
from microtome.dissection.config import Config
from microtome.dissection.proving import prove
from microtome.tracing.opening import load

COUNT = int(os.environ.get("MICROTOME_TWINS", "200"))
BEHAVIORS = ("quote-closing", "bracket-closing")


def table() -> str:
    """Return how many twins reach a grade, and that a shuffled behavior ends at the gate."""
    torch.set_num_threads(2)
    model = load("python-code")
    reached: list[str] = []
    sufficient = 0
    began = time.perf_counter()
    for number in range(COUNT):
        name = BEHAVIORS[number % len(BEHAVIORS)]
        examples = get(name, n=60, seed=number).prepare(model)
        splits = tuple(examples.split(s) for s in ("train", "validation", "test"))
        config = Config(gate=False, seed=number)
        with model.twin(100_000 + number) as twin:
            scores = find(twin, splits[0])
            circuit, curve = cut(
                twin, splits[1], scores.ranking(), faithfulness=config.faithfulness,
                ablation=config.ablation, metric="logit_difference", reference=splits[0],
                method=scores.method, seed=number,
            )  # fmt: skip
            proof, verdict = prove(
                twin, splits, scores, circuit, curve, None, config=config,
                metric="logit_difference", progress=quiet, thorough=False,
            )  # fmt: skip
        sufficient += proof.nulls is not None
        if verdict.established:
            reached.append(f"twin {number}: {verdict.grade} with {len(circuit.parts)} nodes")
    gate = get("quote-closing", n=200).shuffle(0).check(model)
    lines = [
        f"False claims: {COUNT} twins, gate off, {', '.join(BEHAVIORS)} (60 items each)",
        f"  passed sufficiency and went to the nulls: {sufficient}",
        f"  reached a grade: {len(reached)} ({len(reached) / COUNT:.1%}) {'; '.join(reached)}",
        f"  shuffled answers end at the gate: {not gate.passed} (accuracy {gate.accuracy})",
        f"  {time.perf_counter() - began:.0f} s",
    ]
    return "\n".join(lines) + "\n"
