"""Generation under interventions: the same text with and without a cache.

Positions are absolute. An intervention without positions acts on every position, those of new
tokens included; negative positions count from the prompt's end. Without a cache every step computes
the whole sequence again and the intervention acts on the same absolute positions again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from microtome.core.seeds import torch_generator
from microtome.errors import ConfigError, ShapeError
from microtome.models.discovery import logits_of
from microtome.tracing.forward import accepts
from microtome.tracing.indices import Span
from microtome.tracing.instrument import Instrument
from microtome.tracing.interventions import Intervention, chosen_rows
from microtome.tracing.padding import Policy, mask_positions, policy_of
from microtome.tracing.scope import Prompted, scoped
from microtome.tracing.turns import turn

if TYPE_CHECKING:
    from microtome.tracing.model import Model
    from microtome.tracing.prompts import Batch, Prompts

Steps = str | range

_COLDEST = 1e-6


@dataclass(frozen=True, eq=False)
class Generation:
    """What a model continued prompts with.

    Attributes:
        tokens: New token ids of each row, up to and including the end-of-sequence token.
        texts: Their texts (empty without a tokenizer).
        prompts: Token ids of the prompts.
    """

    tokens: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]
    prompts: tuple[tuple[int, ...], ...]


def generate(
    model: Model,
    prompts: Prompts,
    *,
    max_new_tokens: int,
    interventions: tuple[Intervention, ...],
    steps: Steps,
    use_cache: bool,
    temperature: float,
    seed: int,
) -> Generation:
    """Continue prompts token by token; see :meth:`microtome.tracing.model.Model.generate`.

    Raises:
        ConfigError: If a setting is out of range.
        PromptError: If prompt and new tokens exceed the model's context.
    """
    _check(max_new_tokens, temperature)
    batch = model.batch(prompts, left=True)
    _check_context(model, batch, max_new_tokens)
    placed = [i for one in interventions for i in at_steps(one, steps, batch.lengths)]
    # found by trying, so before any intervention acts
    policy = policy_of(model) if batch.padded else "own"
    generator = torch_generator(seed, "generate")
    found: dict[int, tuple[int, ...]] = {}
    for rows, part in _parts(batch, apart=policy in ("alone", "none")):
        acting = [i for one in placed for i in _limited(one, rows, len(batch.lengths))]
        instrument = Instrument(model.module, model.catalog, interventions=acting)
        width = part.tokens.shape[1]
        prompted = Prompted(tuple(width - n for n in part.lengths), part.lengths)
        loop = _Loop(model, part, use_cache and accepts(model.module, "past_key_values"), policy)
        with turn(model.module), torch.no_grad(), scoped(model.module, instrument, prompted):
            for _ in range(max_new_tokens):
                if loop.step(temperature, generator):
                    break
        new = loop.new_tokens()
        found |= {row: new[row] for row in rows}
    return _generation(model, batch, [found[row] for row in range(len(batch.lengths))])


def _parts(batch: Batch, *, apart: bool) -> Iterator[tuple[tuple[int, ...], Batch]]:
    """Yield the rows that are generated together, in a batch of all rows cut to their length.

    What is left of the other rows takes part and is not looked at, so that rows keep their numbers.
    """
    every = tuple(range(len(batch.lengths)))
    if not apart:
        yield every, batch
        return
    for length in sorted(set(batch.lengths)):
        cut = batch.tokens[:, batch.tokens.shape[1] - length :]
        rows = tuple(row for row in every if batch.lengths[row] == length)
        yield rows, replace(batch, tokens=cut, lengths=(length,) * len(every))


def _limited(
    intervention: Intervention, rows: tuple[int, ...], batch: int
) -> Iterator[Intervention]:
    """Yield an intervention on some of the rows alone, if it changes any of them."""
    chosen = chosen_rows(intervention, batch)
    kept = tuple(row for row in chosen if row in rows)
    if kept == chosen:
        yield intervention
    elif kept:
        if intervention.rows is not None:
            intervention = replace(intervention, rows=chosen)
        yield replace(intervention, rows=kept, **_origin(intervention, kept))


def _generation(model: Model, batch: Batch, rows: list[tuple[int, ...]]) -> Generation:
    start = batch.tokens.shape[1]
    prompts = tuple(
        tuple(row[start - length :])
        for row, length in zip(batch.tokens.tolist(), batch.lengths, strict=True)
    )
    has_text = model.tokenizer is not None
    texts = tuple(
        continuation(model, p, r) if has_text else "" for p, r in zip(prompts, rows, strict=True)
    )
    return Generation(tuple(rows), texts, prompts)


class _Loop:
    """The state of a generation: the sequence so far, the cache and which rows have ended."""

    def __init__(self, model: Model, batch: Batch, cached: bool, policy: Policy) -> None:
        self._model = model
        self._numbered = batch.padded and policy == "mask"
        # with a cache such models count from what their first block keeps, which may be nothing
        self._miscounts = (
            accepts(model.module, "position_ids")
            and model.anatomy is not None
            and any(block.attention is None for block in model.anatomy.blocks)
        )
        self._batch = batch
        self._cached = cached
        self._cache: Any = None
        self._sequence = batch.tokens
        self._mask = batch.mask.long()
        self._done = torch.zeros(len(batch.lengths), dtype=torch.bool, device=batch.tokens.device)
        self._ends = _end_tokens(model)

    def step(self, temperature: float, generator: torch.Generator) -> bool:
        """Add one token to every row; return whether all rows have ended."""
        arguments = self._arguments()
        feed = self._sequence[:, -1:] if self._cache is not None else self._sequence
        output = self._model.module(feed, **arguments)
        if self._cached:
            # some take the argument and keep their state elsewhere: then every step runs whole
            self._cache = getattr(output, "past_key_values", None)
            self._cached = self._cache is not None
        new = _choose(logits_of(output)[:, -1], temperature, generator)
        self._sequence = torch.cat([self._sequence, new.unsqueeze(1)], dim=1)
        self._mask = torch.cat([self._mask, torch.ones_like(new).unsqueeze(1)], dim=1)
        for end in self._ends:
            self._done |= new == end
        return bool(self._done.all())

    def _arguments(self) -> dict[str, Any]:
        module = self._model.module
        arguments: dict[str, Any] = {}
        if accepts(module, "attention_mask") and (self._batch.padded or self._cache is not None):
            arguments["attention_mask"] = self._mask
        if accepts(module, "use_cache"):
            arguments["use_cache"] = self._cached
        if self._cache is not None:
            arguments["past_key_values"] = self._cache
        if self._numbered:
            ids = mask_positions(self._mask)
            arguments["position_ids"] = ids[:, -1:] if self._cache is not None else ids
        elif self._miscounts and self._cache is not None:
            last = self._sequence.shape[1] - 1  # padding counts, as it did in the first pass
            arguments["position_ids"] = torch.full_like(self._sequence[:, -1:], last)
        return arguments

    def new_tokens(self) -> list[tuple[int, ...]]:
        """Return the new tokens of each row, cut behind the first end-of-sequence token."""
        rows = []
        for row in self._sequence[:, self._batch.tokens.shape[1] :].tolist():
            stop = next((i + 1 for i, token in enumerate(row) if token in self._ends), len(row))
            rows.append(tuple(row[:stop]))
        return rows


def continuation(model: Model, prompt: Sequence[int], new: Sequence[int]) -> str:
    """Return the text that new tokens add to a prompt (a leading space is kept)."""
    before = model.decode(prompt)
    whole = model.decode([*prompt, *new])
    return whole[len(before) :] if whole.startswith(before) else model.decode(new)


def at_steps(
    intervention: Intervention, steps: Steps, lengths: tuple[int, ...]
) -> list[Intervention]:
    """Return an intervention limited to the positions that chosen steps read.

    Step 0 reads the prompt; step ``i`` reads the position of the ``i``-th new token.

    Raises:
        ConfigError: If ``steps`` is unknown, or combined with a selector of positions.
    """
    if steps == "all":
        return [intervention]
    site = intervention.site
    if site.pos is not None or site.table is not None:
        raise ConfigError(
            f"{intervention} selects positions already; steps={steps!r} would select them a second "
            "time."
        )
    if isinstance(steps, range) and not steps:
        raise ConfigError(f"steps={steps!r} holds no step, so nothing would be changed.")
    chosen = chosen_rows(intervention, len(lengths))
    if intervention.rows is not None:
        intervention = replace(intervention, rows=chosen)
    placed = []
    for length in sorted(set(lengths)):
        rows = tuple(r for r in dict.fromkeys(chosen) if lengths[r] == length)
        if rows:
            placed.append(
                replace(
                    intervention,
                    site=replace(site, pos=_read_at(steps, length)),
                    rows=rows,
                    **_origin(intervention, rows),
                )
            )
    return placed


def _origin(intervention: Intervention, rows: tuple[int, ...]) -> dict[str, Any]:
    """Keep each row's source row when only some of the rows are taken."""
    if intervention.source_rows is None:
        return {}
    all_rows = intervention.rows or tuple(range(len(intervention.source_rows)))
    paired = dict(zip(all_rows, intervention.source_rows, strict=True))
    return {"source_rows": tuple(paired[r] for r in rows)}


