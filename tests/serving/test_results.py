"""Results as JSON and text."""

import json

from ddag_jax.serving.results import Hit, Result, SearchResults, format_tables

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
    assert format_tables([nobody]) == "query.png (infrared, identity 7): nobody known"


def test_json_holds_everything() -> None:
    value = json.loads(json.dumps(RESULT.to_json()))
    assert value.pop("nobody_known") is False
    hits = [Hit(**hit) for hit in value.pop("hits")]
    assert Result(**value, hits=hits) == RESULT


def test_right_and_wrong_are_signed_where_both_identities_are_known() -> None:
    rows = format_tables([RESULT]).splitlines()[2:]
    assert [row.split() for row in rows] == [
        ["1", "0.750", "7", "(right)", "a/right.png"],
        ["2", "0.500", "8", "(wrong)", "a/wrong.png"],
        ["3", "-0.250", "unknown", "a/unknown.png"],
    ]
    assert "right)" not in format_tables([RESULT._replace(identity=None)])


def test_a_file_name_cannot_move_the_terminal_s_cursor() -> None:
    name = "x\x1b[2J\n\udcff.png"
    assert format_tables([Result(name, None, "visible", [])]) == (
        r"x\x1b[2J\n\udcff.png (visible): nobody known"
    )


def test_a_tracklet_is_named_with_its_images() -> None:
    hits = [Hit(1, 0.5, "a.png", None, "visible", "t\x1b9", 3)]
    text = format_tables([Result("q.png", None, "infrared", hits, "night", 1)])
    assert "q.png (infrared, tracklet night, 1 image)" in text
    assert text.endswith("unknown   a.png, tracklet t\\x1b9, 3 images")


def test_columns_of_all_tables_are_one_width_also_with_wide_characters() -> None:
    wide = RESULT._replace(hits=[Hit(1, 0.5, "c.png", "王芳", "visible")])
    lines = format_tables([RESULT, wide]).splitlines()
    head = lines[1]
    start = head.index("file")
    assert lines[7] == head
    assert [lines[2].index("a/right"), lines[8].index("c.png") + 2] == [start, start]


def test_json_names_its_format() -> None:
    found = SearchResults("/runs/a", "8", "part", None, None, 3, [RESULT], [], [])
    value = json.loads(found.to_json())
    assert (value["format"], value["run"], len(value["results"])) == (1, "/runs/a", 1)
