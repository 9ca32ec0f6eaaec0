"""A single pair of prompts, for work at the keyboard."""

from __future__ import annotations

from collections.abc import Sequence

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.items import Item


def pair(
    clean: str, corrupt: str, *, answer: str | Sequence[str], wrong: str | Sequence[str]
) -> Behavior:
    """Return a behavior of one pair.

    Args:
        clean: The prompt whose right continuation is ``answer``.
        corrupt: The prompt whose right continuation is ``wrong``; as many tokens.
        answer: Right continuation, or several, with their exact leading space.
        wrong: Wrong continuation, or several.

    Raises:
        PairError: If the prompts are equal or an answer is also a wrong answer.

    Example:
        >>> from microtome.behaviors import pair
        >>> pair("The dog", "The dogs", answer=" was", wrong=" were").items[0].split
        'test'
    """
    answers = (answer,) if isinstance(answer, str) else tuple(answer)
    wrongs = (wrong,) if isinstance(wrong, str) else tuple(wrong)
    item = Item(clean, corrupt, answers, wrongs, "pair", "pair", source="the pair")
    return Behavior("pair", "One pair", "A single pair of prompts.", (item,))
