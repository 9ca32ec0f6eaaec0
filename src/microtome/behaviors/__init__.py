"""Behaviors: clean/corrupt prompt pairs, generators, metrics, splits and loaders."""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_NAMES = {
    "Behavior": "microtome.behaviors.behavior:Behavior",
    "Check": "microtome.behaviors.check:Check",
    "Example": "microtome.behaviors.examples:Example",
    "Examples": "microtome.behaviors.examples:Examples",
    "Item": "microtome.behaviors.items:Item",
    "Scores": "microtome.behaviors.evaluate:Scores",
    "bracket_balance": "microtome.behaviors.generators.symbols:bracket_balance",
    "bracket_closing": "microtome.behaviors.generators.code:bracket_closing",
    "color_choice": "microtome.behaviors.generators.lookup:color_choice",
    "contrast": "microtome.behaviors.contrasts:contrast",
    "custom_metric": "microtome.behaviors.metrics:custom_metric",
    "default_or_close": "microtome.behaviors.generators.code:default_or_close",
    "docstring_arguments": "microtome.behaviors.generators.lookup:docstring_arguments",
    "entity_tracking": "microtome.behaviors.generators.english:entity_tracking",
    "for_in": "microtome.behaviors.generators.statements:for_in",
    "gendered_pronoun": "microtome.behaviors.generators.english:gendered_pronoun",
    "get": "microtome.behaviors.registry:get",
    "greater_than": "microtome.behaviors.generators.numbers:greater_than",
    "indirect_object": "microtome.behaviors.generators.english:indirect_object",
    "induction": "microtome.behaviors.generators.english:induction",
    "letter_sorting": "microtome.behaviors.generators.symbols:letter_sorting",
    "load": "microtome.behaviors.loaders:load",
    "metric": "microtome.behaviors.metrics:metric",
    "names": "microtome.behaviors.registry:names",
    "natural": "microtome.behaviors.cuttings:natural",
    "pair": "microtome.behaviors.pairs:pair",
    "quote_closing": "microtome.behaviors.generators.code:quote_closing",
    "score": "microtome.behaviors.evaluate:evaluate",
    "self_assignment": "microtome.behaviors.generators.code:self_assignment",
    "subject_verb_agreement": "microtome.behaviors.generators.english:subject_verb_agreement",
    "two_digit_addition": "microtome.behaviors.generators.numbers:two_digit_addition",
    "with_as": "microtome.behaviors.generators.statements:with_as",
}

__all__ = sorted(_NAMES)

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
