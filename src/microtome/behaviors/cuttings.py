"""Natural items: pairs cut from real Python files, for the code behaviors' test split."""

from __future__ import annotations

import ast
import io
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from microtome.behaviors.items import Feature, Item
from microtome.core.seeds import rng
from microtome.errors import DataError, EmptyDataError, UnknownNameError, nearest

LOOK_BACK = 240
"""Characters of the file that a prompt keeps at most, from a line's start."""


def natural(
    behavior: str, *, paths: Iterable[str | Path] | None = None, n: int = 100, seed: int = 0
) -> tuple[Item, ...]:
    """Cut items of a code behavior from real Python files.

    Args:
        behavior: ``quote-closing``, ``bracket-closing``, ``self-assignment`` or
            ``default-or-close``.
        paths: Files, or folders of them; by default those of the running Python's standard library.
            A file that a model was trained on is no test of it. Files that this Python cannot parse
            are left out.
        n: How many items, at most four from one file.
        seed: Which ones.

    Returns:
        Items of the test split, one cluster a file.

    Raises:
        DataError: If a file does not exist.
        UnknownNameError: If the behavior has no natural items.
        EmptyDataError: If the files hold none.
    """
    key = behavior.replace("_", "-")
    if key not in _CUTTERS:
        raise UnknownNameError(f"{behavior!r} has no natural items{nearest(key, _CUTTERS)}.")
    files = _standard_library() if paths is None else _python_files(paths)
    random = rng(seed, "natural", key)
    items: list[Item] = []
    seen: set[tuple[str, str]] = set()
    for number in random.permutation(len(files)):
        if len(items) >= n:
            break
        found = list(_from_file(files[int(number)], key))
        chosen = random.permutation(len(found))[:4]
        for place in sorted(chosen):
            item = found[int(place)]
            if (item.clean, item.corrupt) not in seen:
                seen.add((item.clean, item.corrupt))
                items.append(item)
    if not items:
        raise EmptyDataError(f"{len(files)} files hold no natural items of {behavior}.")
    return tuple(items[:n])


def _standard_library() -> list[Path]:
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [p for p in sorted(folder.glob("*.py")) if p.stat().st_size < 80_000]


def _python_files(paths: Iterable[str | Path]) -> list[Path]:
    files: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise DataError(f"There is no file {path}; give Python files or folders of them.")
        files += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return files


def _parsed(text: str) -> ast.Module:
    with warnings.catch_warnings():
        # what the parser thinks of a stranger's escapes is not for our reader
        warnings.simplefilter("ignore")
        return ast.parse(text)


def _from_file(path: Path, behavior: str) -> Iterator[Item]:
    try:
        text = path.read_text(encoding="utf-8")
        _parsed(text)
    except (OSError, UnicodeDecodeError, SyntaxError, ValueError):
        return
    for start, end, opener, swapped, answer, wrong, features in _CUTTERS[behavior](text):
        begin = _line_start(text, start)
        prompt = text[begin:end]
        corrupt = text[begin:start] + swapped + text[start + len(opener) : end]
        if prompt == corrupt or "⟦" in prompt:
            continue
        span = (start - begin, start - begin + len(opener))
        yield Item(
            clean=prompt,
            corrupt=corrupt,
            answers=(answer,),
            wrongs=(wrong,) if isinstance(wrong, str) else wrong,
            cluster=f"natural/{path.name}",
            template="natural",
            split="test",
            roles={_CUES[behavior]: (span, (span[0], span[0] + len(swapped)))},
            features={"template": "natural", **features},
            natural=True,
            source=path.name,
        )


def _line_start(text: str, place: int) -> int:
    """Return where a prompt that holds a place begins: a line's start, at most LOOK_BACK before.

    Where the place's own line is longer than that, it begins within the line.
    """
    earliest = place - LOOK_BACK
    if earliest <= 0:
        return 0
    following = text.find("\n", earliest, place)
    return earliest if following < 0 else following + 1


Cut = tuple[int, int, str, str, str, str | tuple[str, ...], dict[str, Feature]]
"""Start of the cue, end of the prompt, cue, swapped cue, answer, wrong answer, features."""


def _offsets(text: str) -> list[int]:
    """Return where each line begins; only newlines end lines, as the parser counts them."""
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    return starts


def _tokens(text: str) -> Iterator[tuple[tokenize.TokenInfo, int, int]]:
    starts = _offsets(text)
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            begin = starts[token.start[0] - 1] + token.start[1]
            yield token, begin, starts[token.end[0] - 1] + token.end[1]
    except (tokenize.TokenError, IndentationError):
        return


