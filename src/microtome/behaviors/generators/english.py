"""Behaviors in English: indirect object, pronoun, agreement, induction and entity tracking."""

from __future__ import annotations

from collections.abc import Callable

from microtome.behaviors.behavior import Behavior
from microtome.behaviors.generators.frames import Draft, Words, generate
from microtome.behaviors.generators.words import (
    ATTRACTORS,
    BOXES,
    BOYS,
    COMMON,
    GIFTS,
    GIRLS,
    INVENTED,
    IRREGULAR,
    NAMES,
    OBJECTS,
    PLACES,
    SINGULARS,
    unique,
)

POOL = 24
"""Items in the pool for each one wanted: names and plurals seldom have equal numbers of tokens."""


def indirect_object(n: int = 200, *, seed: int = 0) -> Behavior:
    """Name the person who received: "When Mary and John met, John gave a ball to" Mary.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in who gives, in both orders of the two names (Wang et al., 2022).
    """
    train = {
        "when": lambda w: _gift(w, "When {a} and {b} went to the {place}, {s} gave a {gift} to"),
        "then": lambda w: _gift(w, "{a} and {b} went to the {place}. Then {s} gave a {gift} to"),
        "after": lambda w: _gift(
            w, "After {a} and {b} came to the {place}, {s} handed the {gift} to"
        ),
        "while": lambda w: _gift(
            w, "While {a} and {b} were at the {place}, {s} gave the {gift} to"
        ),
        "friends": lambda w: _gift(
            w, "{a} and {b} are friends. At the {place}, {s} showed a {gift} to"
        ),
        "long day": lambda w: _gift(
            w, "It was a long day for {a} and {b}. {s} brought a {gift} to"
        ),
    }
    test = {
        "one day": lambda w: _gift(
            w, "One day, {a} and {b} met in the {place}. {s} wanted to give a {gift} to"
        ),
        "found": lambda w: _gift(
            w, "{a} found {b} near the {place}, and {s} offered the {gift} to"
        ),
        "since": lambda w: _gift(w, "Since {a} and {b} liked the {place}, {s} sold a {gift} to"),
    }
    return generate(
        "indirect-object",
        title="Naming the one who receives",
        description="Two people are named, one of them again as the giver; predict the other. The "
        "task's rule: the name that occurred once.",
        train=train,
        test=test,
        lists={"name": unique(NAMES), "place": PLACES, "gift": GIFTS},
        n=n,
        seed=seed,
        pool=POOL,
    )


def _gift(w: Words, shape: str) -> Draft:
    a, b = w.some("name", 2)
    first = w.chance(0.5)
    subject, receiver = (a, b) if first else (b, a)
    words = {"place": w.one("place"), "gift": w.one("gift")}

    def text(giver: str) -> str:
        named = {"a": f"⟦first name:{a}⟧", "b": f"⟦second name:{b}⟧", "s": f"⟦giver:{giver}⟧"}
        return shape.format(**named, **words)

    features = {
        "giver named": "first" if first else "second",
        "place": words["place"],
        "gift": words["gift"],
    }
    return Draft(
        text(subject), text(receiver), f" {receiver}", f" {subject}", words["place"], features
    )


def gendered_pronoun(n: int = 200, *, seed: int = 0) -> Behavior:
    """Refer to a person with the right pronoun: "The queen was happy." She.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in a noun or a name; frames in the register of children's stories are
        among them.
    """
    train = {
        "once": lambda w: _pronoun(
            w, "Once upon a time, there was a {x}.", "Once upon a time, there was {x}."
        ),
        "happy": lambda w: _pronoun(w, "The {x} was very happy.", "{x} was very happy."),
        "one day": lambda w: _pronoun(
            w, "One day, the {x} went to the park.", "One day, {x} went to the park."
        ),
        "friend": lambda w: _pronoun(w, "The {x} had a big red ball.", "{x} had a big red ball."),
        "loved": lambda w: _pronoun(
            w, "The {x} loved to play outside.", "{x} loved to play outside."
        ),
        "home": lambda w: _pronoun(w, "Then the {x} went home.", "Then {x} went home."),
        "named": lambda w: _called(w, "Once upon a time, there was a {x} named {name}."),
        "day and name": lambda w: _called(w, "One day, a {x} named {name} went to the park."),
    }
    test = {
        "little": lambda w: _pronoun(
            w, "There was a little {x} who liked to run.", "There was little {x} who liked to run."
        ),
        "saw": lambda w: _pronoun(
            w, "The {x} saw a dog in the garden.", "{x} saw a dog in the garden."
        ),
        "sad": lambda w: _pronoun(
            w, "In the house, the {x} was sad.", "In the house, {x} was sad."
        ),
        "wanted": lambda w: _pronoun(w, "The {x} wanted to go home.", "{x} wanted to go home."),
        "lived": lambda w: _called(w, "A {x} named {name} lived in a big house."),
        "big": lambda w: _called(w, "There was a big {x} named {name}."),
    }
    return generate(
        "gendered-pronoun",
        title="He or she",
        description="After a sentence about a person, predict He or She. The task's rule: the "
        "pronoun has the gender of the noun or name.",
        train=train,
        test=test,
        lists={"girl": GIRLS, "boy": BOYS, "invented": INVENTED},
        n=n,
        seed=seed,
        pool=POOL,
    )


