"""The rules by which a sweep saves work, and where each of them may be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from microtome.errors import ConfigError, ModelSupportError, nearest
from microtome.sweeps.rows import SweepMetric, narrow_reason
from microtome.tracing.arguments import shared_state
from microtome.tracing.condition import strange_part
from microtome.tracing.suffix import suffix_facts
from microtome.tracing.turns import turn

if TYPE_CHECKING:
    from microtome.tracing.model import Model

Rule = Literal["batch", "known", "restart", "wavefront", "suffix", "low", "narrow", "fast"]

RULES: tuple[Rule, ...] = get_args(Rule)
"""The rules.

``batch``: many cells share a forward pass. ``known``: a cell that changes no value is not run.
``restart``: work starts at the changed block. ``wavefront``: rows that start at a block join those
under way. ``suffix``: only positions from the first changed one on are computed. ``low``: a change
of what a part writes enters behind that part. ``narrow``: a metric that is linear in the logits is
read along one direction. ``fast``: blocks of the two commonest shapes run on packed tokens.
"""

NEEDS: dict[Rule, tuple[Rule, ...]] = {
    "known": ("batch",),
    "restart": ("batch",),
    "wavefront": ("restart",),
    "suffix": ("restart",),
    "low": ("restart",),
    "narrow": ("restart",),
    "fast": ("restart", "suffix", "wavefront"),
}
"""What a rule builds on."""

SIMPLER: tuple[tuple[Rule, ...], ...] = (
    ("batch", "known", "restart", "wavefront", "suffix", "low", "narrow"),
    ("batch", "known", "restart", "low"),
    ("batch",),
    (),
)
"""What is tried in turn when a certificate fails."""


def choose(
    model: Model, metric: SweepMetric, wanted: Sequence[Rule] | None, *, split: str = ""
) -> tuple[tuple[Rule, ...], dict[str, str]]:
    """Return the rules that are used, and why the others are not.

    Args:
        model: The model.
        metric: What is measured.
        wanted: Rules that may be used, None for all.
        split: Why what is swept keeps passes from being restarted, empty where it does not.

    Raises:
        ConfigError: If a rule is unknown.
    """
    asked = RULES if wanted is None else tuple(wanted)
    for rule in asked:
        if rule not in RULES:
            raise ConfigError(f"Unknown rule {rule!r}{nearest(str(rule), RULES)}.")
    declined: dict[str, str] = {}
    for rule in RULES:
        if rule not in asked:
            declined[rule] = "it was switched off"
            continue
        missing = next((need for need in NEEDS.get(rule, ()) if need in declined), None)
        reason = f"it needs {missing}" if missing else _reason(model, metric, rule)
        reason = reason or (split if rule == "restart" else "")
        if reason:
            declined[rule] = reason
    return tuple(rule for rule in RULES if rule not in declined), declined


def _reason(model: Model, metric: SweepMetric, rule: Rule) -> str:
    """Return why a rule does not fit this model and metric, from verified facts about both."""
    anatomy = model.anatomy
    if anatomy is None:
        return "the module is not a transformer"
    if rule == "restart":
        return restart_reason(model)
    if rule == "suffix":
        return suffix_facts(model).reason
    if rule == "narrow":
        return narrow_reason(model, metric)
    if rule == "fast":
        from microtome.sweeps.packed import packed_reason

        return packed_reason(model)
    return ""


def restart_reason(model: Model) -> str:
    """Return why passes cannot start at a later block; empty where they can."""
    anatomy = model.anatomy
    if anatomy is None:
        return "the module is not a transformer"
    odd = next((b.reasons["*"] for b in anatomy.blocks if "*" in b.reasons), "")
    if odd:
        return odd
    if not anatomy.tail.exact:
        return f"the logits cannot be read off the last stream: {anatomy.tail.reason}"
    try:
        # while another thread has its turn, its hooks are on
        with turn(model.module):
            return strange_part(model.module) or shared_state(model)
    except ModelSupportError as error:
        return str(error)
