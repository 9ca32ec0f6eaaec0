"""Disentanglement: do some latents hold one attribute of an entity, and none of the others?

After RAVEL (Huang et al., 2024, arXiv 2402.17700): the latents of an attribute at one entity's last
token are replaced by those of another entity. Cause is the share of prompts that then get the
other entity's value of the attribute; isolation the share of prompts about other attributes that
keep their answer. Latents are chosen on one half of the facts and judged on the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from microtome.core.progress import Progress, quiet
from microtome.core.seeds import rng
from microtome.errors import ConfigError, EmptyDataError, UnknownNameError, nearest
from microtome.sae.evaluation.facts import Fact, Located, locate
from microtome.sae.evaluation.interchange import Interchange, Pair, pairs_of
from microtome.sae.evaluation.masks import learned_mask
from microtome.store.results import Result

if TYPE_CHECKING:
    import pandas as pd

    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model

METHODS = ("mask", "variance")
"""How the latents of an attribute are chosen."""

Among = Literal["vocabulary", "answers"]
Unseen = Literal["entities", "prompts"]

FEWEST = 4
"""Pairs of each kind without which an attribute is not judged."""


@dataclass(frozen=True, eq=False)
class Disentanglement(Result, schema="sae-disentanglement"):
    """Cause, isolation and their mean for each attribute, beside three controls.

    Attributes:
        table: One row for each attribute and ``what``: ``"latents"``, the chosen ones;
            ``"random"``, as many of the other active ones; ``"all latents"``; and ``"whole
            value"``, latents and error. Columns ``cause``, ``isolation``, ``score`` (their mean),
            ``latents`` (how many), ``n_cause`` and ``n_isolation`` (pairs).
        latents: The chosen latents of each attribute, the most telling first.
        n_facts: Facts given.
        n_right: Facts that the model itself gets right; the others are left out.
        method: How the latents were chosen.
    """

    table: pd.DataFrame
    latents: dict[str, tuple[int, ...]]
    n_facts: int
    n_right: int
    method: str

    @property
    def score(self) -> float:
        """Mean over the attributes of the mean of cause and isolation."""
        return float(self.table[self.table["what"] == "latents"]["score"].mean())

    def to_frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.table


def disentanglement(
    model: Model,
    coder: SAE,
    facts: Sequence[Fact],
    *,
    method: str = "mask",
    among: Among = "vocabulary",
    unseen: Unseen = "entities",
    pairs: int = 200,
    ks: Sequence[int] = (1, 2, 5, 10, 20, 50, 100),
    steps: int = 200,
    batch_size: int = 32,
    seed: int = 0,
    progress: Progress = quiet,
) -> Disentanglement:
    """Measure whether latents hold one attribute of an entity each.

    Args:
        model: The model the coder belongs to.
        coder: A coder of one source and one target site, as its ``origin`` says.
        facts: Prompts about at least two attributes of entities; see
            :func:`~microtome.sae.evaluation.facts.facts_of` and
            :func:`~microtome.sae.evaluation.facts.read_facts`. Those that the model gets wrong
            are left out.
        method: ``"mask"`` learns for each attribute which latents to exchange, by gradients;
            ``"variance"`` takes the latents that differ most between the attribute's values, less
            between entities that share one, as many of ``ks`` as score best.
        among: Whether the likeliest token of all must be the wanted one, or the likeliest of the
            attribute's answers.
        unseen: Whether the half that is judged on has other entities, or other prompts of the
            same ones.
        pairs: Pairs of each kind and half at most.
        ks: Numbers of latents that ``"variance"`` tries.
        steps: Steps in which ``"mask"`` learns.
        batch_size: Prompts of a pass.
        seed: Decides halves, pairs and random latents.
        progress: Told how many attributes are done.

    Returns:
        Scores on the unseen half, beside random latents, all latents and the whole value.

    Raises:
        UnknownNameError: There is no such method.
        ConfigError: A number is out of range, or the coder has several sites.
        DataError: A prompt does not hold its entity.
        EmptyDataError: Too few facts are right, or no attribute has enough pairs.
    """
    _check(method, among, unseen, pairs, steps, ks, batch_size)
    if not facts:
        raise EmptyDataError("there are no facts; give prompts about attributes of entities")
    located = locate(model, facts)
    run = Interchange(
        model, coder, located, allowed=_allowed(located, among), batch_size=batch_size
    )
    right = [i for i, is_right in enumerate(run.right) if is_right]
    halves = _halves(located, right, unseen, seed)
    names = list(dict.fromkeys(located[i].fact.attribute for i in right))
    rows: list[dict[str, object]] = []
    chosen: dict[str, tuple[int, ...]] = {}
    for number, name in enumerate(names):
        stream = rng(seed, "disentanglement", name)
        train, test = (pairs_of(located, half, name, count=pairs, stream=stream) for half in halves)
        if min(_counts(train) + _counts(test)) >= FEWEST:
            task = _Task(run, train, test)
            if method == "mask":
                chosen[name] = learned_mask(run, train, steps=steps, batch_size=batch_size)
            else:
                chosen[name] = task.by_variance(halves[0], name, ks)
            rows += task.judged(name, chosen[name], stream.permutation(coder.d_sae).tolist())
        progress.step(number + 1, len(names), "attributes")
    if not rows:
        raise EmptyDataError(
            f"the model gets {len(right)} of {len(facts)} facts right, too few for {FEWEST} pairs "
            f"of each kind in both halves for any of {names}; give more facts, "
            "unseen='prompts', or among='answers'"
        )
    import pandas as pd

    return Disentanglement(pd.DataFrame(rows), chosen, len(facts), len(right), method)


@dataclass(frozen=True, eq=False)
class _Task:
    """The pairs of one attribute.

    Attributes:
        run: What runs them.
        train: Pairs that latents are chosen on.
        test: Pairs that they are judged on.
    """

    run: Interchange
    train: list[Pair]
    test: list[Pair]

    def by_variance(self, half: Sequence[int], name: str, ks: Sequence[int]) -> tuple[int, ...]:
        """Return the latents that differ between values most, as many as score best on train."""
        own = [i for i in half if self.run.facts[i].fact.attribute == name]
        latents = self.run.latents[own].double()
        answers = torch.tensor([self.run.facts[i].answer for i in own])
        between = torch.zeros(latents.shape[1], dtype=torch.float64, device=latents.device)
        for answer in answers.unique():
            there = latents[answers == answer]
            between += len(there) * (there.mean(0) - latents.mean(0)).square()
        total = (latents - latents.mean(0)).square().sum(0)
        within = (total - between).clamp_min(0) + 1e-9 * total.max().clamp_min(1e-30)
        order = (between / within).argsort(descending=True, stable=True)
        order = order[between[order] > 0]
        best: tuple[float, int] = (-1.0, 1)
        for k in sorted({min(k, len(order)) for k in ks}):
            hits = self.run.hits(self.train, self.mask(order[:k].tolist()))
            score = (hits["cause"] + hits["isolation"]) / 2
            if score > best[0] + 1e-9:
                best = (score, k)
        return tuple(int(i) for i in order[: best[1]])

    def judged(
        self, name: str, latents: Sequence[int], order: Sequence[int]
    ) -> list[dict[str, object]]:
        """Return the rows of an attribute: its latents and the controls, on test pairs."""
        bases = [pair.source for pair in self.test]
        active = (self.run.latents[bases] != 0).any(0)
        others = [int(i) for i in order if active[int(i)] and int(i) not in set(latents)]
        whole = self.mask(range(self.run.latents.shape[1]))
        masks: dict[str, Tensor | None] = {
            "latents": self.mask(latents),
            "random": self.mask(others[: len(latents)]),
            "all latents": whole,
            "whole value": None,
        }
        rows: list[dict[str, object]] = []
        n_cause, n_isolation = _counts(self.test)
        for what, mask in masks.items():
            hits = self.run.hits(self.test, mask)
            rows.append(
                {
                    "attribute": name,
                    "what": what,
                    "cause": hits["cause"],
                    "isolation": hits["isolation"],
                    "score": (hits["cause"] + hits["isolation"]) / 2,
                    "latents": int((whole if mask is None else mask).sum()),
                    "n_cause": n_cause,
                    "n_isolation": n_isolation,
                }
            )
        return rows

    def mask(self, latents: Sequence[int]) -> Tensor:
        """Return a mask of some latents ``[latent]``."""
        mask = torch.zeros(self.run.latents.shape[1], device=self.run.latents.device)
        mask[list(latents)] = 1.0
        return mask


def _check(
    method: str,
    among: str,
    unseen: str,
    pairs: int,
    steps: int,
    ks: Sequence[int],
    batch_size: int,
) -> None:
    if method not in METHODS:
        raise UnknownNameError(f"no method {method!r}{nearest(method, METHODS)}")
    for name, value, choices in (
        ("among", among, ("vocabulary", "answers")),
        ("unseen", unseen, ("entities", "prompts")),
    ):
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}; expected {choices[0]!r} or {choices[1]!r}")
    if pairs < FEWEST or steps < 1 or not ks or min(ks) < 1 or batch_size < 1:
        raise ConfigError(
            f"pairs={pairs}, steps={steps}, ks={tuple(ks)}, batch_size={batch_size}; expected at "
            f"least {FEWEST}, 1, numbers from 1, and 1"
        )


def _allowed(facts: Sequence[Located], among: Among) -> dict[str, Tensor | None]:
    """Return, for each attribute, the tokens of its answers, or None for the whole vocabulary."""
    tokens: dict[str, set[int]] = {}
    for fact in facts:
        tokens.setdefault(fact.fact.attribute, set()).add(fact.answer)
    if among == "vocabulary":
        return dict.fromkeys(tokens)
    return {name: torch.tensor(sorted(found)) for name, found in tokens.items()}


def _halves(
    facts: Sequence[Located], right: Sequence[int], unseen: Unseen, seed: int
) -> tuple[list[int], list[int]]:
    """Return the facts to choose latents on, and those to judge on."""
    stream = rng(seed, "disentanglement", unseen)
    groups: dict[object, list[int]] = {}
    for i in right:
        fact = facts[i].fact
        key = fact.entity if unseen == "entities" else (fact.entity, fact.attribute)
        groups.setdefault(key, []).append(i)
    if unseen == "entities":
        names = list(groups)
        picked = stream.permutation(len(names))[: len(names) // 2]
        first = [i for n in sorted(picked) for i in groups[names[n]]]
    else:
        first = []
        for members in groups.values():
            order = stream.permutation(len(members))[: (len(members) + 1) // 2]
            first += [members[n] for n in sorted(order)]
    kept = set(first)
    return first, [i for i in right if i not in kept]


def _counts(pairs: Sequence[Pair]) -> list[int]:
    return [sum(pair.kind == kind for pair in pairs) for kind in ("cause", "isolation")]
