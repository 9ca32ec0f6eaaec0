"""The browser of many items: its data survive packing, and its plain table stands without them."""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from typing import Any

import pytest

from microtome.errors import ShapeError
from microtome.views import Browser, Column, Excerpt, Item, Page, Ranking, Section

COLUMNS = (Column("active", "share", "percent"), Column("score"))


def browser(n: int = 50) -> Browser:
    items = [
        Item(
            number=3 * i,
            words=f"the token is `t{i}`",
            cells=(i / 1000, None if i == 1 else 0.5),
            facts=(("at most", "4.5"),),
            excerpts=(Excerpt(("a", " b", "\n"), (0.0, 2.0 + i, -1.0), "first"),),
            counts=(4, 0, 1),
            span=(0.0, 2.0 + i),
            rankings=(Ranking("Alike", "cosine", ((3, 0.25), ("`x`", 0.125))),),
        )
        for i in range(n)
    ]
    return Browser(items, COLUMNS, name="latent", says="active when", unit="activation")


def unpacked(view: Browser) -> dict[str, Any]:
    (text,) = re.findall(r'class="mt-browser-data"[^>]*>([^<]*)<', view.to_html())
    return json.loads(zlib.decompress(base64.b64decode(text)))


def test_the_data_say_what_the_items_said() -> None:
    data = unpacked(browser())
    assert (data["name"], data["says"], data["unit"]) == ("latent", "active when", "activation")
    assert data["columns"] == [["active", "share", "percent"], ["score", "", "number"]]
    assert [item[0] for item in data["items"]] == [3 * i for i in range(50)]
    number, words, cells, facts, largest, excerpts, counts, span, rankings = data["items"][1]
    assert (number, words, cells) == (3, "the token is `t1`", [0.001, None])
    assert (facts, largest, counts, span) == ([["at most", "4.5"]], 3.0, [4, 0, 1], [0, 3.0])
    ((note, flat),) = excerpts
    assert note == "first"
    assert [data["words"][i] for i in flat[::2]] == ["a", "·b", "⏎"]
    assert flat[1::2] == [0, 100, -33]
    assert rankings == [["Alike", "cosine", [[3, 0.25], ["`x`", 0.125]]]]


def test_it_is_well_formed(parse: Callable[[str], Any]) -> None:
    root = parse(browser().to_html())
    assert root.find(".//table") is not None


def test_every_whole_percentage_has_an_ink() -> None:
    inks = unpacked(browser())["inks"]
    assert {len(inks[sign]) for sign in ("pos", "neg")} == {101}
    assert all(ink.startswith("ink-") for sign in inks.values() for ink in sign)


def test_without_the_script_the_first_items_stand_in_a_table() -> None:
    rows = browser().table().rows
    assert len(rows) == 40
    assert rows[1] == ["3", "0.10\u202f%", "–", "the token is <code>t1</code>"]
    assert "10 more" in browser().table().caption
    assert browser(3).table().caption == ""


def test_hostile_text_stays_text() -> None:
    evil = "<script>alert(1)</script>\x00\u202e"
    item = Item(1, evil, facts=((evil, evil),), excerpts=(Excerpt((evil,), (1.0,), evil),))
    view = Browser([item], name=evil)
    html = Page("t", (Section("s", (view,)),)).to_html()
    assert html.lower().count("<script") == 1
    shown = json.dumps(unpacked(Browser([item])), ensure_ascii=False)
    assert not {"\x00", "\u202e"} & set(html + shown)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ShapeError, match="at least one"):
        Browser([])
    with pytest.raises(ShapeError, match="its own number"):
        Browser([Item(1, "a"), Item(1, "b")])
    with pytest.raises(ShapeError, match="has 0 cells"):
        Browser([Item(1, "a")], COLUMNS)
