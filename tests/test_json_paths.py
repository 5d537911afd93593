"""JSON paths, and documents compared value by value."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tlscap.errors import UsageError
from tlscap.replay.json_documents import ABSENT, Change, changes, parse_json, same
from tlscap.replay.json_paths import JsonPath, Steps, path_text, value_at

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

DOCUMENT = {
    "user": {"id": 1, "name": "ann"},
    "items": [{"id": 1, "n": 1}, {"id": 2, "n": 2}],
    "odd name": 3,
    "*": 4,
    "it's": 5,
}


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("$.user.id", [1]),
        ("user.id", [1]),
        ("$.items[1].n", [2]),
        ("$.items[-1].n", [2]),
        ("$.items[*].id", [1, 2]),
        ("$..id", [1, 1, 2]),
        ("$['odd name']", [3]),
        ("$[odd name]", [3]),
        ('$["odd\\u0020name"]', [3]),
        (r"$['it\'s']", [5]),
        (r"$['\u002a']", [4]),
        ("$['*']", [4]),
        ("$.items[7].id", []),
        ("$.nothing.at.all", []),
        ("$.user.*", [1, "ann"]),
    ],
)
def test_json_paths(path: str, found: list[Any]) -> None:
    document = json.loads(json.dumps(DOCUMENT))
    assert JsonPath(path).select(document) == found
    JsonPath(path).remove(document)
    assert JsonPath(path).select(document) == [] or path.endswith("]")
    assert (document == DOCUMENT) == (not found)


def test_a_removed_element_leaves_its_place() -> None:
    document = [1, 2, 3]
    JsonPath("$[1]").remove(document)
    assert document == [1, None, 3]
    JsonPath("$[*]").remove(document)
    assert document == []


@given(values, st.sampled_from(["$..a", "$.*", "$[0]", "$..[0]", "$..*", "$[*].*"]))
def test_removing_never_fails(value: Any, path: str) -> None:
    document = [value]
    JsonPath(path).remove(document)
    json.dumps(document)


@pytest.mark.parametrize("text", ["", "$", "$.", "$..", "$[", "$['a", "$['a'b]", "$.a[", "$[a'b]"])
def test_what_is_no_path(text: str) -> None:
    with pytest.raises(UsageError):
        JsonPath(text)


# --- One value ---


@given(st.lists(st.text() | st.integers(0, 9), min_size=1, max_size=5).map(tuple))
def test_steps_are_a_path(steps: Steps) -> None:
    """The path names the value there, and nothing else, whatever the names are."""
    document: Any = "here"
    for key in reversed(steps):
        document = (
            {key: document, f"{key}x": "there"} if isinstance(key, str) else ["there"] * key + [document, "there"]
        )
    assert JsonPath(path_text(steps)).select(document) == ["here"]
    assert value_at(document, steps) == "here"


def test_value_at() -> None:
    assert value_at({"a": [1, {"b": 2}]}, ("a", 1, "b")) == 2
    for missing in (("b",), ("a", 5), ("a", "0"), (0,), ("a", 0, "x")):
        with pytest.raises(LookupError):
            value_at({"a": [1]}, missing)


# --- Documents ---


def test_parse_json() -> None:
    assert parse_json(b'{"a": [1.0, NaN]}') == {"a": [1.0, "NaN"]}
    assert parse_json(b"[1.50]", number=str) == ["1.50"]
    for wrong in (b"", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(ValueError):
            parse_json(wrong)


def test_one_is_not_true() -> None:
    assert [same(1, 1.0), same(1, True), same(False, 0), same("1", 1), same(None, None)] == [True, *[False] * 3, True]


def test_changes_in_order() -> None:
    old = {"b": 1, "a": [1, [2], 3], "gone": None, "kind": {}}
    new = {"new": 0, "a": [1, [True, 5]], "b": 2, "kind": []}
    assert list(changes(old, new)) == [
        Change(("b",), 1, 2),
        Change(("a", 1, 0), 2, True),
        Change(("a", 1, 1), ABSENT, 5),
        Change(("a", 2), 3, ABSENT),
        Change(("gone",), None, ABSENT),
        Change(("kind",), {}, []),
        Change(("new",), ABSENT, 0),
    ]


@given(values, values)
def test_changes_lead_from_one_document_to_the_other(old: Any, new: Any) -> None:
    """Made one by one, they turn the old document into the new one; there are none from a document to itself."""
    document = {"root": copy.deepcopy(old)}
    for (*way, last), _, value in changes({"root": old}, {"root": new}):
        holder = value_at(document, tuple(way))
        if value is not ABSENT:
            if isinstance(holder, list) and last == len(holder):
                holder.append(None)
            holder[last] = value
        elif isinstance(holder, list):
            del holder[-1]
        else:
            del holder[last]
    assert document["root"] == new
    assert not list(changes(document["root"], new))