def _read_at(steps: Steps, length: int) -> Any:
    if steps == "prompt":
        return Span(0, length)
    if steps == "new":
        return Span(length, None)
    if not isinstance(steps, range) or steps.step != 1 or steps.start < 0:
        raise ConfigError(
            f"steps={steps!r} is not 'all', 'prompt', 'new' or a range such as range(0, 3)."
        )
    first = 0 if steps.start == 0 else length + steps.start - 1
    return Span(first, length + steps.stop - 1)


def _choose(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> torch.Tensor:
    if bool(torch.isnan(logits).any()):
        raise ShapeError(
            "The logits hold NaN, so no next token can be chosen. Check the interventions and the "
            "model's dtype."
        )
    if temperature == 0.0:
        return logits.argmax(-1)
    weights = torch.softmax(logits.float() / temperature, dim=-1).cpu()
    return torch.multinomial(weights, 1, generator=generator).squeeze(1).to(logits.device)


def _end_tokens(model: Model) -> frozenset[int]:
    config = getattr(model.module, "generation_config", None) or getattr(
        model.module, "config", None
    )
    end = getattr(config, "eos_token_id", None)
    if end is None:
        return frozenset()
    return frozenset(int(e) for e in (end if isinstance(end, list | tuple) else [end]))


def _check(max_new_tokens: int, temperature: float) -> None:
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens={max_new_tokens!r}; expected an integer from 1.")
    if not isinstance(temperature, int | float) or not (
        temperature == 0.0 or _COLDEST <= temperature < math.inf
    ):
        raise ConfigError(
            f"temperature={temperature!r}; expected 0 (greedy) or a number from {_COLDEST}."
        )


def _check_context(model: Model, batch: Batch, new: int) -> None:
    from microtome.errors import PromptError

    context = None if model.anatomy is None else model.anatomy.context
    longest = max(batch.lengths)
    if context is not None and longest + new - 1 > context:
        raise PromptError(
            f"The prompt has {longest} tokens and {new} new ones are asked for, but the model's "
            f"context is {context}. Ask for at most {max(context - longest + 1, 0)}."
        )