def _pronoun(w: Words, noun_shape: str, name_shape: str) -> Draft:
    girl, boy = w.one("girl"), w.one("boy")
    while girl[0].isupper() != boy[0].isupper():
        girl, boy = w.one("girl"), w.one("boy")
    return _person(w, name_shape if girl[0].isupper() else noun_shape, girl, boy)


def _called(w: Words, shape: str) -> Draft:
    """Write about a person known by a noun, whose invented name does not tell the gender."""
    girl, boy = w.one("girl"), w.one("boy")
    while girl[0].isupper() or boy[0].isupper():
        girl, boy = w.one("girl"), w.one("boy")
    name = f"⟦name:{w.one('invented')}⟧"
    return _person(w, shape.replace("{name}", name), girl, boy)


def _person(w: Words, shape: str, girl: str, boy: str) -> Draft:
    female = w.chance(0.5)
    clean, corrupt = (girl, boy) if female else (boy, girl)
    right, wrong = (" She", " He") if female else (" He", " She")
    texts = [shape.format(x=f"⟦person:{x}⟧") for x in (clean, corrupt)]
    features = {
        "gender": "female" if female else "male",
        "known by": "name" if girl[0].isupper() else "noun",
        "letters": float(len(clean)),
    }
    return Draft(texts[0], texts[1], right, wrong, clean, features)


