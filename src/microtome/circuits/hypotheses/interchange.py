"""Interchange interventions: swap what parts carry and compare with what a hypothesis predicts.

The parts of a claim take the values that they have on another prompt. The hypothesis predicts the
answer from its variables, the carried one set to the other prompt's value (Geiger et al. 2021).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.circuits.hypotheses.hypothesis import Claim, Hypothesis
from microtome.circuits.hypotheses.scrubbed_runs import (
    Group,
    Pool,
    freeze,
    put,
    run,
    site_of,
    sites_of,
    span,
)
from microtome.circuits.judging.matching import matched
from microtome.circuits.results import Circuit
from microtome.core.progress import Progress, quiet
from microtome.core.provenance import Provenance, collect
from microtome.core.seeds import rng
from microtome.core.stats import Interval, cluster_bootstrap, permutation_p
from microtome.errors import ConfigError, DataError
from microtome.store.results import Result
from microtome.tracing.components import component_names
from microtome.tracing.sites import at

if TYPE_CHECKING:
    import pandas as pd

    from microtome.behaviors.examples import Examples
    from microtome.tracing.model import Model

SOURCES = 4
"""Other prompts that every item is paired with."""

RANDOM_PARTS = 20
"""Random parts of the same make that are swapped for comparison."""


@dataclass(frozen=True, eq=False)
class ClaimInterchange(Result):
    """Interchange of one claim's parts.

    Attributes:
        claim: Its name.
        parts: Its parts.
        pairs: Pairs of prompts on which the swap changes the prediction.
        accuracy: Share of them on which the model then says what is predicted; NaN without pairs.
        chance: Share on which it would if what it says and what is predicted were independent.
        unswapped: Share on which the model says it without any swap.
        unchanged: On pairs whose prediction stays the same, share on which the model says it.
        random: The accuracy when random parts of the same make are swapped ``[draw]``.
        p: Share of random parts that do as well, the claim's counted.
    """

    claim: str
    parts: tuple[str, ...]
    pairs: int
    accuracy: Interval
    chance: float
    unswapped: float
    unchanged: float
    random: np.ndarray
    p: float


@dataclass(frozen=True, eq=False)
class Interchange(Result):
    """Interchange accuracy of every claim that carries a variable.

    Attributes:
        hypothesis: Its name.
        claims: One entry for each claim that was tested.
        untested: Claims that carry no plain variable, which cannot be set.
        answers: Tokens among which the model's answer is read off.
        provenance: Model, seed, versions.
    """

    hypothesis: str
    claims: tuple[ClaimInterchange, ...]
    untested: tuple[str, ...]
    answers: tuple[int, ...]
    provenance: Provenance | None = None

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each claim."""
        import pandas as pd

        rows = [
            {
                "claim": c.claim,
                "pairs": c.pairs,
                "accuracy": c.accuracy.value,
                "low": c.accuracy.low,
                "high": c.accuracy.high,
                "chance": c.chance,
                "unswapped": c.unswapped,
                "unchanged": c.unchanged,
                "best random": float(np.max(c.random, initial=-np.inf)),
                "p": c.p,
            }
            for c in self.claims
        ]
        return pd.DataFrame(rows)


def swap_claims(
    model: Model,
    examples: Examples,
    hypothesis: Hypothesis,
    *,
    sources: int = SOURCES,
    random_parts: int = RANDOM_PARTS,
    seed: int = 0,
    progress: Progress = quiet,
) -> Interchange:
    """Swap the parts of each claim between prompts and compare with the prediction.

    Args:
        model: A transformer.
        examples: Held-out examples prepared for it; prompts are paired within one layout.
        hypothesis: The hypothesis; it has to predict a token.
        sources: Other prompts that every item is paired with.
        random_parts: Random parts of the same make that are swapped for comparison.
        seed: Which prompts and parts.
        progress: Told after each claim.

    Raises:
        ConfigError: If a count is out of range.
        DataError: If the hypothesis predicts nothing, or something that is no token.
        UnknownNameError: If it names a part that the model does not have.
    """
    if sources < 1 or random_parts < 0:
        raise ConfigError(
            f"sources={sources}, random_parts={random_parts}; expected at least 1 and at least 0."
        )
    universe = component_names(model)
    resolved = hypothesis.resolved(universe)
    if resolved.predicts is None:
        raise DataError(
            f"{hypothesis.name}: nothing is predicted, so there is nothing to compare a swap with. "
            "Give predicts = '...' under [hypothesis]."
        )
    swap = _Swap(Pool(model, examples, resolved), resolved, sources, seed)
    tested, untested = [], []
    for number, claim in enumerate(resolved.claims):
        if claim.carries.text.strip() in resolved.variables:
            tested.append(swap.claim(claim, universe, random_parts))
        else:
            untested.append(claim.name)
        progress.step(number + 1, len(resolved.claims), "claims")
    return Interchange(
        hypothesis=hypothesis.name,
        claims=tuple(tested),
        untested=tuple(untested),
        answers=tuple(swap.answers),
        provenance=collect(model, {"sources": sources}, seed=seed),
    )


