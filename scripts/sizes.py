"""Report the sizes of files, functions and classes, and fail past the caps.

Run as ``python scripts/sizes.py``. Counted are lines from the first to the last, docstrings
included. For ``src`` it also fails on a function without full annotations and on a public
module, class or function without a docstring; ``tests`` is listed for information.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CAPS = {"file": 600, "function": 80, "class": 300}
HABITS = {"file": 400, "function": 40}

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Count:
    """What one tree of source files holds.

    Attributes:
        sizes: Kind to the place and length in lines of each file, function and class.
        functions: Number of functions.
        unannotated: Places of functions that lack an annotation.
        undocumented: Places of public things without a docstring.
        documented: Number of public things with a docstring.
    """

    sizes: dict[str, list[tuple[int, str]]] = field(
        default_factory=lambda: {"file": [], "function": [], "class": []}
    )
    functions: int = 0
    unannotated: list[str] = field(default_factory=list)
    undocumented: list[str] = field(default_factory=list)
    documented: int = 0


def count(folder: Path) -> Count:
    """Count every Python file below a folder."""
    found = Count()
    for path in sorted(folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        name = path.relative_to(ROOT).as_posix()
        found.sizes["file"].append((len(text.splitlines()), name))
        tree = ast.parse(text, filename=name)
        if text.strip():
            _document(found, tree, f"{name}:1")
        for node, public in _definitions(tree, public=True):
            _count_definition(found, node, public, f"{name}:{node.lineno} {node.name}")
    return found


def _definitions(node: ast.AST, *, public: bool) -> Iterator[tuple[Function | ast.ClassDef, bool]]:
    """Yield every function and class below a node, and whether it can be reached by users."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef):
            is_public = public and not child.name.startswith("_")
            yield child, is_public
            inside = is_public and isinstance(child, ast.ClassDef)
            yield from _definitions(child, public=inside)
        else:
            yield from _definitions(child, public=public)


def _count_definition(
    found: Count, node: Function | ast.ClassDef, public: bool, place: str
) -> None:
    """Add one function or class to the count."""
    kind = "class" if isinstance(node, ast.ClassDef) else "function"
    found.sizes[kind].append(((node.end_lineno or node.lineno) - node.lineno + 1, place))
    if isinstance(node, Function):
        found.functions += 1
        if not _annotated(node):
            found.unannotated.append(place)
    if public:
        _document(found, node, place)


def _document(found: Count, node: ast.Module | Function | ast.ClassDef, place: str) -> None:
    """Note whether a public thing has a docstring; overloads need none."""
    decorators = (
        [] if isinstance(node, ast.Module) else [ast.unparse(d) for d in node.decorator_list]
    )
    if any(name.endswith(("overload", ".setter")) for name in decorators):
        return
    if ast.get_docstring(node):
        found.documented += 1
    else:
        found.undocumented.append(place)


def _annotated(node: Function) -> bool:
    """Return whether every argument but self and cls, and the result, has an annotation."""
    a = node.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
    missing = [x for x in arguments if x.annotation is None and x.arg not in ("self", "cls")]
    return node.returns is not None and not missing


def _row(kind: str, sizes: list[tuple[int, str]]) -> str:
    """Return one line of the table: number, median, 90th percentile, maximum and its place."""
    lengths = sorted(length for length, _ in sizes)
    if not lengths:
        return f"  {kind:<9}     0"
    high = lengths[min(len(lengths) - 1, int(0.9 * len(lengths)))]
    longest, place = max(sizes)
    median = statistics.median(lengths)
    return f"  {kind:<9} {len(lengths):5d} {median:8g} {high:6d} {longest:6d}  {place}"


def report(name: str, found: Count) -> int:
    """Print the table of one tree and return its number of lines."""
    lines = sum(length for length, _ in found.sizes["file"])
    print(f"{name}: {lines:,} lines\n  {'kind':<9} {'n':>5} {'median':>8} {'p90':>6} {'max':>6}")
    for kind, sizes in found.sizes.items():
        print(_row(kind, sizes))
    return lines


def failures(found: Count) -> list[str]:
    """Return what breaks a rule: one line per file, function or class."""
    lines = [
        f"{kind} of {length} lines (cap {CAPS[kind]}): {place}"
        for kind, sizes in found.sizes.items()
        for length, place in sizes
        if length > CAPS[kind]
    ]
    lines += [f"not fully annotated: {place}" for place in found.unannotated]
    lines += [f"no docstring: {place}" for place in found.undocumented]
    return lines


def main() -> int:
    """Print the report and return 1 if a rule is broken."""
    source, tests = count(ROOT / "src"), count(ROOT / "tests")
    lines = report("src", source)
    test_lines = report("tests", tests)
    total = source.documented + len(source.undocumented)
    annotated = source.functions - len(source.unannotated)
    print(f"annotated functions: {annotated} of {source.functions}")
    print(f"public docstrings: {source.documented} of {total}")
    print(f"tests per line of src: {test_lines / max(lines, 1):.2f}")
    for kind, habit in HABITS.items():
        for length, place in sorted(source.sizes[kind], reverse=True):
            if habit < length <= CAPS[kind]:
                print(f"beyond the habit of {habit}: {kind} of {length} lines, {place}")
    broken = failures(source)
    for line in broken:
        print(f"FAILED {line}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
