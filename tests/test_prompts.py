"""How prompts are read: the web UI's marks, for every text there is."""

from __future__ import annotations

import math
import re
import warnings
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pace import within

from ovenbird.prompts import LARGEST_WEIGHT, Piece, Sections, escape, plain, webui

STRONG, WEAK = 1.1, 1 / 1.1
FUZZ = settings(deadline=None)  # time has a test of its own

READINGS: list[tuple[str, list[tuple[str, float]]]] = [
    ("", []),
    ("a red house", [("a red house", 1)]),
    ("an (important) word", [("an ", 1), ("important", STRONG), (" word", 1)]),
    ("an [odd] word", [("an ", 1), ("odd", WEAK), (" word", 1)]),
    ("(so:1.3) (so: 2. )(so:+.5)(so:-1)", [("so", 1.3), (" ", 1), ("so", 2), ("so", 0.5), ("so", -1)]),
    ("((a) b)", [("a", STRONG**2), (" b", STRONG)]),
    ("((a:2) b:3)", [("a", 6), (" b", 3)]),
    ("(a [b])", [("a ", STRONG), ("b", 1)]),
    ("(to the end", [("to the end", STRONG)]),
    ("x(y[z", [("x", 1), ("y", STRONG), ("z", 1)]),
    ("not opened) :1.3) ]", [("not opened) :1.3) ]", 1)]),
    ("(crossed [ones) here]", [("crossed ", STRONG), ("ones", 1), (" here", WEAK)]),
    (r"\(as \[it\] is\) \\ \x", [(r"(as [it] is) \ \x", 1)]),
    (r"(it\):1.3)", [("it)", 1.3)]),
    ("in(visib)le", [("in", 1), ("visib", STRONG), ("le", 1)]),
    ("ho(us:1)e", [("house", 1)]),
    ("()[](:1.3)", []),
    ("(no number:1.2.3)(nor:x)(nor:)", [("no number:1.2.3nor:xnor:", STRONG)]),
    ("(16:9) 3:4", [("16", 9), (" 3:4", 1)]),
    ("(naïve 家 🏠:1.5)", [("naïve 家 🏠", 1.5)]),
    ("(٣:٣)", [("٣:٣", STRONG)]),  # digits, but not of float's
]


def read(text: str) -> Sections:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return webui(text)


def defined(text: str) -> list[tuple[str, float]]:
    """The rule as it is said, at any cost: each character's weight is the product over the brackets around it."""
    number = re.compile(r":\s*([+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+))\s*\)")
    letters: list[str] = []
    weights: list[float] = []
    waiting: dict[str, list[int]] = {"(": [], "[": []}
    place = 0

    def close(begin: int, factor: float) -> None:
        weights[begin:] = [weight * factor for weight in weights[begin:]]

    while place < len(text):
        letter, numbered = text[place], number.match(text, place)
        if letter == "\\" and text[place + 1 : place + 2] in tuple("\\()[]"):
            letters.append(text[place + 1])
            weights.append(1)
            place += 1
        elif letter in "([":
            waiting[letter].append(len(letters))
        elif numbered and waiting["("]:
            close(waiting["("].pop(), float(numbered[1]))
            place = numbered.end() - 1
        elif letter in ")]" and waiting["(" if letter == ")" else "["]:
            close(waiting["(" if letter == ")" else "["].pop(), STRONG if letter == ")" else WEAK)
        elif numbered:
            letters += numbered[0]
            weights += [1] * len(numbered[0])
            place = numbered.end() - 1
        else:
            letters.append(letter)
            weights.append(1)
        place += 1
    for begin in waiting["("]:
        close(begin, STRONG)
    for begin in waiting["["]:
        close(begin, WEAK)
    return list(zip(letters, weights, strict=True))


@pytest.mark.parametrize(("text", "pieces"), READINGS)
def test_the_readings_of_the_web_ui(text: str, pieces: list[tuple[str, float]]) -> None:
    [section] = webui(text)
    assert [piece.text for piece in section] == [text for text, _ in pieces]
    assert [piece.weight for piece in section] == pytest.approx([weight for _, weight in pieces], rel=1e-12)