class _Swap:
    """Pairs of prompts of one pool, and what the model says after a swap."""

    def __init__(self, pool: Pool, hypothesis: Hypothesis, sources: int, seed: int) -> None:
        self.pool = pool
        self.hypothesis = hypothesis
        self.seed = seed
        random = rng(seed, "interchange")
        self.pairs: list[tuple[Group, np.ndarray, np.ndarray]] = []
        for group in pool.groups:
            if len(group.clean):
                bases = np.repeat(group.clean, sources)
                drawn = random.integers(0, len(group.members), len(bases))
                self.pairs.append((group, bases, drawn))
        self.predicted = [self._predict(i, {}) for i in range(len(pool.prompts))]
        self.answers = sorted(set(self.predicted))

    def claim(self, claim: Claim, universe: tuple[str, ...], random_parts: int) -> ClaimInterchange:
        """Return how the swap of a claim's parts compares with the prediction."""
        before, after, clusters = self._predictions(claim)
        said = self._said(claim, claim.parts)
        plain = self._said(claim, ())
        moved = before != after
        accuracy = Interval(float("nan"), -np.inf, np.inf)
        null: list[float] = []
        if moved.any():
            accuracy = cluster_bootstrap(
                (said == after)[moved].astype(float), clusters[moved], seed=self.seed
            )
            random = rng(self.seed, "random parts", claim.name)
            circuit = Circuit(claim.parts, universe, "claim")
            for _ in range(random_parts):
                parts = tuple(sorted(matched(circuit, random)))
                if set(parts) != set(claim.parts):
                    null.append(float((self._said(claim, parts) == after)[moved].mean()))
        return ClaimInterchange(
            claim=claim.name,
            parts=claim.parts,
            pairs=int(moved.sum()),
            accuracy=accuracy,
            chance=_chance(said[moved], after[moved]),
            unswapped=_mean((plain == after)[moved]),
            unchanged=_mean((said == after)[~moved]),
            random=np.array(null),
            p=permutation_p(accuracy.value, null) if null else 1.0,
        )

    def _predict(self, number: int, given: dict[str, object]) -> int:
        """Return the token predicted for a prompt with some variables set."""
        one, tokenizer = self.pool.prompts[number], self.pool.model.tokenizer
        values = self.hypothesis.values(one, tokenizer, given)  # type: ignore[arg-type]
        found = (
            None
            if self.hypothesis.predicts is None
            else self.hypothesis.predicts(values, one.functions(tokenizer))
        )
        if isinstance(found, bool) or not isinstance(found, int):
            raise DataError(
                f"{self.hypothesis.name}: predicts gives {found!r} for {one.example.text[:40]!r}; "
                "expected a token's id, such as token('role') or token_id('text')."
            )
        return found

    def _predictions(self, claim: Claim) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the prediction without and with the swap, and the cluster, of every pair."""
        name = claim.carries.text.strip()
        before, after, clusters = [], [], []
        for group, bases, drawn in self.pairs:
            for base, source in zip(bases, drawn, strict=True):
                own, other = (int(group.members[i]) for i in (base, source))
                before.append(self.predicted[own])
                after.append(self._predict(own, {name: self.pool.values[other][name]}))
                clusters.append(self.pool.prompts[own].example.cluster)
        return np.array(before), np.array(after), np.array(clusters)

    def _said(self, claim: Claim, parts: tuple[str, ...]) -> np.ndarray:
        """Return the answer of every pair with some parts swapped where a claim holds."""
        answers = torch.tensor(self.answers)
        said = []
        for group, bases, drawn in self.pairs:
            if not parts:
                logits = group.logits[torch.from_numpy(bases)]
            else:
                logits = self._swapped(claim, parts, group, bases, drawn)
            said += answers[logits.float().cpu()[:, answers].argmax(1)].tolist()
        return np.array(said)

    def _swapped(
        self, claim: Claim, parts: tuple[str, ...], group: Group, bases: np.ndarray,
        drawn: np.ndarray,
    ) -> torch.Tensor:  # fmt: skip
        rows, others = torch.from_numpy(bases), torch.from_numpy(drawn)
        given = {site: group.plain[site][others] for site in sites_of(parts)}
        changes = []
        for site in given:
            value = {site: torch.zeros_like(given[site])}
            free = {site: torch.ones_like(given[site])}
            for part in (p for p in parts if site_of(p) == site):
                put(value, given, part, span(claim, group))
                put(free, {site: torch.zeros_like(given[site])}, part, span(claim, group))
            changes.append(at(site).apply(freeze(value[site], free[site].bool())))
        return run(self.pool.model, group.tokens[rows], changes, ())[0]


def _chance(said: np.ndarray, predicted: np.ndarray) -> float:
    """Return the agreement of two labelings if they were independent."""
    if not len(said):
        return float("nan")
    return float(sum((said == t).mean() * (predicted == t).mean() for t in np.unique(predicted)))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")
