"""Well-formed inputs with something wrong in them: a JSON document whose fields are other things than they should be.

Changed bytes seldom get past a JSON parser; these always do. A test and the long run draw from them alike.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

_HUGE = "\ue000huge\ue000"  # stands for a number that JSON can spell and no float can hold

_NUMBERS = st.sampled_from(
    [0, -1, 1, 255, 65_536, 2**31, -(2**31) - 1, 2**53 + 1, 2**63, 2**64, 10**30, 10**400, -(10**400), 0.5, -0.0,
     1e-320, 1.7976931348623157e308, _HUGE]
)  # fmt: skip
_TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "\0", "\ud800", "a\udfffb", "\u202e", "٣", "ß", "\n", "null", "NaN", "../x", "x" * 129, "x" * 5000,
         "\u2028", "item_1", "audio", "realtime", "data:image/png;base64,AAAA", "=", "AAA=", "AAAA" * 300]
    ),
    st.text(st.characters(), max_size=12),
)  # fmt: skip
_SCALARS = st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS)
WEIRD = st.one_of(
    _SCALARS,
    st.lists(_SCALARS, max_size=3),
    st.dictionaries(_TEXTS, _SCALARS, max_size=3),
    st.sampled_from([10, 17, 60]).map(lambda depth: _nested(depth)),
    st.sampled_from([[None] * 500, [{}] * 200, {f"k{n}": n for n in range(200)}]),
).map(copy.deepcopy)  # what is put into a document may be edited there


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def paths(document: Any, most: int = 400) -> list[tuple[Any, ...]]:
    """Every place in a document, the document itself first."""
    found: list[tuple[Any, ...]] = [()]
    for at in found:
        inner = _at(document, at)
        names = list(inner) if isinstance(inner, dict) else range(len(inner)) if isinstance(inner, list) else ()
        found.extend((*at, name) for name in names)
        if len(found) > most:
            break
    return found


def _at(document: Any, path: Sequence[Any]) -> Any:
    for name in path:
        document = document[name]
    return document


@st.composite
def edited(draw: st.DrawFn, documents: Sequence[Any]) -> Any:
    """One of ``documents`` with one to four places replaced, removed, doubled, renamed, or moved elsewhere."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 4))):
        places = paths(document)
        path = draw(st.sampled_from(places))
        if not path:
            continue
        parent, name = _at(document, path[:-1]), path[-1]
        match draw(st.sampled_from(["replace", "replace", "remove", "add", "rename", "move"])):
            case "replace":
                parent[name] = draw(WEIRD)
            case "remove":
                del parent[name]
            case "add" if isinstance(parent, dict):
                parent[draw(_TEXTS)] = draw(WEIRD)
            case "add":
                parent.extend([copy.deepcopy(parent[name])] * draw(st.sampled_from([1, 9, 70])))
            case "rename" if isinstance(parent, dict):
                parent[draw(_TEXTS)] = parent.pop(name)
            case _:
                parent[name] = copy.deepcopy(_at(document, draw(st.sampled_from(places))))
    return document


def dump(document: Any) -> bytes:
    """As JSON, half surrogates and numbers beyond all floats included."""
    return json.dumps(document).replace(json.dumps(_HUGE), "1e999").encode()


def json_lines(documents: Sequence[Any], most: int = 4) -> st.SearchStrategy[bytes]:
    """Some of them, one a line: whole ones and edited ones."""
    each = st.one_of(st.sampled_from(documents), edited(documents), edited(documents))
    return st.lists(each.map(dump), min_size=1, max_size=most).map(b"\n".join)