def subject_verb_agreement(n: int = 200, *, seed: int = 0) -> Behavior:
    """Agree with the subject's number past zero to two attractors: "The dogs near the house" were.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in the subject's number; attractors have either number.
    """
    train = {
        "no attractor": lambda w: _agreement(w, "The {s}", 0),
        "near": lambda w: _agreement(w, "The {s} near the {a}", 1),
        "behind": lambda w: _agreement(w, "The {s} behind the {a}", 1),
        "yesterday": lambda w: _agreement(w, "Yesterday, the {s}", 0),
        "by and in": lambda w: _agreement(w, "The {s} by the {a} in the {b}", 2),
        "big": lambda w: _agreement(w, "The big {s}", 0),
    }
    test = {
        "one day": lambda w: _agreement(w, "One day, the {s}", 0),
        "next to": lambda w: _agreement(w, "The {s} next to the {a}", 1),
        "under and on": lambda w: _agreement(w, "The {s} under the {a} on the {b}", 2),
        "happy": lambda w: _agreement(w, "The happy {s}", 0),
    }
    return generate(
        "subject-verb-agreement",
        title="Agreeing with the subject",
        description="After a subject and zero to two nouns behind it, predict was or were. The "
        "task's rule: the verb has the subject's number.",
        train=train,
        test=test,
        lists={"noun": SINGULARS, "attractor": ATTRACTORS},
        n=n,
        seed=seed,
        pool=POOL,
    )


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    if noun in IRREGULAR:
        return IRREGULAR[noun]
    if noun.endswith(("s", "x", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _agreement(w: Words, shape: str, attractors: int) -> Draft:
    noun = w.one("noun")
    nouns = w.some("attractor", 2)
    numbers = [w.chance(0.5) for _ in nouns]
    a, b = (plural(x) if many else x for x, many in zip(nouns, numbers, strict=True))
    many = w.chance(0.5)

    def text(is_plural: bool) -> str:
        subject = plural(noun) if is_plural else noun
        return shape.format(s=f"⟦subject:{subject}⟧", a=f"⟦attractor:{a}⟧", b=b)

    right, wrong = (" were", " was") if many else (" was", " were")
    features = {
        "subject": "plural" if many else "singular",
        "attractors": float(attractors),
        "nearest attractor": ("plural" if numbers[attractors - 1] else "singular")
        if attractors
        else "none",
    }
    return Draft(text(many), text(not many), right, wrong, noun, features)


def induction(n: int = 200, *, seed: int = 0) -> Behavior:
    """Continue a sequence that began again: "tree book fish ball tree" book.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in the last word, another word of the sequence (Olsson et al., 2022).
    """
    train = {
        "spaces": lambda w: _repeated(w, " ", 6),
        "commas": lambda w: _repeated(w, ", ", 5),
        "lines": lambda w: _repeated(w, "\n ", 5),
        "and": lambda w: _repeated(w, " and", 4, joined=" "),
        "long": lambda w: _repeated(w, " ", 9),
        "dots": lambda w: _repeated(w, ". ", 5),
    }
    test = {
        "semicolons": lambda w: _repeated(w, "; ", 5),
        "very long": lambda w: _repeated(w, " ", 11),
        "or": lambda w: _repeated(w, " or", 5, joined=" "),
        "dashes": lambda w: _repeated(w, " - ", 5),
    }
    return generate(
        "induction",
        title="Continuing a repeated sequence",
        description="A sequence of words begins again; predict the word that followed the last one "
        "before. The task's rule: copy what came after the earlier occurrence.",
        train=train,
        test=test,
        lists={"word": unique(COMMON)},
        n=n,
        seed=seed,
        pool=POOL,
    )


def _repeated(w: Words, separator: str, count: int, *, joined: str = "") -> Draft:
    words = w.some("word", count)
    place, other = (int(i) for i in w.random.choice(count - 1, size=2, replace=False))
    between = f"{separator}{joined}"
    marks = [f"⟦earlier copy:{x}⟧" if i == place else x for i, x in enumerate(words)]

    def text(last: str) -> str:
        return " " + between.join(marks) + between + f"⟦last word:{last}⟧" + between.rstrip(" ")

    features = {"words": float(count), "distance": float(count - place), "place": float(place + 1)}
    return Draft(
        text(words[place]),
        text(words[other]),
        f" {words[place + 1]}",
        f" {words[other + 1]}",
        words[place],
        features,
    )


def entity_tracking(n: int = 200, *, seed: int = 0) -> Behavior:
    """Say where a thing is: "The key is in the box. The ball is in the bag. The key is in the" box.

    Args:
        n: Examples over all splits.
        seed: Same seed, same items.

    Returns:
        Pairs that differ in the thing that is asked for.
    """
    train = {
        "is in": lambda w: _tracked(
            w, "The {a} is in the {x}. The {b} is in the {y}. The {q} is in the"
        ),
        "put": lambda w: _tracked(
            w, "She put the {a} in the {x} and the {b} in the {y}. The {q} is in the"
        ),
        "has": lambda w: _tracked(w, "The {x} has the {a}. The {y} has the {b}. The {q} is in the"),
        "there": lambda w: _tracked(
            w, "There is a {a} in the {x} and a {b} in the {y}. The {q} is in the"
        ),
        "saw": lambda w: _tracked(
            w, "He saw the {a} in the {x} and the {b} in the {y}. The {q} was in the"
        ),
        "look": lambda w: _tracked(
            w, "The {a} is in the {x}, the {b} is in the {y}. Look for the {q} in the"
        ),
    }
    test = {
        "inside": lambda w: _tracked(
            w, "Inside the {x} is the {a}. Inside the {y} is the {b}. The {q} is inside the"
        ),
        "moved": lambda w: _tracked(
            w, "The {a} was moved to the {x}. The {b} was moved to the {y}. The {q} is in the"
        ),
        "contains": lambda w: _tracked(
            w, "The {x} contains the {a}, and the {y} contains the {b}. They found the {q} in the"
        ),
    }
    return generate(
        "entity-tracking",
        title="Where a thing is",
        description="Two things are put in two places; predict the place of the one asked for. The "
        "task's rule: the place named with that thing.",
        train=train,
        test=test,
        lists={"thing": OBJECTS, "place": BOXES},
        n=n,
        seed=seed,
        pool=POOL,
    )


def _tracked(w: Words, shape: str) -> Draft:
    a, b = w.some("thing", 2)
    x, y = w.some("place", 2)
    while {a, b} & {x, y}:
        x, y = w.some("place", 2)
    first = w.chance(0.5)

    def text(asked: str) -> str:
        marked = {
            "a": f"⟦first thing:{a}⟧",
            "b": f"⟦second thing:{b}⟧",
            "x": f"⟦first place:{x}⟧",
            "y": f"⟦second place:{y}⟧",
        }
        return shape.format(**marked, q=f"⟦asked:{asked}⟧")

    right, wrong, asked, other = (x, y, a, b) if first else (y, x, b, a)
    features = {"asked": "first" if first else "second"}
    return Draft(text(asked), text(other), f" {right}", f" {wrong}", a, features)


GENERATORS: dict[str, Callable[..., Behavior]] = {
    "indirect-object": indirect_object,
    "gendered-pronoun": gendered_pronoun,
    "subject-verb-agreement": subject_verb_agreement,
    "induction": induction,
    "entity-tracking": entity_tracking,
}
"""Generators of English behaviors by name."""
