"""Made-up values for the gallery and the tests; nothing here was measured on a model."""

from __future__ import annotations

import numpy as np

from microtome.views import (
    CircuitDiagram,
    Control,
    ControlsTable,
    Curve,
    Distribution,
    Edge,
    Estimate,
    HeatMap,
    Node,
    NullBand,
    RuleNode,
    RuleTree,
    Sample,
    Series,
    Span,
    TokenRow,
    TokenStrip,
    TokenStrips,
    VerdictCard,
)

SVG = "{http://www.w3.org/2000/svg}"
LAYERS, HEADS = 4, 8
CLEAN = (
    "def",
    " read",
    "(",
    "path",
    "):",
    "\n   ",
    " name",
    " =",
    ' "',
    "data",
    "_",
    "file",
    ".",
    "txt",
)
CORRUPT = tuple(" '" if token == ' "' else token for token in CLEAN)
SECOND = ("    ", "return", " self", ".", "get", "(", '"', "key", " of", " it")
ROLES = ("function", "name", "before the quote", "opening quote", "inside", "last token")


def verdict() -> VerdictCard:
    """Return a verdict card."""
    return VerdictCard(
        grade="Sufficient and necessary",
        state="filled",
        sentences=(
            "Nine of the model's 36 heads and MLPs close a string with the quote that opened it, "
            "on twelve templates they were not searched on.",
            "Without them the model falls back to guessing; no circuit found the same way in a "
            "scrambled copy of the model comes close.",
        ),
        numbers=(
            Estimate(
                0.934,
                0.891,
                0.972,
                "Faithfulness of the circuit",
                note="asked: all inside [0.8, 1.2]",
            ),
            Estimate(
                0.912, 0.858, 0.951, "Effect lost without it", "%", note="asked: at least 80 %"
            ),
            Estimate(
                0.312, 0.104, 0.486, "Best of 20 null circuits", note="must stay below the circuit"
            ),
        ),
        held_fixed=(
            "Everything the two prompts of a pair share: names, indentation, the length of the "
            "string. The contrast explains the choice of the quote, not that a string ends here.",
            "Resample ablation: parts outside the circuit see the corrupt prompt.",
        ),
        overturned_by=(
            "A null circuit of nine parts that reaches 0.89 on the test templates.",
            "Faithfulness below 0.8 on natural code from packages that were not in training.",
        ),
    )


def strips() -> TokenStrips:
    """Return three pairs of prompts with the effect of each token."""
    rng = np.random.default_rng(1)

    def pair(tokens: tuple[str, ...], quote: int, title: str, note: str) -> TokenStrip:
        values = rng.normal(0, 0.12, len(tokens))
        values[quote], values[-1], values[quote + 1] = 4.31, 1.2, -0.84
        other = tuple(t.replace('"', "'") for t in tokens)
        rows = (TokenRow("clean", tokens, values), TokenRow("corrupt", other, -0.7 * values))
        spans = (Span("opening quote", quote, quote + 1), Span("string", quote + 1, len(tokens)))
        return TokenStrip(rows, spans=spans, title=title, note=note)

    return TokenStrips(
        (
            pair(
                CLEAN,
                8,
                "Template 7, assignment in a function",
                'The model closes with `"`: 0.981.',
            ),
            pair(SECOND, 6, "Template 11, argument of a call", 'The model closes with `"`: 0.942.'),
        ),
        unit="logits",
        scale="effect of patching the token's embedding",
    )


def position_map(*, columns: int = len(ROLES)) -> HeatMap:
    """Return a layer x position map."""
    rng = np.random.default_rng(2)
    values = rng.normal(0, 0.08, (LAYERS + 1, columns))
    values[:2, 3 % columns] += (3.9,)
    values[2, 3 % columns] += 1.6
    values[2, -1] += 2.1
    values[3:, -1] += 4.0
    values[1, 0] = -0.8
    zero = np.zeros_like(values, dtype=bool)
    zero[:, : min(3, columns - 1)] = True
    values[zero] = 0.0
    labels = ROLES if columns == len(ROLES) else [CLEAN[i % len(CLEAN)] for i in range(columns)]
    return HeatMap(
        values,
        row_labels=["embed", *(f"after {layer}" for layer in range(LAYERS))],
        col_labels=labels,
        row_axis="residual stream",
        col_axis="role of the token",
        title="logit difference restored",
        unit="logits",
        zero=zero,
    )


