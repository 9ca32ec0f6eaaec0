"""Runs in which every part takes its value from a prompt of its own: the machine of scrubbing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from microtome.circuits.hypotheses.hypothesis import TOKENS, Claim, Hypothesis
from microtome.circuits.hypotheses.situations import groups, situations
from microtome.errors import DataError, MetricError, nearest
from microtome.tracing.components import head_of, layer_of
from microtome.tracing.sites import at

if TYPE_CHECKING:
    from microtome.behaviors.examples import Examples
    from microtome.tracing.interventions import Intervention
    from microtome.tracing.model import Model

Labels = Mapping[str, np.ndarray]
"""For each claim what every prompt of the pool carries, as numbers ``[prompt]``."""

ROWS = 256
"""Rows of a forward pass at most."""


@dataclass(frozen=True, eq=False)
class Group:
    """Prompts that are laid out alike, with what every part gives on them.

    Attributes:
        members: Their numbers in the pool.
        places: The example of each.
        clean: Which members are clean prompts, as numbers among the members.
        tokens: ``[member, pos]``.
        roles: Where the roles lie.
        plain: What each site gives ``[member, pos, ...]``.
        logits: Behind each prompt ``[member, vocab]``.
    """

    members: np.ndarray
    places: list[int]
    clean: np.ndarray
    tokens: torch.Tensor
    roles: Mapping[str, tuple[int, int]]
    plain: Mapping[str, torch.Tensor]
    logits: torch.Tensor


class Pool:
    """The prompts that may stand in for one another, and what the model does on them.

    Args:
        model: The model.
        examples: Examples prepared for it.
        hypothesis: The hypothesis, its parts resolved.

    Raises:
        DataError: If the hypothesis cannot be computed on a prompt.
    """

    def __init__(self, model: Model, examples: Examples, hypothesis: Hypothesis) -> None:
        self.model = model
        self.examples = examples
        self.hypothesis = hypothesis
        self.prompts = situations(examples, corrupt=not hypothesis.names_features)
        self.values = [hypothesis.values(s, model.tokenizer) for s in self.prompts]
        anatomy = model.anatomy
        blocks = () if anatomy is None else anatomy.blocks
        self.sites = [
            site
            for n, b in enumerate(blocks)
            for site, part in ((f"blocks.{n}.attn.z", b.attention), (f"blocks.{n}.mlp.out", b.mlp))
            if part is not None
        ]
        self.groups = [self._group(members) for members in groups(self.prompts)]

    def labels(self) -> Labels:
        """Return what every prompt carries, by claim."""
        found = {}
        for claim in self.hypothesis.claims:
            numbers: dict[object, int] = {}
            carried = [
                claim.carries(v, s.functions(self.model.tokenizer))
                for v, s in zip(self.values, self.prompts, strict=True)
            ]
            found[claim.name] = np.array([numbers.setdefault(c, len(numbers)) for c in carried])
        return found

    def own_labels(self) -> Labels:
        """Return labels by which every prompt agrees with itself alone."""
        return {c.name: np.arange(len(self.prompts)) for c in self.hypothesis.claims}

    def relabeled(self, labels: Labels, random: np.random.Generator) -> Labels:
        """Return labels exchanged at random among the prompts of each group."""
        found = {name: values.copy() for name, values in labels.items()}
        for values in found.values():
            for group in self.groups:
                values[group.members] = values[random.permutation(group.members)]
        return found

    def alone(self, labels: Labels) -> dict[str, float]:
        """Return the share of examples with which no other prompt agrees, by claim."""
        shares = {}
        for name, values in labels.items():
            lone = 0
            for group in self.groups:
                own = values[group.members]
                lone += sum(int((own == own[i]).sum() == 1) for i in group.clean)
            shares[name] = lone / len(self.examples)
        return shares

    def _group(self, members: Sequence[int]) -> Group:
        chosen = [self.prompts[i] for i in members]
        places = {id(e): n for n, e in enumerate(self.examples)}
        plain: dict[str, list[torch.Tensor]] = {site: [] for site in self.sites}
        logits = []
        for start in range(0, len(chosen), ROWS):
            trace = self.model.trace(
                [s.tokens for s in chosen[start : start + ROWS]], capture=self.sites, logits="last"
            )
            for site in self.sites:
                plain[site].append(trace.value(site).detach())
            logits.append(_last(trace.logits))
        return Group(
            members=np.array(members),
            places=[places[id(s.example)] for s in chosen],
            clean=np.array([n for n, s in enumerate(chosen) if s.clean], dtype=int),
            tokens=torch.tensor([s.tokens for s in chosen]),
            roles=chosen[0].example.roles,
            plain={site: torch.cat(rows) for site, rows in plain.items()},
            logits=torch.cat(logits),
        )


class Tree:
    """One draw of the prompts of every claim, and the runs that it asks for."""

    def __init__(
        self,
        pool: Pool,
        group: Group,
        hypothesis: Hypothesis,
        labels: Labels,
        random: np.random.Generator,
    ) -> None:
        self.pool = pool
        self.group = group
        self.hypothesis = hypothesis
        self.labels = labels
        self.random = random

    def logits(self, items: np.ndarray) -> torch.Tensor:
        """Return the logits ``[item, vocab]`` of items given by their numbers in the group."""
        found, _ = self._run(None, items, self.hypothesis.reads, ())
        return found

    def _outputs(self, claim: Claim, items: np.ndarray) -> dict[str, torch.Tensor]:
        """Return what the sites of a claim's parts give, for items that stand for ``items``."""
        donors = self._agreeing(claim, items)
        if claim.reads is None:
            rows = torch.from_numpy(donors)
            return {site: self.group.plain[site][rows] for site in sites_of(claim.parts)}
        _, captured = self._run(claim, donors, claim.reads, sites_of(claim.parts))
        return captured

    def _run(
        self, claim: Claim | None, items: np.ndarray, reads: Sequence[str], capture: Sequence[str]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Run prompts with every part frozen but those of a claim.

        What is read comes from the claims read; all else from prompts drawn at random.
        """
        others = torch.from_numpy(self.random.integers(0, len(self.group.members), len(items)))
        rows = torch.from_numpy(items) if TOKENS in reads else others
        frozen = {site: plain[others].clone() for site, plain in self.group.plain.items()}
        for name in reads:
            if name != TOKENS:
                source = self.hypothesis.claim(name)
                given = self._outputs(source, items)
                for part in source.parts:
                    put(frozen, given, part, span(source, self.group))
        changes = [
            at(site).apply(freeze(value, self._free(claim, site))) for site, value in frozen.items()
        ]
        return run(self.pool.model, self.group.tokens[rows], changes, capture)

    def _free(self, claim: Claim | None, site: str) -> torch.Tensor:
        """Return where a site is computed and not frozen: at the parts of the claim."""
        mask = torch.zeros_like(self.group.plain[site][:1], dtype=torch.bool)
        for part in () if claim is None else claim.parts:
            if site_of(part) == site and claim is not None:
                first, behind = span(claim, self.group)
                head = head_of(part)
                mask[(slice(None), slice(first, behind), *(() if head is None else (head,)))] = True
        return mask

    def _agreeing(self, claim: Claim, items: np.ndarray) -> np.ndarray:
        """Draw for each item a member of its group that agrees on what a claim carries."""
        labels = self.labels[claim.name][self.group.members]
        return np.array(
            [int(self.random.choice(np.flatnonzero(labels == labels[i]))) for i in items]
        )


def run(
    model: Model,
    tokens: torch.Tensor,
    changes: Sequence[Intervention],
    capture: Sequence[str],
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return logits ``[row, vocab]`` behind prompts of one length, and captured sites."""
    trace = model.trace(
        tokens.tolist(), capture=list(capture), interventions=list(changes), logits="last"
    )
    return _last(trace.logits), {site: trace.value(site).detach() for site in capture}


def freeze(value: torch.Tensor, free: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that replaces all but the free entries by a value."""

    def frozen(computed: torch.Tensor) -> torch.Tensor:
        return torch.where(free.to(computed.device), computed, value.to(computed.dtype))

    return frozen


def put(
    into: dict[str, torch.Tensor],
    given: Mapping[str, torch.Tensor],
    part: str,
    positions: tuple[int, int],
) -> None:
    """Copy what a part gives at some positions."""
    site, head = site_of(part), head_of(part)
    place = (slice(None), slice(*positions), *(() if head is None else (head,)))
    into[site][place] = given[site][place].to(into[site].dtype)


def span(claim: Claim, group: Group) -> tuple[int, int]:
    """Return the positions at which a claim holds.

    Raises:
        DataError: If the prompts have no such role.
    """
    if claim.at is None:
        return 0, int(group.tokens.shape[1])
    if claim.at not in group.roles:
        raise DataError(
            f"Claim {claim.name!r}: no role {claim.at!r} in the prompts"
            f"{nearest(claim.at, group.roles)}."
        )
    return group.roles[claim.at]


def site_of(part: str) -> str:
    """Return the site at which a part's output lies."""
    return f"blocks.{layer_of(part)}.{'mlp.out' if head_of(part) is None else 'attn.z'}"


def sites_of(parts: Sequence[str]) -> tuple[str, ...]:
    """Return the sites of some parts, each once."""
    return tuple(dict.fromkeys(site_of(p) for p in parts))


def _last(logits: torch.Tensor | None) -> torch.Tensor:
    if logits is None:
        raise MetricError("The model returned no logits.")
    return logits[:, 0].detach()
