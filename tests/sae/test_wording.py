"""Descriptions in words: a tiny model's answers computed by hand, an oracle's scores, records."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.sae.test_explanations import KNOWN, made
from tests.small import byte_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from microtome.errors import (
    ConfigError,
    DataError,
    EmptyDataError,
    PromptError,
    ShapeError,
    TokenizerError,
)
from microtome.sae import LatentIndex
from microtome.sae.reading.answers import (
    LanguageModel,
    Question,
    Record,
    Recorded,
    write_questions,
)
from microtome.sae.reading.scoring import half
from microtome.sae.reading.wording import Interview, InWords, explain_in_words, words_frame

ASKED = [Question("a", 0, "Is it so?", True), Question("b", 1, "Is it, after all, not so?", True)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer(["Yes No yes no Yes No yes no is it so? " * 30], 400)


@pytest.fixture(scope="module")
def language(tokenizer: PreTrainedTokenizerFast) -> LanguageModel:
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=1500)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = GPT2LMHeadModel(config)
    return LanguageModel(module, tokenizer=tokenizer, max_new_tokens=5)


@pytest.fixture(scope="module")
def index() -> LatentIndex:
    return made(KNOWN)


class Oracle:
    """Answers by the rules that the latents of ``KNOWN`` were made with; knows no other words."""

    name = "oracle"

    def texts(self, questions: Sequence[Question], progress: object = None) -> list[str]:
        return [f"rule {q.latent}" if "own" in q.id else "nothing" for q in questions]

    def margins(self, questions: Sequence[Question], progress: object = None) -> np.ndarray:
        rules = {"rule 0": " cat", "rule 1": "( ", "nothing": "\0"}
        found = []
        for q in questions:
            said = q.prompt.split("active on: ")[1].split("\n")[0]
            excerpt = q.prompt.split("Excerpt: ")[1].split("\n\nIs the")[0]
            if "between << and >>" in q.prompt:
                excerpt = excerpt.split("<<")[1].split(">>")[0]
            found.append(1.0 if rules.get(said, said) in excerpt else -1.0)
        return np.array(found)


def test_margins_are_the_log_odds_of_the_next_token(
    language: LanguageModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    yes, no = language.words()
    assert tokenizer.encode(" Yes")[0] in yes
    assert tokenizer.encode("no")[0] in no
    found = language.margins(ASKED)
    for question, margin in zip(ASKED, found, strict=True):
        ids = torch.tensor([tokenizer.encode(question.prompt)])
        with torch.no_grad():
            chances = language.module(ids).logits[0, -1].double().softmax(-1)
        assert margin == pytest.approx(float((chances[yes].sum() / chances[no].sum()).log()))
    np.testing.assert_allclose(language.margins(ASKED[::-1]), found[::-1], atol=1e-6)


def test_words_are_the_greedy_continuation(
    language: LanguageModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    for question, text in zip(ASKED, language.texts(ASKED), strict=True):
        ids = tokenizer.encode(question.prompt)
        start = len(ids)
        for _ in range(5):
            with torch.no_grad():
                ids.append(int(language.module(torch.tensor([ids])).logits[0, -1].argmax()))
        whole = tokenizer.decode(ids[start:], skip_special_tokens=True).strip()
        assert text == (whole.splitlines()[0].strip() if whole else "")


def test_a_chat_template_is_used(
    language: LanguageModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %} so"
    before = language.margins(ASKED)
    tokenizer.chat_template = template
    try:
        after = language.margins(ASKED)
    finally:
        tokenizer.chat_template = None
    wrapped = [Question(q.id, 0, f"[user] {q.prompt} so", True) for q in ASKED]
    np.testing.assert_allclose(after, language.margins(wrapped), atol=1e-6)
    assert not np.allclose(after, before)


def test_an_oracle_scores_high_and_the_baselines_do_not(index: LatentIndex) -> None:
    first, _ = explain_in_words(Interview(index, [0, 2], n=40), Oracle())
    assert first.text == "rule 0"
    assert first.explainer == "oracle"
    assert first.scores.fuzzing == first.scores.fuzzing_accuracy == 1.0
    assert first.scores.detection > 0.8
    for other in (first.random, first.shuffled):
        assert other.fuzzing == other.detection == 0.5
    assert (first.scores.n_tokens, first.scores.n_contexts % 2) == (40, 0)
    assert words_frame([first]).loc[0, "fuzzing_random"] == 0.5


def test_questions_show_one_half_and_are_scored_on_the_other(index: LatentIndex) -> None:
    interview = Interview(index, [0, 1], n=1000)
    learned = half(index, 0)
    asked = interview.explaining()
    assert len({q.id for q in asked}) == len(asked) == 4
    assert asked[0].prompt.count("Excerpt") == 2  # its activations all lie in one bin
    assert '" cat" 10' in asked[0].prompt
    words = interview.descriptions(["w"] * 4)
    scored = interview.scoring(words)
    assert all(q.yes_no for q in scored)
    assert [q.id for q in scored] == [q.id for q in interview.scoring(words)]

    def texts(part: np.ndarray) -> set[str]:
        rows = [index.ids[a:b] for a, b in zip(index.contexts, index.contexts[1:], strict=False)]
        shown = [r for r, a in zip(rows, index.contexts, strict=False) if part[a]]
        return {"".join(index.vocabulary[int(i)] for i in r) for r in shown}

    held, seen = texts(~learned), texts(learned)
    for question in scored:
        excerpt = question.prompt.split("Excerpt: ")[1].split("\n\nIs the")[0]
        plain = excerpt.replace("<<", "").replace(">>", "")
        assert any(plain in whole for whole in held)
    shown = asked[0].prompt.split("Excerpt 1: ")[1].split("\nActive:")[0]
    assert any(shown.replace("<<", "").replace(">>", "") in whole for whole in seen)


def test_recorded_answers_give_the_same_as_the_model(
    index: LatentIndex, language: LanguageModel, tmp_path: Path
) -> None:
    interview = Interview(index, [3], n=6)
    record = Record(language)
    (direct,) = explain_in_words(interview, record)
    record.save(tmp_path / "said.jsonl")
    recorded = Recorded.load(tmp_path / "said.jsonl")
    (again,) = explain_in_words(interview, recorded)
    assert (again.text, again.explainer) == (direct.text, "said.jsonl")
    assert again.scores.to_dict() == direct.scores.to_dict()
    assert InWords.load(direct.save(tmp_path / "r")).text == direct.text
    row = json.loads((tmp_path / "said.jsonl").read_text().splitlines()[0])
    assert row["prompt"] == interview.explaining()[0].prompt


def test_questions_are_answered_elsewhere_in_two_rounds(index: LatentIndex, tmp_path: Path) -> None:
    interview = Interview(index, [0, 2], n=8)
    path = tmp_path / "asked.jsonl"
    write_questions(interview.explaining(), path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["asks"] for r in rows] == ["words"] * 4
    nothing_yet = Recorded.load(path)
    assert len(nothing_yet.missing(interview.explaining())) == 4
    texts = Oracle().texts(interview.explaining())
    words = interview.descriptions(texts)
    answered = [{**r, "answer": t} for r, t in zip(rows, texts, strict=True)]
    scored = interview.scoring(words)
    margins = Oracle().margins(scored)
    answered += [
        {"id": q.id, "answer": "Yes, it is." if m > 0 else " no"}
        for q, m in zip(scored, margins, strict=True)
    ]
    path.write_text("\n".join(json.dumps(r) for r in answered))
    first = explain_in_words(interview, Recorded.load(path))[0]
    assert first.scores.fuzzing_accuracy == 1.0
    path.write_text("\n".join(json.dumps(r) for r in answered[:-1]))
    with pytest.raises(EmptyDataError, match=r"1 of \d+ questions"):
        explain_in_words(interview, Recorded.load(path))


def test_answers_that_cannot_be_used_are_refused(
    index: LatentIndex, language: LanguageModel, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "a", "answer": "perhaps"}\n\n')
    with pytest.raises(DataError, match="perhaps"):
        Recorded.load(path).margins(ASKED[:1])
    path.write_text('{"id": "a", "margin": NaN}')
    with pytest.raises(DataError, match="finite margin"):
        Recorded.load(path).margins(ASKED[:1])
    for broken in ("[1]", "{", '{"answer": "yes"}'):
        path.write_text(broken)
        with pytest.raises(DataError, match="line 1"):
            Recorded.load(path)
    with pytest.raises(DataError, match="cannot be read"):
        Recorded.load(tmp_path / "nowhere.jsonl")
    with pytest.raises(PromptError, match="1500 with the answer"):
        language.texts([Question("long", 0, "so " * 2000, False)])
    with pytest.raises(ConfigError, match="each once"):
        Interview(index, [1, 1])
    with pytest.raises(ConfigError, match="n=1"):
        Interview(index, [1, 2], n=1)
    with pytest.raises(EmptyDataError, match="no other latent"):
        Interview(made(KNOWN[:1]), [0])


def test_models_that_cannot_answer_are_refused(language: LanguageModel) -> None:
    with pytest.raises(TokenizerError, match="no tokenizer"):
        LanguageModel(language.module)
    with pytest.raises(ConfigError, match="batch_size=0"):
        LanguageModel(language.module, tokenizer=language.tokenizer, batch_size=0)
    with pytest.raises(ConfigError, match="does not generate"):
        LanguageModel(torch.nn.Linear(2, 2), tokenizer=language.tokenizer)
    module = copy.deepcopy(language.module)
    module.transformer.ln_f.weight.data.fill_(float("nan"))
    with pytest.raises(ShapeError, match="NaN"):
        LanguageModel(module, tokenizer=language.tokenizer).margins(ASKED)
    same = LanguageModel(language.module, tokenizer=_Blind())
    with pytest.raises(TokenizerError, match="same first token"):
        same.words()


class _Blind:
    """A tokenizer that knows a single token."""

    def encode(self, text: str, **_: object) -> list[int]:
        return [0] * len(text)


def test_answers_are_read_line_by_line_and_each_by_its_own_field(tmp_path: Path) -> None:
    path = tmp_path / "said.jsonl"
    rows = [
        {"id": "a", "prompt": "\u2028\x85", "answer": "brackets\u2028or not"},
        {"id": "b", "answer": None, "margin": 1.5},  # as questions are written out, margin added
        {"id": "c", "answer": None},
        {"id": "d", "answer": ["brackets"]},
    ]
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    recorded = Recorded.load(path)
    a, b, c, d = (Question(name, 0, "", False) for name in "abcd")
    assert recorded.texts([a]) == ["brackets\u2028or not"]
    assert recorded.margins([b]).tolist() == [1.5]
    assert recorded.missing([a, b, c, d]) == [c]
    for question in (b, d):
        with pytest.raises(DataError, match=f"answer to {question.id} is .*; expected a text"):
            recorded.texts([question])
    path.write_text(path.read_text() + "\n" + json.dumps(rows[1]))  # said twice
    assert Recorded.load(path).margins([b]).tolist() == [1.5]
    path.write_text(path.read_text() + "\n" + json.dumps({"id": "b", "margin": -1}))
    with pytest.raises(DataError, match="line 6: b was answered otherwise before"):
        Recorded.load(path)