def head_map() -> HeatMap:
    """Return a layer x head map."""
    rng = np.random.default_rng(3)
    values = rng.normal(0, 0.06, (LAYERS, HEADS + 1))
    values[1, 2], values[2, 5], values[3, 1], values[3, 6] = 0.62, 1.94, 1.31, -0.57
    values[0, 4], values[:, -1] = 0.48, (0.35, -0.12, 0.28, 0.74)
    values[3, 3] = np.nan
    return HeatMap(
        values,
        col_labels=[*map(str, range(HEADS)), "MLP"],
        col_axis="head",
        title="attribution",
        unit="logits",
        highlight=((0, 4), (1, 2), (2, 5), (3, 1), (3, 6), (0, 8), (2, 8), (3, 8)),
    )


def wide_map() -> HeatMap:
    """Return a map of 24 layers and 60 positions with missing cells."""
    rng = np.random.default_rng(4)
    values = rng.normal(0, 0.2, (24, 60))
    values += 2.5 * np.exp(-((np.arange(24)[:, None] - 9) ** 2) / 20) * (np.arange(60) == 17)
    values -= 1.9 * np.exp(-((np.arange(24)[:, None] - 18) ** 2) / 20) * (np.arange(60) == 59)
    values[:3, 30:] = np.nan
    return HeatMap(values, col_labels=[CLEAN[i % len(CLEAN)] for i in range(60)], unit="logits")


def circuit() -> CircuitDiagram:
    """Return a small circuit with groups and ports."""
    nodes = (
        Node("embed", "embed", label="opening quote"),
        Node("rest", "embed", label="other tokens", index=1),
        Node("m0", "mlp", 0, strength=0.35),
        Node("a0.h4", "head", 0, 4, strength=0.48, group="previous token"),
        Node("a1.h2", "head", 1, 2, strength=0.62, group="quote detector"),
        Node("m2", "mlp", 2, strength=0.28),
        Node("a2.h5", "head", 2, 5, strength=1.94, group="quote mover"),
        Node("a3.h1", "head", 3, 1, strength=1.31, group="quote mover"),
        Node("a3.h6", "head", 3, 6, strength=-0.57, group="suppressor"),
        Node("m3", "mlp", 3, strength=0.74),
        Node("logits", "logits", label="logit of \" minus logit of '"),
    )
    edges = (
        Edge("embed", "m0", 0.9),
        Edge("rest", "m0", 0.2),
        Edge("embed", "a0.h4", 0.6, "v"),
        Edge("rest", "a0.h4", 0.3, "q"),
        Edge("m0", "a1.h2", 0.8, "v"),
        Edge("a0.h4", "a1.h2", 0.5, "k"),
        Edge("a1.h2", "a2.h5", 1.1, "k"),
        Edge("m0", "a2.h5", 0.7, "v"),
        Edge("a2.h5", "m2", 0.4),
        Edge("m2", "a3.h1", 0.3, "v"),
        Edge("a1.h2", "a3.h1", 0.6, "k"),
        Edge("a2.h5", "a3.h6", -0.5, "v"),
        Edge("a2.h5", "logits", 1.5),
        Edge("a3.h1", "m3", 0.5),
        Edge("a3.h1", "logits", 1.0),
        Edge("a3.h6", "logits", -0.6),
        Edge("m3", "logits", 0.7),
        Edge("embed", "a3.h1", 0.15, "v"),
    )
    return CircuitDiagram(nodes, edges, n_layers=LAYERS, n_heads=HEADS, unit="logits", max_edges=17)


def big_circuit(*, edges: int = 200, layers: int = 12, heads: int = 12) -> CircuitDiagram:
    """Return a circuit of many edges between random parts."""
    rng = np.random.default_rng(5)
    parts = [(layer, head) for layer in range(layers) for head in range(heads)]
    chosen = sorted(rng.choice(len(parts), size=min(len(parts), 58), replace=False))
    nodes = [Node("embed", "embed", label="embeddings"), Node("logits", "logits")]
    for layer, head in (parts[index] for index in chosen):
        nodes.append(Node(f"a{layer}.h{head}", "head", layer, head, strength=float(rng.normal())))
    nodes += [Node(f"m{k}", "mlp", k, strength=float(rng.normal())) for k in range(0, layers, 2)]
    depth = {
        n.name: {"embed": -1, "logits": 99}.get(n.kind, n.layer + 0.5 * (n.kind == "mlp"))
        for n in nodes
    }
    pairs = [(a.name, b.name) for a in nodes for b in nodes if depth[a.name] < depth[b.name]]
    picks = sorted(rng.choice(len(pairs), size=min(len(pairs), edges + 312), replace=False))
    links = [Edge(*pairs[index], float(rng.normal() ** 3)) for index in picks]
    return CircuitDiagram(nodes, links, n_layers=layers, n_heads=heads, max_edges=edges)


