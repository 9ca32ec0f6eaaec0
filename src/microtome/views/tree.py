"""A readable decision rule: nested conditions, each leaf with its class, n and purity.

Example::

    yes = RuleNode(n=250, label="double", purity=0.98)
    no = RuleNode(n=230, label="single", purity=0.97)
    RuleTree(RuleNode(n=480, label="double", purity=0.52, condition="opened by a double quote",
                      yes=yes, no=no))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from microtome.errors import ShapeError
from microtome.views import numbers
from microtome.views.glyphs import visible_label
from microtome.views.markup import Markup, join, tag
from microtome.views.prose import inline
from microtome.views.table import Cell, Table
from microtome.views.view import View


@dataclass(frozen=True, eq=False)
class RuleNode:
    """A node of a binary decision tree; a leaf has no condition.

    Attributes:
        n: Number of items that reach it.
        label: Class that most of them have.
        purity: Share of them that have it, 0 to 1.
        condition: What is asked, in words, or "" at a leaf.
        yes: Where items go for which it is true.
        no: Where the others go.

    Raises:
        ShapeError: A condition without two branches, branches without a condition, or branches
            whose items do not add up.
    """

    n: int
    label: str
    purity: float
    condition: str = ""
    yes: RuleNode | None = None
    no: RuleNode | None = None

    def __post_init__(self) -> None:
        """Check that the branches fit the condition and the count."""
        branches = [branch for branch in (self.yes, self.no) if branch is not None]
        if len(branches) != (2 if self.condition else 0):
            raise ShapeError(
                f"a rule node with condition {self.condition!r} has {len(branches)} branches; "
                "give two branches with a condition, none without"
            )
        if branches and sum(branch.n for branch in branches) != self.n:
            raise ShapeError(
                f"the branches of {self.condition!r} hold {[branch.n for branch in branches]} "
                f"items, but the node holds {self.n}; they must add up"
            )

    @property
    def leaves(self) -> int:
        """Number of leaves under the node."""
        if self.yes is None or self.no is None:
            return 1
        return self.yes.leaves + self.no.leaves


@dataclass(frozen=True, eq=False)
class RuleTree(View):
    """A decision tree as indented text.

    Attributes:
        root: The root.
        classes: What is predicted, such as "the model closes with".
    """

    root: RuleNode
    classes: str = "predicts"

    tabular = True

    def picture(self) -> Markup:
        """Return the tree as indented lines: condition, class, n, purity."""
        names = ("Rule", self.classes, "n", "purity")
        head = join(
            tag("th", name, scope="col", class_="num" if name == "n" else None) for name in names
        )
        if self.root.condition:
            lines = join(_lines(self.root, 0))
        else:
            lines = _line("always", "", self.root, 0)
        content = tag(
            "table",
            tag("thead", tag("tr", head)),
            tag("tbody", lines),
            class_="mt-table mt-tree",
        )
        return tag(
            "div", content, class_="mt-scroll", tabindex="0", role="group", aria_label="rule"
        )

    def table(self) -> Table:
        """Return one row per leaf: the path to it, class, n, purity."""
        return Table(("path", self.classes, "n", "purity"), list(_paths(self.root, "")))


def _paths(node: RuleNode, path: str) -> Iterator[tuple[Cell, ...]]:
    if node.yes is None or node.no is None:
        yield path or "always", visible_label(node.label), node.n, node.purity
        return
    head = f"{path} and " if path else ""
    yield from _paths(node.yes, f"{head}{node.condition}")
    yield from _paths(node.no, f"{head}not ({node.condition})")


def _lines(node: RuleNode, depth: int) -> Iterator[Markup]:
    for word, asked, branch in (("if", node.condition, node.yes), ("otherwise", "", node.no)):
        if branch is not None:
            yield _line(word, asked, branch, depth)
            yield from _lines(branch, depth + 1)


def _line(word: str, asked: str, node: RuleNode, depth: int) -> Markup:
    condition = (" ", inline(asked)) if asked else ()
    step = tag(
        "span",
        tag("span", word, class_="mt-word"),
        *condition,
        class_="mt-step",
        style=f"padding-left:{24 * depth}px",
    )
    share = tag("i", style=f"width:{100 * min(1.0, max(0.0, node.purity)):.1f}%")
    bar = tag("span", share, class_="mt-share", aria_hidden="true")
    leaf = not node.condition
    return tag(
        "tr",
        tag("td", step),
        tag("td", tag("bdi", visible_label(node.label)) if leaf else None, class_="mt-class"),
        tag("td", numbers.count(node.n), class_="num"),
        tag("td", *((bar, numbers.percent(node.purity)) if leaf else ()), class_="num left"),
    )
