"""Titles that state what the numbers say, and no more."""

from __future__ import annotations

import numpy as np

from microtome.dissection.results import Located, Operation, Proof, Reduction
from microtome.views.numbers import number, percent


def page_title(behavior: str, grade: str, kept: int, total: int) -> str:
    """Return the title of the report."""
    if grade == "not established":
        return f"No circuit for {behavior} is established in this model"
    words = {
        "sufficient and necessary": "are sufficient and necessary for",
        "sufficient, redundant": "are sufficient for, and backed up in,",
        "sufficient only": "are sufficient for",
    }
    return f"{kept} of {total} heads and MLPs {words[grade]} {behavior}"


def tokens_title(located: Located) -> str:
    """Say where along the prompts restoring helps most."""
    ends = [int(np.argmax(t.effects)) == len(t.effects) - 1 for t in located.tokens]
    layer = located.tokens[0].layer
    if all(ends):
        return f"Before block {layer}, the last token already carries the answer"
    if not any(ends):
        return f"Before block {layer}, the answer still lies at earlier tokens"
    return (
        f"Before block {layer}, the answer is at the last token in {sum(ends)} of {len(ends)} "
        "prompts"
    )


def streams_title(located: Located) -> str:
    """Say through which layer the information reaches the end."""
    effect = located.streams.effect
    roles = [str(r) for r in effect[effect.dims[1]].to_numpy()]
    if "end" not in roles:
        return "Where the clean stream restores the answer"
    end = effect.to_numpy()[:, roles.index("end")]
    above = np.flatnonzero(end >= 0.5)
    if not len(above):
        return "The answer does not reach the last token before the last block"
    layer = int(effect["layer"].to_numpy()[above[0]])
    return f"Half of the answer has reached the last token before block {layer}"


def heads_title(located: Located) -> str:
    """Name the strongest parts and their share."""
    scores = located.scores
    order = scores.ranking()
    strength = np.abs(scores.mean)
    share = float(np.sort(strength)[::-1][:3].sum() / strength.sum()) if strength.sum() else 0.0
    return f"{order[0]}, {order[1]} and {order[2]} hold {percent(share)} of all attributed effect"


def curve_title(kept: int, total: int, asked: float) -> str:
    """Say at which size the asked faithfulness is reached."""
    if kept == total:
        return (
            f"No circuit smaller than the model reaches a faithfulness within {number(1 - asked)} "
            "of 1"
        )
    return (
        f"{kept} of {total} parts reach a faithfulness within {number(1 - asked)} of 1 on "
        "validation"
    )


def controls_title(outcomes: list[str]) -> str:
    """Count the rules that are met."""
    met = sum(o == "pass" for o in outcomes)
    return f"{met} of {len(outcomes)} rules are met"


def rule_title(reduction: Reduction) -> str:
    """Say what the rule predicts, beyond the task's own rule if anything."""
    agreement = percent(reduction.agreement.value)
    if np.isfinite(reduction.beyond) and reduction.beyond > 0.3:
        return (
            f"A rule of {reduction.leaves} leaves predicts {agreement} of the model's answers, "
            "some of its errors too"
        )
    return (
        f"A rule of {reduction.leaves} leaves predicts {agreement} of the model's answers, but not "
        "its errors"
    )


def operation_title(operation: Operation) -> str:
    """Say what ablating the circuit does beside random ablations of its size."""
    before, after = operation.before.value, operation.after.value
    random = float(np.mean(operation.random_after))
    told = f"Without the circuit accuracy goes from {number(before)} to {number(after)}"
    return f"{told}; under random ablations of its size to {number(random)} on average"


def proof_text(proof: Proof) -> str:
    """Describe the sample of the proof."""
    return (
        f"{len(proof.evaluation.clusters)} items in {proof.clusters} clusters from "
        f"{proof.templates} templates"
    )