def curve() -> Curve:
    """Return a faithfulness curve with nulls and a second finder."""
    sizes = np.array([1, 2, 3, 4, 6, 9, 13, 18, 25, 36])
    main = 1.02 / (1 + np.exp(-1.5 * (sizes - 4.2) / 1.6)) + 0.01
    other = 1.0 / (1 + np.exp(-0.8 * (sizes - 9) / 2.2))
    null = np.linspace(0.02, 1.0, len(sizes)) ** 2.6
    return Curve(
        (
            Series("this circuit", sizes, main, low=main - 0.06, high=main + 0.05),
            Series("same parts, at random", sizes, other * 0.9),
        ),
        x_label="heads and MLPs kept",
        y_label="faithfulness on the test templates",
        null=NullBand(sizes, null * 0.6 - 0.08, null + 0.08, n=20, name="searched nulls"),
        chosen=9,
        target=(0.8, 1.2),
        log_x=True,
    )


def controls() -> ControlsTable:
    """Return a table of controls."""
    return ControlsTable(
        (
            Control(
                "Accuracy on test",
                "the interval above chance and above the best n-gram",
                Estimate(0.968, 0.941, 0.987, unit="%"),
                "n-gram 61.2 %",
                True,
            ),
            Control(
                "Searched nulls",
                "no null of equal size scores as high as the circuit",
                Estimate(0.312, 0.104, 0.486),
                "0.934, the circuit",
                True,
                note="20 twins of the model, the same finder and budget",
            ),
            Control(
                "Inverted answers",
                "the finder must not reach the gate on wrong answers",
                Estimate(0.231, 0.182, 0.288, unit="%"),
                "gate 61.2 %",
                True,
            ),
            Control(
                "Random, matched by layer",
                "stands lower than the circuit",
                Estimate(0.071, 0.012, 0.155),
                "0.934, the circuit",
                True,
            ),
            Control(
                "Mean ablation",
                "the same grade under another ablation",
                Estimate(0.842, 0.771, 0.903),
                "[0.8, 1.2]",
                None,
                note="the interval crosses the lower end",
            ),
            Control(
                "Natural code",
                "faithfulness inside [0.8, 1.2] outside the templates",
                Estimate(0.713, 0.642, 0.781),
                "[0.8, 1.2]",
                False,
            ),
        )
    )


def rule() -> RuleTree:
    """Return a decision rule of three leaves."""
    double = RuleNode(244, '"', 0.992)
    nested = RuleNode(
        236,
        "'",
        0.911,
        "a double quote follows the single one",
        yes=RuleNode(31, '"', 0.774),
        no=RuleNode(205, "'", 0.985),
    )
    root = RuleNode(480, '"', 0.573, 'the string was opened by `"`', yes=double, no=nested)
    return RuleTree(root, "the model closes with")


def operation() -> Distribution:
    """Return the behavior before and after the circuit is cut out."""
    rng = np.random.default_rng(6)
    return Distribution(
        (
            Sample("whole model", rng.normal(5.2, 1.1, 64)),
            Sample("circuit cut out", rng.normal(0.4, 0.9, 64)),
        ),
        baseline=Sample("corrupt prompt", rng.normal(-4.6, 1.2, 64)),
        x_label="logit difference (logits)",
    )


def drift() -> Distribution:
    """Return the change of the loss on other text."""
    rng = np.random.default_rng(7)
    return Distribution(
        (
            Sample("circuit cut out", rng.gamma(2.0, 0.012, 640)),
            Sample("random parts cut out", rng.gamma(2.2, 0.021, 640)),
        ),
        baseline=0.0,
        baseline_label="no change",
        x_label="rise of the loss on other code (nats per token)",
    )
