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
from microtome.views.markup import Markup, tag
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
    """A decision tree as nested text.

    Attributes:
        root: The root.
        classes: What is predicted, such as "the model closes with".
    """

    root: RuleNode
    classes: str = "predicts"

    def picture(self) -> Markup:
        """Return the tree as nested lists."""
        return tag("ul", self._branches(self.root), class_="mt-tree")

    def _branches(self, node: RuleNode) -> Markup:
        if node.yes is None or node.no is None:
            return tag("li", self._leaf("always", "", node))
        return self._branch("if", node.condition, node.yes) + self._branch("otherwise", "", node.no)

    def _branch(self, word: str, condition: str, node: RuleNode) -> Markup:
        if node.yes is None:
            return tag("li", self._leaf(word, condition, node))
        head = self._line(word, condition, numbers.count(node.n))
        return tag("li", head, tag("ul", self._branches(node)))

    def _line(self, word: str, condition: str, n: str) -> Markup:
        asked = tag("span", inline(condition)) if condition else None
        return tag(
            "span",
            tag("span", tag("span", word, class_="mt-word"), " " if condition else None, asked),
            tag("span", f"n {n}", class_="mt-facts"),
            class_="mt-rule",
        )

    def _leaf(self, word: str, condition: str, node: RuleNode) -> Markup:
        asked = tag("span", inline(condition)) if condition else None
        share = tag("i", style=f"width:{100 * min(1.0, max(0.0, node.purity)):.1f}%")
        outcome = tag(
            "span",
            tag("span", f"{self.classes} ", class_="mt-word"),
            tag("code", visible_label(node.label), dir="ltr"),
        )
        facts = f"n {numbers.count(node.n)} · {numbers.percent(node.purity)}"
        return tag(
            "span",
            tag("span", tag("span", word, class_="mt-word"), " " if condition else None, asked),
            outcome,
            tag(
                "span",
                tag("span", share, class_="mt-share", aria_hidden="true"),
                f" {facts}",
                class_="mt-facts",
            ),
            class_="mt-rule",
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
