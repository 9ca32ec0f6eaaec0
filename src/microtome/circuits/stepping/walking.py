"""Steps through a prompt: from a place to what feeds it or what it feeds, and on from there."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from microtome.circuits.graph import EMBED
from microtome.circuits.stepping.contributions import backward_step, neuron_step
from microtome.circuits.stepping.readers import forward_step, write_of
from microtome.circuits.stepping.readings import (
    Reading,
    logit_reading,
    neuron_reading,
    score_reading,
    stream_reading,
    value_reading,
)
from microtome.circuits.stepping.recorded import Recorded
from microtome.circuits.stepping.results import Link, Step, Steps, Way
from microtome.circuits.stepping.targets import Place, place_of
from microtome.core.provenance import collect
from microtome.errors import (
    ConfigError,
    ModelSupportError,
    PromptError,
    SelectorError,
    TokenizerError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from microtome.tracing.model import Model
    from microtome.tracing.sites import Site

NOTE = {
    "backward": "Direct effects with norms, patterns and other branches frozen as each step says: "
    "with those fixed they add up exactly. What a part does through later parts is in the steps "
    "below it, not in its own number.",
    "forward": "Direct effects on what reads the stream later, with norms frozen. A share is how "
    "much of the reader the write makes: attention that moves when it is taken out of q or k, its "
    "part of what a head moves, of what neurons or logits read. Each step on follows the reader's "
    "whole write, not the part that came from here.",
}


@dataclass(frozen=True)
class _Rules:
    """How far and how widely to step."""

    depth: int
    top: int
    branch: int
    neurons: bool


def step(
    model: Model,
    prompt: str | Sequence[int],
    start: str | Site = "logits",
    *,
    pos: int | None = None,
    way: Way = "backward",
    depth: int = 1,
    top: int = 8,
    branch: int = 2,
    neurons: bool = False,
    token: str | int | None = None,
    against: str | int | None = None,
    other: int | None = None,
    direction: torch.Tensor | None = None,
    generate: int = 0,
) -> Steps:
    """Step from a place in the forward pass to what feeds it directly, or to what it feeds.

    Backward, the place is a number that is linear in the residual stream with norms frozen: a logit
    (by default the likeliest token's against the runner-up's), a neuron's input, an attention score
    as the query or the key sees it, what a head or MLP writes along a direction. It is split into
    what embeddings, heads, MLPs or neurons wrote. Forward, a part's write is followed to later
    heads, neurons and logits. From the strongest, steps go on.

    Args:
        model: A transformer whose parts add to one residual stream.
        prompt: A text or token ids.
        start: A part (``a1.h3``, ``a1.h3<q>``, ``m2``, ``m2.n17``) or a site
            (``blocks.1.mlp.pre[neuron=17]``, ``logits``).
        pos: Position; by default that of the site, else the last. Negative ones count from the end.
        way: ``backward`` or ``forward``.
        depth: How many steps to go on; 1 is a single step.
        top: Links that each step shows.
        branch: How many of them to step on from.
        neurons: Split MLPs into neurons right away.
        token: For logits, the token to explain; text or id.
        against: For logits, the token to compare with; ``""`` for none.
        other: For a query its key, for a key its query; by default the pair with most attention.
        direction: For heads, MLPs and streams, the direction ``[d_model]`` that is explained; by
            default that of the value itself.
        generate: Continue the prompt greedily by this many tokens, with one tree for each: at the
            position that predicts it, for logits of that token.

    Raises:
        ModelSupportError: If the model's parts do not add up, or the place cannot be split.
        SiteError: If the place does not exist.
        SelectorError: If a position does not exist.
        ConfigError: If a number is out of range.

    Example:
        >>> import microtome as mt
        >>> from microtome.models.families import build
        >>> found = step(mt.load(build("gpt2")), [1, 2, 3], "logits", top=3)
        >>> len(found.roots[0].links), found.unexplained < 1e-4
        (3, True)
    """
    rules = _rules(way, depth, top, branch, neurons, generate)
    ids = list(model.tokenize(prompt)) if isinstance(prompt, str) else [int(i) for i in prompt]
    if (length := len(ids)) == 0:
        raise PromptError("The prompt is empty; expected at least one token.")
    if generate:
        ids += model.generate([ids], max_new_tokens=generate).tokens[0]
    # causal models see the same at earlier positions, so one pass serves every generated token
    recorded = Recorded.of(model, ids if not generate else ids[:-1])
    place = place_of(recorded, start)
    chosen = pos if pos is not None else place.pos
    roots = []
    for at in range(length - 1, len(ids) - 1) if generate else [_position(chosen, length)]:
        answer = ids[at + 1] if generate and token is None else token
        if way == "forward":
            root = _forward(recorded, _source(place, start), at, rules)
        else:
            options = _Options(answer, against, other, direction)
            root = _backward(recorded, place, at, rules, options)
        roots += [root]
    return Steps(
        tuple(model.tokens(ids)), length, tuple(roots), NOTE[way],
        collect(model, {"start": str(start), "way": way, "depth": depth, "top": top}),
    )  # fmt: skip


def _rules(way: str, depth: int, top: int, branch: int, neurons: bool, generate: int) -> _Rules:
    if way not in NOTE:
        raise UnknownNameError(f"No way {way!r}; known: backward, forward.")
    numbers = (
        ("depth", depth, 1),
        ("top", top, 1),
        ("branch", branch, 1),
        ("generate", generate, 0),
    )
    for name, value, least in numbers:
        if value < least:
            raise ConfigError(f"{name}={value} is too small; expected at least {least}.")
    return _Rules(depth, top, branch, neurons)


def _position(pos: int | None, length: int) -> int:
    chosen = -1 if pos is None else pos
    if not -length <= chosen < length:
        raise SelectorError(
            f"Position {chosen} is out of range; the prompt has {length} tokens (0 to "
            f"{length - 1}, or -1 to -{length} from the end)."
        )
    return chosen % length


@dataclass(frozen=True, eq=False)
class _Options:
    token: str | int | None
    against: str | int | None
    other: int | None
    direction: torch.Tensor | None


def _backward(recorded: Recorded, place: Place, pos: int, rules: _Rules, options: _Options) -> Step:
    if place.kind == "mlp":
        direction = _along(options.direction, recorded.value(f"blocks.{place.layer}.mlp.out")[pos])
        root = neuron_step(recorded, place.layer, pos, direction, top=rules.top, explains="")
        return _onward(recorded, root, None, rules, 1)
    reading = _reading(recorded, place, pos, options)
    return _onward_of(recorded, reading, rules, 1, "")


def _reading(recorded: Recorded, place: Place, pos: int, options: _Options) -> Reading:
    if place.kind == "logits":
        return _logits(recorded, pos, options)
    if place.kind in ("pre", "gate"):
        return neuron_reading(recorded, place.layer, place.neuron, pos, place.kind)
    if place.kind in ("q", "k"):
        pair = _pair(recorded, place, pos, options.other)
        return score_reading(recorded, place.layer, place.head, pair, place.kind)
    if place.kind == "v":
        write = write_of(recorded, f"a{place.layer}.h{place.head}", pos).value
        along = _along(options.direction, write)
        label = "what it writes" + ("" if options.direction is None else " along the direction")
        return value_reading(recorded, place.layer, place.head, pos, along, label)
    if place.kind == "embed":
        raise SelectorError(f"{place.text}: nothing feeds an embedding; step forward from it.")
    return _stream(recorded, place, pos, options.direction)


def _stream(recorded: Recorded, place: Place, pos: int, direction: torch.Tensor | None) -> Reading:
    """Return the reading of a stream; ``attn.in`` and ``mlp.in`` mean it before the norm."""
    layer = place.layer + (place.site == "resid_post")
    kind = "mlp" if place.site in ("mlp.in", "resid_mid") else "attn"
    if layer == recorded.anatomy.n_layers:
        kind = "logits"
    stream = recorded.stream(layer, kind)[pos]
    return stream_reading(recorded, place.text, layer, kind, pos, _along(direction, stream))


def _along(direction: torch.Tensor | None, value: torch.Tensor) -> torch.Tensor:
    """Return the given direction, or that of a value, both of unit length."""
    chosen = value if direction is None else direction.detach().double().cpu()
    if chosen.shape != value.shape:
        raise ConfigError(
            f"The direction has shape {tuple(chosen.shape)}; expected {tuple(value.shape)}."
        )
    unit: torch.Tensor = chosen / chosen.norm().clamp(min=1e-30)
    return unit


def _logits(recorded: Recorded, pos: int, options: _Options) -> Reading:
    if recorded.trace.logits is None:
        raise ModelSupportError("The model returned no logits.")
    row = recorded.trace.logits[0, pos].float()
    best = [int(i) for i in row.topk(min(2, len(row))).indices]
    token = best[0] if options.token is None else _token(recorded, options.token)
    if options.against is None:
        rival = next(i for i in best if i != token)
    elif options.against == "":
        rival = None
    else:
        rival = _token(recorded, options.against)
    ids = [token] if rival is None else [token, rival]
    texts = [repr(t) for t in recorded.model.tokens(ids)]
    label = f"logit of {texts[0]}" + ("" if rival is None else f" against {texts[1]}")
    return logit_reading(recorded, pos, ids, [1.0, -1.0][: len(ids)], label)


def _token(recorded: Recorded, given: str | int) -> int:
    if isinstance(given, int):
        if not 0 <= given < recorded.anatomy.vocab:
            raise SelectorError(f"Token {given} is out of range 0 to {recorded.anatomy.vocab - 1}.")
        return given
    ids = recorded.model.tokenize(given, bos=False)
    if len(ids) != 1:
        texts = "|".join(recorded.model.tokens(ids))
        raise TokenizerError(f"{given!r} is {len(ids)} tokens ({texts}); give one token, or an id.")
    return ids[0]


def _pair(recorded: Recorded, place: Place, pos: int, other: int | None) -> tuple[int, int]:
    """Return query and key: the position and the one given, or the pair with most attention."""
    pattern = recorded.value(f"blocks.{place.layer}.attn.pattern")[place.head]
    if other is not None:
        chosen = _position(other, recorded.length)
    elif place.kind == "q":
        chosen = int(pattern[pos].argmax())
    else:
        chosen = int(pattern[:, pos].argmax())
    query, key = (pos, chosen) if place.kind == "q" else (chosen, pos)
    if key > query and recorded.anatomy.causal:
        raise SelectorError(f"Position {query} cannot attend to {key}, which comes later.")
    return query, key


def _onward_of(
    recorded: Recorded, reading: Reading, rules: _Rules, depth: int, explains: str
) -> Step:
    found = backward_step(
        recorded, reading, top=rules.top, neurons=rules.neurons, explains=explains
    )
    return _onward(recorded, found, reading, rules, depth)


def _onward(
    recorded: Recorded, found: Step, reading: Reading | None, rules: _Rules, depth: int
) -> Step:
    """Return a step with the steps on from its strongest links."""
    if depth >= rules.depth:
        return found
    below: list[Step] = []
    followed = 0
    for link in found.links:
        if followed == rules.branch:
            break
        more = _from_link(recorded, link, reading, rules, depth + 1)
        followed += bool(more)
        below += more
    return replace(found, steps=tuple(below))


_PART = re.compile(r"a(\d+)\.h(\d+)|m(\d+)(?:\.n(\d+))?")


def _from_link(
    recorded: Recorded, link: Link, reading: Reading | None, rules: _Rules, depth: int
) -> list[Step]:
    """Return the steps into a link: a head's v, q and k, an MLP's neurons, a neuron's input."""
    match = _PART.fullmatch(link.part)
    if match is None:
        return []
    name = f"{link.part}@{link.pos}"
    if match[1] is not None:
        return _into_head(recorded, link, reading, rules, depth)
    layer = int(match[3])
    if match[4] is not None:
        branches = ("gate", "pre") if recorded.mlp(layer).gate else ("pre",)
        readings = [neuron_reading(recorded, layer, int(match[4]), link.pos, b) for b in branches]
        return [_onward_of(recorded, r, rules, depth, name) for r in readings]
    if reading is None or not recorded.mlp(layer).neurons_add_up:
        return []
    along = reading.directions[reading.positions.index(link.pos)]
    into = neuron_step(recorded, layer, link.pos, along, top=rules.top, explains=name)
    return [_onward(recorded, into, None, rules, depth)]


