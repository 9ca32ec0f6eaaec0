"""Hypothesis files, causal scrubbing and interchange: errors, and models whose truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.circuits.planted import planted_model
from tests.small import save_model
from typer.testing import CliRunner

from microtome.behaviors import Behavior, Examples, quote_closing
from microtome.behaviors.items import Item
from microtome.circuits import load_hypothesis, parse_hypothesis, scrub, swap_claims
from microtome.circuits.hypotheses.expressions import parse
from microtome.circuits.hypotheses.interchange import Interchange
from microtome.circuits.hypotheses.scrubbed_runs import Pool, Tree
from microtome.circuits.hypotheses.scrubbing import Scrubbing
from microtome.cli.app import app
from microtome.core.seeds import rng
from microtome.errors import ConfigError, DataError, FormatError, UnknownNameError
from microtome.tracing.model import Model
from microtome.tracing.opening import load

LAST = """
[hypothesis]
name = "the MLPs read the last mark"
[variables]
last = 'at(-1)'
[claims.mlps]
parts = ["m0"]
carries = 'last'
[output]
reads = ["mlps", "tokens"]
"""

DIFFERENCE = "logit_difference"

SPECIMEN = """
[hypothesis]
name = "all at the end carries the quote to be closed"
predicts = 'quote'
[variables]
quote = 'answer'
[claims.end]
parts = ["a*", "m*"]
carries = 'quote'
at = "end"
"""


def marks(model: Model) -> Behavior:
    """Three marks each; the right quote is the one that the model says more than elsewhere."""
    quotes = [model.tokenize(q)[0] for q in ("'", '"')]
    said = {m: model.trace([f"(={m}"]).last()[0][quotes] for m in "+-*/"}
    leaning = {m: float(v[0] - v[1]) for m, v in said.items()}
    middle_way = sum(leaning.values()) / 4
    items = []
    for first in "([{<":
        for number, last in enumerate("+-*/"):
            other = "+-*/"[(number + 1) % 4]
            right, wrong = ("'", '"') if leaning[last] > middle_way else ('"', "'")
            roles = {"first": ((0, 1), (0, 1)), "last": ((2, 3), (2, 3))}
            for middle in "=!":
                items.append(
                    Item(
                        first + middle + last,
                        first + middle + other,
                        (right,),
                        (wrong,),
                        cluster=f"{first}{middle}{last}",
                        template="marks",
                        roles=roles,
                        features={"kind": last},
                    )  # fmt: skip
                )
    return Behavior("marks", "Marks", "Three marks.", tuple(items))


@pytest.fixture(scope="module")
def model() -> Model:
    """Only the first MLP writes, so the logits depend on the last token alone."""
    return planted_model(["m0"])


@pytest.fixture(scope="module")
def examples(model: Model) -> Examples:
    return marks(model).prepare(model)


def test_the_true_hypothesis_recovers_all_and_a_false_one_does_not(
    model: Model, examples: Examples, tmp_path: Path
) -> None:
    found = scrub(model, examples, parse_hypothesis(LAST), metric=DIFFERENCE)
    assert found.recovered.value == pytest.approx(1.0, abs=1e-4)
    assert found.recovered.low == pytest.approx(1.0, abs=1e-3)
    assert found.same_item.value == pytest.approx(1.0, abs=1e-4)
    assert found.p == pytest.approx(1 / 21) and found.null.max() < 0.99
    assert found.alone == {"mlps": 0.0}
    first = LAST.replace("'at(-1)'", "\"token('first')\"")
    wrong = scrub(model, examples, parse_hypothesis(first), metric=DIFFERENCE)
    assert wrong.recovered.high < 0.9
    assert wrong.same_item.value == pytest.approx(1.0, abs=1e-4)
    assert wrong.p > 0.05, "the wrong variable is no better than a random one"
    again = scrub(model, examples, parse_hypothesis(LAST), metric=DIFFERENCE)
    np.testing.assert_array_equal(again.scrubbed, found.scrubbed)
    loaded = Scrubbing.load(found.save(tmp_path / "s.json"))
    assert loaded.to_frame().equals(found.to_frame())


def test_parts_that_write_nothing_recover_nothing(model: Model, examples: Examples) -> None:
    text = LAST.replace('"m0"', '"a0.h0", "m1"').replace(', "tokens"', "")
    found = scrub(
        model, examples, parse_hypothesis(text), relabelings=0, draws=60, metric=DIFFERENCE
    )
    assert abs(found.recovered.value) < 0.2 and found.p == 1.0
    assert found.same_item.value == pytest.approx(0.0, abs=0.2)


def test_recursion_equals_patching_by_hand() -> None:
    """A claim that reads another sees its value from a third prompt, all else from a fourth."""
    model = planted_model(["a0.h1", "a0.h2", "a1.h2", "m1"])
    examples = marks(model).prepare(model)
    hypothesis = parse_hypothesis(
        """
        [variables]
        last = 'at(-1)'
        [claims.late]
        parts = ["m1"]
        carries = 'last'
        reads = ["early"]
        [claims.early]
        parts = ["a0.h1"]
        carries = 'last'
        """
    ).resolved(
        model_parts := tuple(f"a{n}.h{h}" for n in range(2) for h in range(4)) + ("m0", "m1")
    )
    assert len(model_parts) == 10
    pool = Pool(model, examples, hypothesis)
    (group,) = pool.groups
    labels = pool.labels()
    items = group.clean[:5]
    fast = Tree(pool, group, hypothesis, labels, rng(0, "x")).logits(items)
    # the same draws, one item at a time and with plain patches
    random = rng(0, "x")
    outer = random.integers(0, len(group.members), len(items))
    agree = labels["late"][group.members]
    late = [int(random.choice(np.flatnonzero(agree == agree[i]))) for i in items]
    inner = random.integers(0, len(group.members), len(items))
    agree = labels["early"][group.members]
    early = [int(random.choice(np.flatnonzero(agree == agree[i]))) for i in late]
    from microtome.tracing.sites import at

    def prompt(number: int) -> list[int]:
        return group.tokens[number].tolist()

    for row in range(len(items)):
        seen = model.trace([prompt(early[row])], capture=["attn.z"])
        rest = model.trace([prompt(int(inner[row]))], capture=["attn.z", "mlp.out"])
        changes = [
            at("blocks.0.attn.z").patch(rest),
            at("blocks.0.attn.z[head=1]").patch(seen),
            at("blocks.0.mlp.out").patch(rest),
            at("blocks.1.attn.z").patch(rest),
        ]
        run = model.trace([prompt(int(inner[row]))], interventions=changes, capture=["mlp.out"])
        base = prompt(int(outer[row]))
        plain = model.trace([base], capture=["attn.z", "mlp.out"])
        last = [at(f"blocks.{n}.{s}").patch(plain) for n in (0, 1) for s in ("attn.z", "mlp.out")]
        slow = model.trace([base], interventions=[*last, at("blocks.1.mlp.out").patch(run)]).last()
        np.testing.assert_allclose(fast[row].numpy(), slow[0].numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def specimen() -> tuple[Model, Examples]:
    model = load("python-code")
    return model, quote_closing(100).prepare(model).split("test")


def test_swapping_all_that_is_said_at_the_end_swaps_the_answer(
    specimen: tuple[Model, Examples], tmp_path: Path
) -> None:
    model, examples = specimen
    found = swap_claims(model, examples, parse_hypothesis(SPECIMEN), random_parts=3)
    (end,) = found.claims
    assert end.pairs > 20 and end.accuracy.value > 0.85
    assert end.unswapped < 0.15 and end.chance == pytest.approx(0.5, abs=0.15)
    assert end.unchanged > 0.85 and len(end.random) == 0 and end.p == 1.0
    loaded = Interchange.load(found.save(tmp_path / "i.json"))
    assert loaded.to_frame().equals(found.to_frame())


def test_a_head_that_does_not_carry_it_does_not_swap_it(
    specimen: tuple[Model, Examples],
) -> None:
    model, examples = specimen
    text = SPECIMEN.replace('"a*", "m*"', '"a3.h0"')
    (claim,) = swap_claims(model, examples, parse_hypothesis(text), random_parts=3).claims
    assert claim.accuracy.value < 0.5 and len(claim.random) > 0


def test_scrubbing_the_specimen_with_the_right_variable(
    specimen: tuple[Model, Examples],
) -> None:
    model, examples = specimen
    text = SPECIMEN.replace('at = "end"', "")
    found = scrub(
        model, examples, parse_hypothesis(text), metric=DIFFERENCE, relabelings=19, draws=1
    )
    assert found.recovered.value > 0.8 and found.p == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("[claims", FormatError, "no TOML"),
        ("", DataError, "no claims"),
        ("[claim.x]\nparts=['m0']", DataError, "unknown key 'claim'.*claims"),
        ("[claims.x]\nparts=['m0']", DataError, "carries is missing"),
        ("[claims.x]\nparts=[]\ncarries='answer'", DataError, "parts is empty"),
        ("[claims.x]\nparts='m0'\ncarries='answer'", DataError, "list of texts"),
        ("[claims.x]\nparts=['m0']\ncarries='answr'", DataError, "answr.*answer"),
        ("[claims.x]\nparts=['m0']\ncarries='answer'\nat=3", DataError, "role"),
        ("[claims.x]\nparts=['m0']\ncarries='answer'\nreads=['y']", DataError, "no claim"),
        ("[claims.x]\nparts=['m0']\ncarries='answer'\nreads=['x']", DataError, "circle"),
        ("[claims.x]\nparts=['m0']\ncarries='answer'\nwhere='end'", DataError, "unknown key"),
        ("[claims.tokens]\nparts=['m0']\ncarries='answer'", DataError, "name it otherwise"),
        (
            "[variables]\nanswer='wrong'\n[claims.x]\nparts=['m0']\ncarries='1'",
            DataError,
            "name of",
        ),
        ("claims=3", DataError, "expected a table"),
    ],
)
def test_files_that_are_not_understood(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_hypothesis(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no expression"),
        ("1 +", "no expression"),
        ("a" * 600, "600 characters"),
        ("__import__('os')", "no function"),
        ("token.__class__", "Attribute is not allowed"),
        ("[x for x in (1,)]", "ListComp"),
        ("lambda: 1", "Lambda"),
        ("2 ** 9", "BinOp"),
        ("None", "not allowed"),
        ("token(role='x')", "named arguments"),
    ],
)
def test_expressions_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse(text, "here")


def test_expressions_are_computed() -> None:
    names = {"a": 3, "b": 4, "name": "x"}
    for text, value in {
        "a + b * 2": 11,
        "a == 3 and not b < 4": True,
        "'yes' if a in (1, 3) else 'no'": "yes",
        "(a, name)": (3, "x"),
        "-a % 2": 1,
        "1 < a < 4": True,
        "b // a": 1,
        "a or b": True,
    }.items():
        assert parse(text, "here")(names, {}) == value
    with pytest.raises(DataError, match="cannot be computed"):
        parse("name * 1000000000", "here")(names, {})
    with pytest.raises(DataError, match="cannot be computed"):
        parse("a // 0", "here")(names, {})


def test_hypotheses_that_do_not_fit_the_model(model: Model, examples: Examples) -> None:
    def text(claim: str, extra: str = "") -> str:
        return f"[claims.x]\ncarries = 'answer'\n{claim}\n{extra}"

    for wrong, error, message in [
        ("parts = ['a0.h9']", UnknownNameError, "a0.h9"),
        ("parts = ['z*']", UnknownNameError, "no part"),
        ("parts = ['m0']\nat = 'lats'", DataError, "lats.*last"),
        (
            "parts = ['m0']\n[claims.y]\nparts = ['m*']\ncarries = '1'", DataError,
            "in two claims",
        ),
        (
            "parts = ['m0']\nreads = ['y']\n[claims.y]\nparts = ['m1']\ncarries = '1'", DataError,
            "none of its parts",
        ),
    ]:  # fmt: skip
        with pytest.raises(error, match=message):
            scrub(model, examples, parse_hypothesis(text(wrong)))
    for carries, message in [
        ("token('nowhere')", "No role"), ("at(9)", "has 3 tokens"), ("feature('kid')", "kind"),
        ("token_id('two words')", "not one"),
    ]:  # fmt: skip
        bad = parse_hypothesis(text("parts = ['m0']").replace("'answer'", f'"{carries}"'))
        with pytest.raises(DataError, match=message):
            scrub(model, examples, bad)
    with pytest.raises(ConfigError, match="draws"):
        scrub(model, examples, parse_hypothesis(LAST), draws=0)
    with pytest.raises(DataError, match="nothing is predicted"):
        swap_claims(model, examples, parse_hypothesis(LAST))
    with pytest.raises(DataError, match="expected a token's id"):
        swap_claims(
            model,
            examples,
            parse_hypothesis("hypothesis.predicts = 'template'\n" + text("parts = ['m0']")),
        )
    with pytest.raises(FormatError, match="cannot be read"):
        load_hypothesis("missing.toml")


def test_features_keep_to_clean_prompts(model: Model, examples: Examples) -> None:
    text = LAST.replace("'at(-1)'", "\"feature('kind')\"")
    pool = Pool(model, examples, parse_hypothesis(text).resolved(("m0",)))
    assert len(pool.prompts) == len(examples)
    found = scrub(model, examples, parse_hypothesis(text), relabelings=1, metric=DIFFERENCE)
    assert found.recovered.value == pytest.approx(1.0, abs=1e-4)


def test_the_command(model: Model, tmp_path: Path) -> None:
    folder = save_model(model, tmp_path / "model")
    pairs, file = tmp_path / "marks.jsonl", tmp_path / "h.toml"
    marks(model).save(pairs)
    file.write_text(LAST, encoding="utf-8")
    command = ["circuit", "test", str(folder), str(pairs), str(file), "--relabelings", "2"]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "recovered under the hypothesis" in shown.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert found["scrubbing"]["recovered"]["value"] == pytest.approx(1.0, abs=1e-3)
    assert found["interchange"] is None
    wrong = CliRunner().invoke(app, [*command, "--split", "tset"])
    assert wrong.exit_code != 0