def _quotes(text: str) -> Iterator[Cut]:
    for token, begin, end in _tokens(text):
        body = token.string[1:-1]
        quote = token.string[:1]
        plain = (
            token.type == tokenize.STRING
            and quote in "'\""
            and not token.string.startswith(quote * 3)
        )
        if not plain or not body or len(body) > 60 or "'" in body or '"' in body or "\\" in body:
            continue
        other = '"' if quote == "'" else "'"
        features: dict[str, Feature] = {
            "opening quote": "single" if quote == "'" else "double",
            "letters": float(len(body)),
        }
        yield begin, end - 1, quote, other, quote, other, features


_SHAPES = {"(": "round", "[": "square", "{": "curly"}
_PAIRS = {"(": ")", "[": "]", "{": "}"}


def _brackets(text: str) -> Iterator[Cut]:
    stack: list[tuple[str, int]] = []
    for token, begin, _ in _tokens(text):
        if token.type != tokenize.OP:
            continue
        if token.string in _PAIRS:
            stack.append((token.string, begin))
        elif token.string in _PAIRS.values() and stack:
            opener, place = stack.pop()
            outer = stack[-1][0] if stack else ""
            if not outer or outer == opener or not 1 < begin - place < 120:
                continue
            features: dict[str, Feature] = {
                "inner bracket": _SHAPES[opener],
                "outer bracket": _SHAPES[outer],
                "depth": float(len(stack) + 1),
            }
            yield place, begin, opener, outer, _PAIRS[opener], _PAIRS[outer], features


def _functions(text: str) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(_parsed(text)):
        if isinstance(node, ast.FunctionDef):
            yield node


def _assignments(text: str) -> Iterator[Cut]:
    starts = _offsets(text)
    for function in _functions(text):
        names = [a.arg for a in function.args.args if a.arg != "self"]
        for node in function.body:
            simple = isinstance(node, ast.Assign) and isinstance(node.value, ast.Name)
            if (
                not simple
                or not isinstance(node, ast.Assign)
                or not isinstance(node.value, ast.Name)
            ):
                continue
            target = node.targets[0]
            if (
                not isinstance(target, ast.Attribute)
                or target.attr != node.value.id
                or node.value.id not in names
            ):
                continue
            others = [n for n in names if n != target.attr]
            line = text[starts[node.lineno - 1] : starts[node.lineno]]
            if not others or not line.isascii() or f"self.{target.attr} = " not in line:
                continue
            begin = starts[node.lineno - 1] + line.index(f"self.{target.attr}") + len("self.")
            end = begin + len(target.attr) + len(" =")
            features: dict[str, Feature] = {
                "parameters": float(len(names)),
                "letters": float(len(target.attr)),
            }
            yield begin, end, target.attr, others[0], f" {target.attr}", f" {others[0]}", features


def _signatures(text: str) -> Iterator[Cut]:
    starts = _offsets(text)
    for function in _functions(text):
        arguments = function.args
        defaults = len(arguments.defaults)
        plain = not (
            arguments.kwonlyargs or arguments.vararg or arguments.kwarg or arguments.posonlyargs
        )
        if not plain or defaults < 2 or not isinstance(arguments.defaults[-2], ast.Constant):
            continue
        before, last = arguments.args[-2], arguments.args[-1]
        value = arguments.defaults[-2]
        if (
            value.value is not None
            or before.annotation
            or last.annotation
            or before.lineno != last.lineno
        ):
            continue
        begin = starts[before.lineno - 1] + (before.end_col_offset or 0)
        end = starts[last.lineno - 1] + (last.end_col_offset or 0)
        # the parser counts columns in bytes
        line = text[starts[before.lineno - 1] : starts[before.lineno]]
        if text[begin : begin + 5] != "=None" or not line.isascii():
            continue
        features: dict[str, Feature] = {"parameters before": float(len(arguments.args) - 1)}
        yield begin, end, "=None", ", name", "=", (")", ","), features


_CUES = {
    "quote-closing": "opening quote",
    "bracket-closing": "inner bracket",
    "self-assignment": "attribute",
    "default-or-close": "default",
}
"""Role of what differs between the two prompts, named as in the generated items."""

_CUTTERS: dict[str, Callable[[str], Iterator[Cut]]] = {
    "quote-closing": _quotes,
    "bracket-closing": _brackets,
    "self-assignment": _assignments,
    "default-or-close": _signatures,
}