def _into_head(
    recorded: Recorded, link: Link, reading: Reading | None, rules: _Rules, depth: int
) -> list[Step]:
    layer, head = (int(x) for x in link.part[1:].split(".h"))
    name = f"{link.part}@{link.pos}"
    readings, missing = [], ""
    if link.other is not None:
        pair = (link.pos, link.other)
        try:
            readings = [score_reading(recorded, layer, head, pair, port) for port in ("q", "k")]
        except ModelSupportError as error:
            missing = f"; q and k are left out: {error}"
    if reading is not None:
        along = reading.directions[reading.positions.index(link.pos)]
        moved = value_reading(recorded, layer, head, link.pos, along, "what it moves")
        readings.insert(0, replace(moved, held=moved.held + missing))
    return [_onward_of(recorded, r, rules, depth, name) for r in readings]


def _source(place: Place, start: str | Site) -> str:
    """Return the part whose write a forward step follows."""
    if place.kind == "embed":
        return place.site
    if place.kind in ("q", "k", "v"):
        return f"a{place.layer}.h{place.head}"
    if place.kind == "mlp":
        return f"m{place.layer}"
    if place.kind in ("pre", "gate"):
        return f"m{place.layer}.n{place.neuron}"
    raise SelectorError(
        f"{start}: a forward step follows what a head, an MLP, a neuron or an embedding writes; "
        "name one, such as a1.h3, m2 or embed.token."
    )


def _forward(
    recorded: Recorded, part: str, pos: int, rules: _Rules, depth: int = 1, explains: str = ""
) -> Step:
    if part.startswith(EMBED) and part not in recorded.embeddings:
        if part == "embed.pos" and EMBED not in recorded.embeddings:
            raise SelectorError("embed.pos: the model adds no positions; step from embed.token.")
        part = EMBED
    found = forward_step(
        recorded, write_of(recorded, part, pos), top=rules.top, neurons=rules.neurons,
        explains=explains,
    )  # fmt: skip
    if depth >= rules.depth:
        return found
    seen: dict[tuple[str, int], str] = {}
    for link in found.links:
        part_on = link.part.split("<")[0]
        if part_on != "logits" and len(seen) < rules.branch:
            into = link.pos if link.part.endswith("<q>") or link.other is None else link.other
            seen.setdefault((part_on, into), f"{link.part}@{link.pos}")
    below = [
        _forward(recorded, on, into, rules, depth + 1, name) for (on, into), name in seen.items()
    ]
    return replace(found, steps=tuple(below))
