"""Typed values in, SVG and HTML out; knows no method and no model.

Every view is a frozen value with ``to_html()`` (a fragment), ``to_document()`` (one
self-contained file), ``table()`` (the numbers behind it) and, if it is drawn, ``to_svg()``.
The signatures::

    Estimate(value, low, high, label, unit, note); Estimate.of(interval, label=, unit=, note=)
    TokenRow(label, tokens, values); Span(name, start, stop)
    TokenStrip(rows, limit, unit, spans, title, note, scale, break_lines)
    TokenStrips(strips, limit, unit, scale)
    HeatMap(values, row_labels, col_labels, row_axis, col_axis, title, unit, zero, highlight,
            highlight_label, limit, signed)
    Node(name, kind, layer, index, label, strength, group)
    Edge(source, target, weight, port, group)
    CircuitDiagram(nodes, edges, n_layers, n_heads, has_mlp, max_edges, unit, strength_label,
                   limit, groups, left_out, note)
    Stage(size, nodes, edges, value, low, high); CircuitSlider(diagram, stages, curve, chosen)
    Series(name, x, y, low, high, category); NullBand(x, low, high, n, name)
    Curve(series, x_label, y_label, null, chosen, chosen_label, target, target_label, log_x,
          y_range)
    Histogram(edges, counts, x_label, what, baseline, baseline_label, category)
    Sample(name, values, category); Distribution(samples, baseline, x_label, baseline_label)
    Column(name, meaning, kind); Excerpt(tokens, values, note); Ranking(title, measure, rows)
    Item(number, words, cells, facts, excerpts, counts, span, rankings)
    Browser(items, columns, name, says, unit, heading)
    RuleNode(n, label, purity, condition, yes, no); RuleTree(root, classes)
    VerdictCard(grade, state, sentences, numbers, held_fixed, overturned_by)
    Control(name, must_show, value, baseline, passed, note); ControlsTable(controls)
    Table(columns, rows, caption)
    Figure(title, body, caption, n, clusters, baseline, interval, command, facts)
    Section(title, blocks, short); Details(summary, body, terms); Heading(text)
    Page(title, sections, verdict, kicker, dek, provenance, command, lang).to_html()

The module ``numbers`` writes numbers: ``number``, ``signed``, ``interval``, ``percent``,
``count``, ``seconds``. Each module's docstring has an example.
"""

from __future__ import annotations

from microtome.core.lazy import lazy_names

_HOMES = {
    "browser": ("Browser", "Column", "Excerpt", "Item", "Ranking"),
    "circuit": ("CircuitDiagram", "Edge", "Node"),
    "circuit_slider": ("CircuitSlider", "Stage"),
    "controls": ("Control", "ControlsTable"),
    "curve": ("Curve", "NullBand", "Series"),
    "distribution": ("Distribution", "Sample"),
    "figure": ("Figure",),
    "heatmap": ("HeatMap",),
    "histogram": ("Histogram",),
    "markup": ("Markup",),
    "numbers": ("Estimate",),
    "page": ("Details", "Heading", "Page", "Section"),
    "table": ("Table",),
    "tokens": ("Span", "TokenRow", "TokenStrip", "TokenStrips"),
    "tree": ("RuleNode", "RuleTree"),
    "verdict": ("VerdictCard",),
    "view": ("Drawing", "View"),
}
_NAMES = {
    name: f"microtome.views.{module}:{name}" for module, names in _HOMES.items() for name in names
}
__all__ = sorted(_NAMES)
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