MARKS = st.text(st.sampled_from("ab \\()[]:1.3-"), max_size=40)


@FUZZ
@given(MARKS)
@example("(((a:2)[b)c:3)]:4)d")
@example("(a:1.)(b:.)(c: 3 )")
def test_weights_are_what_the_rule_says(text: str) -> None:
    [section] = read(text)
    expected = [(letter, min(max(weight, -LARGEST_WEIGHT), LARGEST_WEIGHT)) for letter, weight in defined(text)]
    found = [(letter, piece.weight) for piece in section for letter in piece.text]
    assert [letter for letter, _ in found] == [letter for letter, _ in expected]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in expected], rel=1e-9)


@FUZZ
@given(
    st.text() | MARKS | st.lists(st.sampled_from(["BREAK", "AND", " ", "(", ")", ":9)", "x|", "]", "["])).map("".join)
)
def test_no_text_is_refused_and_every_weight_is_a_number_in_bounds(text: str) -> None:
    for section in read(text):
        assert all(piece.text and abs(piece.weight) <= LARGEST_WEIGHT for piece in section)
        assert all(
            left.weight != right.weight or abs(left.weight) == LARGEST_WEIGHT for left, right in pairwise(section)
        )


@FUZZ
@given(st.text() | MARKS)
def test_what_is_escaped_reads_as_it_stands(text: str) -> None:
    text = text.replace("BREAK", "")
    assert ["".join(piece.text for piece in section) for section in read(escape(text))] == [text]
    assert all(piece.weight == 1 for [*section] in read(escape(text)) for piece in section)


@FUZZ
@given(st.text())
def test_plain_text_has_one_piece(text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert plain(text) == [[Piece(text, 1.0)]]


def test_break_begins_a_section_also_inside_brackets() -> None:
    sections = webui("a BREAK(b BREAK c:2)BREAK BREAKS")
    found = [[(piece.text, piece.weight) for piece in section] for section in sections]
    assert found == [[("a ", 1)], [("b ", 2)], [(" c", 2)], [(" BREAKS", 1)]]


HOSTILE = ["(", "[", "([", "[|", "\\", ":1", ": ", "(:9)", "(a)[b]", "BREAK ", "1", "[a:", "<lora:", "AND "]


@pytest.mark.parametrize("unit", HOSTILE)
def test_r3_time_grows_with_the_length_and_no_faster(unit: str) -> None:
    text = unit * (16_000 // len(unit))
    with within(5):  # what is quadratic needs minutes
        read(text)
        read(text + ":9)" * 9000)


@pytest.mark.parametrize(
    "text", ["(a:11)", "(a:-1e9)(b:11)", "(" * 40 + "a", "(a:" + "9" * 500 + ")", "((a:1e5):0)(x:99)"]
)
def test_r5_a_weight_out_of_bounds_is_said(text: str) -> None:
    with pytest.warns(UserWarning, match="beyond 10"):
        sections = webui(text)
    assert all(math.isfinite(piece.weight) for section in sections for piece in section)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("a [cat:dog:0.5]", "prompt editing"),
        ("[dog:12]", "prompt editing"),
        ("a [cat|dog]", "alternation"),
        ("a cat AND a dog", "composition"),
        ("<lora:thing:0.8> a cat", "a network"),
    ],
)
def test_what_the_web_ui_knows_and_we_do_not_is_said(text: str, what: str) -> None:
    with pytest.warns(UserWarning, match=f"is {what} in the web UI"):
        webui(text)


def test_a_weight_in_plain_text_is_said() -> None:
    with pytest.warns(UserWarning, match=r"':1.3\)' is read as text"):
        plain("a (red:1.3) house")


@pytest.mark.parametrize("text", ["a (red) house", "16:9", r"a \[cat\|dog\]", "bold AND_MORE", "a [cat] or (dog)"])
def test_nothing_is_said_of_an_ordinary_text(text: str) -> None:
    plain(text)
    webui(text)
