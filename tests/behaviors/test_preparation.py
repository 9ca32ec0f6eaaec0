"""Preparation: what is dropped and why, what is refused by row, and which tokens roles cover."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.small import code_tokenizer, tokenizer_for

from microtome.behaviors import Behavior, Item, get, names
from microtome.behaviors.preparation import SHARES, Encoder
from microtome.errors import EmptyDataError, PairError, TokenizerError


class Letters:
    """A slow tokenizer: one token a letter, except the pieces it was given; ``?`` is unknown."""

    is_fast = False
    bos_token_id, eos_token_id, unk_token_id = 1, 2, 0

    def __init__(self, *pieces: str) -> None:
        letters = [chr(c) for c in range(32, 127) if chr(c) != "?"]
        self.pieces = ["<unk>", "<s>", "</s>", *sorted(pieces, key=len, reverse=True), *letters]

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        ids = []
        while text:
            piece = next((p for p in self.pieces[3:] if text.startswith(p)), text[0])
            ids.append(self.pieces.index(piece) if piece in self.pieces else 0)
            text = text[len(piece) :]
        return {"input_ids": ids}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i] for i in ids]


def item(clean: str, corrupt: str, answer: str = "x", wrong: str = "y", **more: object) -> Item:
    return Item(clean, corrupt, (answer,), (wrong,), "c", "t", source=f"row of {clean}", **more)  # type: ignore[arg-type]


def behavior(*items: Item, misfits: str = "drop") -> Behavior:
    return Behavior("b", "b", "", items, misfits=misfits)  # type: ignore[arg-type]


GOOD = item("ab", "ac")
MISFITS = [
    (item("ab", "abc"), "different numbers of tokens", "2 and 3: a|b and a|b|c"),
    (item("a?", "ab"), "does not know", "a|<unk> and a|b"),
    (item("ab", "ad", "?"), "does not know", "<unk> y"),
    (item("aq", "ae", "u"), "merges", ""),
    (item("ae", "aq", "u"), "merges", ""),
    (item("ab", "ae", "xy", "xz"), "begin with the same token", "x|y and x|z"),
]


@pytest.mark.parametrize(("misfit", "reason", "detail"), MISFITS)
def test_misfits_are_dropped_with_reason_or_refused_by_row(
    misfit: Item, reason: str, detail: str
) -> None:
    tokenizer = Letters("qu")
    found = behavior(GOOD, misfit).prepare(tokenizer)
    assert [e.text for e in found] == ["ab"]
    (drop,) = found.drops
    assert reason in drop.reason and drop.count == 1 and drop.instance == misfit.clean
    with pytest.raises((PairError, TokenizerError)) as refused:
        behavior(GOOD, misfit, misfits="refuse").prepare(tokenizer)
    assert misfit.source in str(refused.value) and reason in str(refused.value)
    assert detail in str(refused.value)
    assert isinstance(refused.value, TokenizerError) == ("does not know" in reason)


def test_a_refusal_counts_and_places_the_others() -> None:
    items = [GOOD, *(item(f"a{c}", f"b{c}c") for c in "defghijk")]
    with pytest.raises(PairError, match=r"row of ad .* 7 more do not fit: row of ae, .*, \.\.\."):
        behavior(*items, misfits="refuse").prepare(Letters())


def test_tokens_that_repeat_are_one_pair_and_same_tokens_none() -> None:
    class Deaf(Letters):
        def __call__(self, text: str, **more: object) -> dict[str, list[int]]:
            return super().__call__(text.lower(), **more)

    found = behavior(item("ab", "ac"), item("AB", "ac"), item("ad", "AD")).prepare(Deaf())
    assert len(found) == 1
    assert {d.reason: d.count for d in found.drops} == {
        "it repeats an earlier one": 1,
        "the two prompts are the same tokens": 1,
    }


def test_too_long_counts_the_answer() -> None:
    assert len(behavior(GOOD).prepare(Letters(), max_length=3)) == 1
    with pytest.raises(EmptyDataError, match="no item fits .* longer than the model's context"):
        behavior(GOOD).prepare(Letters(), max_length=2)


def test_an_end_token_named_unknown_is_no_unknown_text() -> None:
    tokenizer = Letters()
    tokenizer.eos_token_id = 0
    assert len(behavior(item("a?", "ab")).prepare(tokenizer)) == 1


def test_bos_shifts_roles() -> None:
    class Model:
        tokenizer, anatomy, bos = Letters(), None, True

    marked = item("abc", "adc", roles={"middle": ((1, 2), (1, 2)), "empty": ((1, 1), (1, 1))})
    plain = behavior(marked).prepare(Letters())[0]
    shifted = behavior(marked).prepare(Model())[0]
    assert plain.roles == {"middle": (1, 2), "end": (2, 3)}
    assert shifted.clean == (1, *plain.clean)
    assert shifted.roles == {"middle": (2, 3), "end": (3, 4)}


def test_a_role_covers_both_prompts() -> None:
    marked = item("abcd", "abcx", roles={"r": ((0, 1), (2, 4))})
    assert behavior(marked).prepare(Letters())[0].roles["r"] == (0, 4)


FAST = code_tokenizer()
TOKENIZERS = {name: tokenizer_for(name) for name in names()}
TEXTS = st.text(alphabet="ab ='\"([self.name, size\n", min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(text=TEXTS, data=st.data())
def test_prefixes_and_offsets_cover_the_same_tokens(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    encoder = Encoder(FAST, bos=False)
    ids = encoder.ids(text)
    covered = encoder.covering(text, ids, (start, stop))
    assert covered is not None
    first, last = covered
    assert FAST.decode(ids[:first]) == text[: len(FAST.decode(ids[:first]))]
    assert len(FAST.decode(ids[:first])) <= start and len(FAST.decode(ids[:last])) >= stop
    assert len(FAST.decode(ids[: first + 1])) > start
    assert len(FAST.decode(ids[: last - 1])) < stop


@settings(max_examples=40, deadline=None)
@given(text=st.text(alphabet="abcdef", min_size=1, max_size=12), data=st.data())
def test_slow_tokenizers_cover_by_prefixes(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    encoder = Encoder(Letters(), bos=True)
    assert encoder.covering(text, encoder.ids(text), (start, stop)) == (start + 1, stop + 1)


def test_a_slow_tokenizers_piece_is_covered_whole() -> None:
    encoder = Encoder(Letters("cde"), bos=False)
    ids = encoder.ids("abcdef")
    assert len(ids) == 4
    assert encoder.covering("abcdef", ids, (3, 4)) == (2, 3)
    assert encoder.covering("abcdef", ids, (1, 6)) == (1, 4)


def pool(split: str, template: str, count: int, answer: str) -> list[Item]:
    letters = [chr(c) for c in range(ord("A"), ord("A") + count)]
    made = [item(f"{template}{c}", f"{template}{c.lower()}", answer, "yy") for c in letters]
    return [replace(i, template=template, split=split) for i in made]  # type: ignore[type-var]


def test_templates_take_turns_and_longer_answers_only_fill_up() -> None:
    single = [*pool("train", "1", 9, "x"), *pool("train", "2", 2, "x")]
    single = [replace(i, wrongs=("y",)) for i in single]
    longer = pool("train", "3", 9, "xx")
    rest = [replace(i, split=s) for s, i in zip(("validation", "test"), single, strict=False)]
    of = Behavior("b", "b", "", (*longer, *single, *rest), n=8).prepare(Letters())
    train = of.split("train")
    assert [e.text for e in train] == ["1A", "2A", "1B", "2B"]
    assert train.single_token
    of = Behavior("b", "b", "", (*longer, *single, *rest), n=26).prepare(Letters())
    train = of.split("train")
    assert len(train) == 13 and sum(e.single_token for e in train) == 11
    assert [e.text for e in train[-2:]] == ["3A", "3B"]
    assert [e.index for e in of] == list(range(len(of)))


def test_what_is_not_needed_is_not_tried() -> None:
    bad = item("zz", "zzz")
    good = [replace(i, wrongs=("y",)) for i in pool("train", "1", 9, "x")]
    of = Behavior("b", "b", "", (*good[:6], replace(bad, split="train", template="1")), n=12)
    assert of.prepare(Letters()).drops == ()
    of = Behavior("b", "b", "", (*good[:6], replace(bad, split="train", template="1")), n=14)
    assert [d.count for d in of.prepare(Letters()).drops] == [1]


@pytest.mark.parametrize("name", names())
def test_every_generator_fills_every_split_for_a_byte_tokenizer(name: str) -> None:
    examples = get(name, n=40, seed=1).prepare(TOKENIZERS[name])
    counts = {s: len(examples.split(s)) for s in SHARES}
    assert counts == {"train": 20, "validation": 8, "test": 12}
    again = get(name, n=40, seed=1).prepare(TOKENIZERS[name])
    assert [e.clean for e in again] == [e.clean for e in examples]
    clusters = {s: set(examples.split(s).clusters) for s in SHARES}
    assert not clusters["train"] & (clusters["validation"] | clusters["test"])
    assert not clusters["validation"] & clusters["test"]
    templates = {s: {e.template for e in examples.split(s)} for s in SHARES}
    assert not templates["test"] & (templates["train"] | templates["validation"])
    assert len(templates["test"]) >= 2


@pytest.mark.parametrize("name", names())
def test_roles_cover_the_marked_text_and_pairs_compare(name: str) -> None:
    behavior, decode = get(name, n=40), TOKENIZERS[name].decode
    by_text = {(i.clean, i.corrupt): i for i in behavior.items}
    for e in behavior.prepare(TOKENIZERS[name]):
        made = by_text[e.text, decode(e.corrupt)]
        assert len(e.clean) == len(e.corrupt) and e.clean != e.corrupt
        assert not {a[0] for a in e.answers} & {w[0] for w in e.wrongs}
        if made.sets:
            whole = [made.clean + answer for answer in made.answers]
            starts = [decode((*e.clean, *tokens)) for tokens in e.answers]
            assert all(any(text.startswith(start) for text in whole) for start in starts)
        else:
            for answer, tokens in zip(made.answers, e.answers, strict=True):
                assert decode((*e.clean, *tokens)) == made.clean + answer
        for role, (span, other) in made.roles.items():
            start, stop = e.roles[role]
            assert made.clean[slice(*span)] in decode(e.clean[start:stop])
            assert made.corrupt[slice(*other)] in decode(e.corrupt[start:stop])
