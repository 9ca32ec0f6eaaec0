"""Interchange of latents: one entity's latents in the place of another's, while the model runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor

from microtome.errors import ConfigError, ModelSupportError
from microtome.sae.evaluation.facts import Located
from microtome.tracing.interventions import Intervention

if TYPE_CHECKING:
    from numpy.random import Generator

    from microtome.sae.coder import SAE
    from microtome.tracing.model import Model
    from microtome.tracing.sites import Site

NAME = "interchange"
"""Name under which the coder is attached."""

Kind = Literal["cause", "isolation"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Pair:
    """A base prompt that gets an entity's latents from a source prompt.

    Attributes:
        base: Number of the fact whose prompt runs.
        source: Number of the fact that the latents come from.
        wanted: The token that should be predicted: the source's for cause, the base's own for
            isolation.
        kind: Which of the two it is.
    """

    base: int
    source: int
    wanted: int
    kind: Kind


class Interchange:
    """Runs prompts of facts with parts of other facts' values at the entity's last token.

    Args:
        model: The model.
        coder: A coder of one source and one target site.
        facts: The facts, located.
        allowed: By attribute, the tokens that are compared for an answer, None for all.
        batch_size: Prompts of a pass.

    Attributes:
        facts: The facts.
        latents: Latents at each fact's entity ``[fact, latent]``.
        right: Whether the model itself gives each fact's answer.

    Raises:
        ConfigError: The coder has several sites, or none.
        SiteError: The model does not have its sites.
    """

    def __init__(
        self,
        model: Model,
        coder: SAE,
        facts: Sequence[Located],
        *,
        allowed: Mapping[str, Tensor | None],
        batch_size: int = 32,
    ) -> None:
        sources, targets = coder.origin.sources, coder.origin.targets
        if len(sources) != 1 or len(targets) != 1:
            raise ConfigError(
                f"the coder reads {list(sources)} and writes {list(targets)}; an interchange needs "
                "one site of each, in the coder's origin"
            )
        to = None if sources == targets else targets[0]
        self._model = model.attach(NAME, coder, at=sources[0], to=to)
        attached = self._model.attached(NAME)[0]
        self._latents, self._value = attached.latents, attached.to
        self._size, self._allowed = batch_size, allowed
        self.facts = tuple(facts)
        self.right: list[bool] = []
        self.latents, self._values = self._clean()

    @torch.no_grad()
    def _clean(self) -> tuple[Tensor, Tensor]:
        latents, values = [], []
        sites = [self._latents, self._value]
        for part in _parts(range(len(self.facts)), self._size):
            trace = self._model.trace([list(self.facts[i].ids) for i in part], capture=sites)
            places = torch.tensor([self.facts[i].position for i in part])
            rows = torch.arange(len(part))
            latents.append(trace[self._latents][rows, places])
            values.append(trace[self._value][rows, places])
            said = self._said(_last(trace.logits, trace.lengths), part)
            self.right += [
                self.facts[i].answer == token for i, token in zip(part, said, strict=True)
            ]
        return torch.cat(latents), torch.cat(values)

    def exchanged(self, pairs: Sequence[Pair], mask: Tensor, *, grad: bool = False) -> Tensor:
        """Return the logits ``[pair, vocab]`` of base prompts with some latents of their sources.

        Args:
            pairs: The pairs, of one pass.
            mask: How far each latent is replaced, 0 to 1 ``[latent]``.
            grad: Keep the graph, to differentiate by the mask.
        """
        given = self.latents[[pair.source for pair in pairs]]

        def mixed(old: Tensor) -> Tensor:
            return old + mask.to(old) * (given.to(old) - old)

        return self._run(pairs, self._latents, mixed, grad=grad)

    def replaced(self, pairs: Sequence[Pair]) -> Tensor:
        """Return the logits ``[pair, vocab]`` of base prompts with the whole value of sources."""
        given = self._values[[pair.source for pair in pairs]]
        return self._run(pairs, self._value, lambda old: given.to(old))

    def _run(
        self,
        pairs: Sequence[Pair],
        site: Site,
        change: Callable[[Tensor], Tensor],
        *,
        grad: bool = False,
    ) -> Tensor:
        bases = [self.facts[pair.base] for pair in pairs]
        places = torch.tensor([base.position for base in bases])
        rows = torch.arange(len(bases))

        def put(value: Tensor) -> Tensor:
            return value.index_put((rows, places), change(value[rows, places]))

        write: Intervention = site.apply(put)
        trace = self._model.trace(
            [list(base.ids) for base in bases], interventions=[write], grad=grad
        )
        return _last(trace.logits, trace.lengths)

    @torch.no_grad()
    def hits(self, pairs: Sequence[Pair], mask: Tensor | None) -> dict[Kind, float]:
        """Return the share of pairs with the wanted prediction, by kind; NaN without pairs.

        Args:
            pairs: Any number of pairs.
            mask: Latents that are exchanged ``[latent]``; None exchanges the whole value.
        """
        right: dict[Kind, list[bool]] = {"cause": [], "isolation": []}
        for part in _parts(pairs, self._size):
            logits = self.replaced(part) if mask is None else self.exchanged(part, mask)
            said = self._said(logits, [pair.base for pair in part])
            for pair, token in zip(part, said, strict=True):
                right[pair.kind].append(token == pair.wanted)
        return {kind: sum(hit) / len(hit) if hit else float("nan") for kind, hit in right.items()}

    def _said(self, logits: Tensor, facts: Sequence[int]) -> list[int]:
        """Return the likeliest allowed token of each row, for the facts of these numbers."""
        found = []
        for row, number in zip(logits, facts, strict=True):
            allowed = self._allowed[self.facts[number].fact.attribute]
            best = (
                row.argmax() if allowed is None else allowed[row[allowed.to(row.device)].argmax()]
            )
            found.append(int(best))
        return found


def pairs_of(
    facts: Sequence[Located],
    chosen: Sequence[int],
    attribute: str,
    *,
    count: int,
    stream: Generator,
) -> list[Pair]:
    """Draw pairs that test whether some latents hold an attribute and nothing else.

    For cause, base and source ask for the attribute and differ in it. For isolation, the base asks
    for another attribute in which the source's entity differs, too: else nothing could go wrong.

    Args:
        facts: All facts.
        chosen: Numbers of those to draw from.
        attribute: The attribute.
        count: Pairs of each kind at most.
        stream: Where the draws come from.
    """
    values: dict[str, dict[str, int]] = {}
    for i in chosen:
        fact = facts[i].fact
        values.setdefault(fact.entity, {})[fact.attribute] = facts[i].answer
    cause = [
        Pair(base, source, facts[source].answer, "cause")
        for base in chosen
        for source in chosen
        if facts[base].fact.attribute == facts[source].fact.attribute == attribute
        and facts[base].answer != facts[source].answer
    ]
    isolation = [
        Pair(base, source, facts[base].answer, "isolation")
        for base in chosen
        for source in chosen
        if (asked := facts[base].fact.attribute) != attribute
        and facts[source].fact.attribute == attribute
        and values[facts[source].fact.entity].get(asked, facts[base].answer) != facts[base].answer
    ]
    drawn = []
    for pairs in (cause, isolation):
        order = stream.permutation(len(pairs))[:count]
        drawn += [pairs[i] for i in sorted(order)]
    return drawn


def _last(logits: Tensor | None, lengths: Tensor) -> Tensor:
    """Return the logits behind the last token of each row."""
    if logits is None:
        raise ModelSupportError("the model returned no logits, so it has no answers")
    return logits[torch.arange(len(lengths)), lengths.to(logits.device) - 1]


def _parts(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    return [items[i : i + size] for i in range(0, len(items), size)]
