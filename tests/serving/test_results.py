"""Results as JSON and text, and thresholds as they are given."""

import json

import pytest

from ddag_jax.errors import UserError
from ddag_jax.serving.results import Hit, Result, format_table, parse_threshold

RESULT = Result(
    "query.png",
    "7",
    "infrared",
    [
        Hit(1, 0.75, "a/right.png", "7", "visible"),
        Hit(2, 0.5, "a/wrong.png", "8", "visible"),
        Hit(3, -0.25, "a/unknown.png", None, "visible"),
    ],
)


def test_the_threshold_itself_is_kept() -> None:
    assert [hit.rank for hit in RESULT.above(0.5).hits] == [1, 2]
    nobody = RESULT.above(0.76)
    assert not nobody.hits
    assert nobody.to_json()["nobody_known"]
    assert format_table(nobody) == "query.png (infrared, identity 7): nobody known"


def test_json_holds_everything() -> None:
    value = json.loads(json.dumps(RESULT.to_json()))
    assert value.pop("nobody_known") is False
    hits = [Hit(**hit) for hit in value.pop("hits")]
    assert Result(**value, hits=hits) == RESULT


def test_right_and_wrong_are_signed_where_both_identities_are_known() -> None:
    rows = format_table(RESULT).splitlines()[2:]
    assert [row.split() for row in rows] == [
        ["1", "0.750", "7", "✓", "a/right.png"],
        ["2", "0.500", "8", "✗", "a/wrong.png"],
        ["3", "-0.250", "unknown", "a/unknown.png"],
    ]
    assert "✓" not in format_table(RESULT._replace(identity=None))


def test_a_file_name_cannot_move_the_terminal_s_cursor() -> None:
    name = "x\x1b[2J\n\udcff.png"
    assert format_table(Result(name, None, "visible", [])) == (
        r"x\x1b[2J\n\udcff.png (visible): nobody known"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("err", "--threshold err: give eer, far=RATE"),
        ("far=", "--threshold far=: give eer"),
        ("far=0", "--threshold far=0: a false accept rate is between 0 and 1"),
        ("far=nan", "--threshold far=nan: a false accept rate"),
        ("42", "--threshold 42: a similarity is from -1 to 1"),
        ("nan", "--threshold nan: a similarity"),
    ],
)
def test_a_threshold_that_names_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_threshold(text)
