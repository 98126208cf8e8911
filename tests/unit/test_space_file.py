"""Space files: what can be written, and every way of writing it wrong with its place."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.core.context import Context
from autotune.core.domains import Choice, Float, Int
from autotune.core.errors import AutotuneError, BadValue, SpaceFileError, UnknownName, UsageError
from autotune.core.rules import RULES
from autotune.core.space import find_space_text, load_space, parse_space, shipped_spaces
from tests.knobs import CHUNKS, KNOBS, RATE

WHOLE = """\
summary: one
  line
knobs:
  rate: {min: 0.5, max: 2, log: false}
  chunks: {min: 2, max: 8}
  share: [0, 0.5, 7.5e-1]
  lora.rank: {min: 0, max: 10}
  checkpointing: full
rules:
  - lora.rank == 0 or share < 0.5
training:
  steps: 30
  eval_examples: 64
"""


def parse(text):
    return parse_space(text, "mine.yaml", KNOBS)


def test_a_whole_file_is_read():
    space = parse(WHOLE)
    assert space.name == "mine"
    assert space.summary == "one line"
    assert space.source == WHOLE
    assert list(space.domains) == ["share", "checkpointing", "lora.rank", "chunks", "rate"]
    assert space.domains["share"] == Choice((0.0, 0.5, 0.75))
    assert type(space.domains["share"].grid()[0]) is float
    assert space.domains["lora.rank"] == Choice((0, 4, 8))
    assert space.domains["checkpointing"] == Choice(("full",))
    assert space.domains["chunks"] == Int(2, 8)
    assert space.domains["rate"] == Float(0.5, 2.0)
    assert space.training == {"steps": 30, "eval_examples": 64}
    assert space.rules[: len(RULES)] == RULES


def test_values_are_plain_python_whatever_yaml_calls_them():
    domains = parse("knobs: {lora.rank: [0x4, 0o10, 1_6], rate: 1e+0, chunks: 1_0}").domains
    values = [*domains["lora.rank"].grid(), *domains["rate"].grid(), *domains["chunks"].grid()]
    assert values == [4, 8, 16, 1.0, 10]
    assert {type(value) for value in values} == {int, float}


def test_a_range_keeps_the_scale_of_the_knob():
    assert parse("knobs: {rate: {min: 0.5, max: 2}}").domains["rate"] == Float(0.5, 2.0, log=True)


def test_rules_of_the_file_hold_or_say_which():
    space = parse(WHOLE)
    narrow = space.narrowed({"lora.rank": "8", "share": "0.5"})
    assert narrow.reasons(narrow.baseline(), Context()) == (
        "the space demands: lora.rank == 0 or share < 0.5",
    )


@pytest.mark.parametrize(
    ("text", "kind", "place", "message"),
    [
        ("knobs: [", SpaceFileError, "1:9", "this is not YAML: expected the node content"),
        ("knobs: {a: 1\n", SpaceFileError, "2:1", "this is not YAML: "),
        ("knobs:\n\t- a", SpaceFileError, "2:1", "this is not YAML: found character '\\t'"),
        ("a: b: c", SpaceFileError, "1:5", "this is not YAML: mapping values are not allowed"),
        ("knobs: *x", SpaceFileError, "1:8", "this is not YAML: found undefined alias 'x'"),
        ("a: \x01", SpaceFileError, "1:1", "this is not YAML: "),
        ("", SpaceFileError, "1:1", "a space file has sections"),
        ("just text", SpaceFileError, "1:1", "a space file has sections"),
        ("- a\n- b", SpaceFileError, "1:1", "a space file has sections"),
        ("---\nknobs: {}\n---\nknobs: {}", SpaceFileError, "3:1", "this is not YAML: "),
        ("knob: {}", UnknownName, "1:1", "unknown section 'knob'"),
        ("12: {}", UnknownName, "1:1", "unknown section '12'"),
        ("summary: [a]\nknobs: {}", SpaceFileError, "1:10", "a summary is one line of text"),
        ("summary: a", SpaceFileError, "1:1", "a space needs at least one knob"),
        ("summary: a\nknobs: {}", SpaceFileError, "2:1", "a space needs at least one knob"),
        ("knobs:", SpaceFileError, "1:1", "a space needs at least one knob"),
        ("knobs: full", SpaceFileError, "1:8", "section 'knobs' lists knobs with their values"),
        ("knobs:\n  shares: 0", UnknownName, "2:3", "unknown knob 'shares'"),
        ("knobs:\n  share: 0\n  share: 1", SpaceFileError, "3:3", 'this is not YAML: found dupli'),
        ("knobs:\n  share: [0, 0.3]", BadValue, "2:14", "0.3 is not a value of share: it may be"),
        ("knobs:\n  share: [0, 0.0]", BadValue, "2:14", "share has 0.0 twice"),
        ("knobs:\n  share: '0.5'", BadValue, "2:10", "'0.5' is not a value of share"),
        ("knobs:\n  share: []", BadValue, "2:10", "share has no values"),
        ("knobs:\n  share:", BadValue, "2:9", "empty is not a value of share"),
        ("knobs:\n  share: [[0]]", BadValue, "2:11", "a list is not a value of share"),
        ("knobs:\n  share: [true]", BadValue, "2:11", "true is not a value of share"),
        ("knobs:\n  checkpointing: no", BadValue, "2:18", "'no' is not a value of checkpointing"),
        ("knobs:\n  rate: 2024-01-01", BadValue, "2:9", "2024-01-01 is not a value of rate"),
        ("knobs:\n  rate: .nan", BadValue, "2:9", "nan is not a value of rate"),
        ("knobs:\n  rate: fast", BadValue, "2:9", "'fast' is not a value of rate"),
        ("knobs:\n  chunks: 2.5", BadValue, "2:11", "2.5 is not a value of chunks"),
        ("knobs:\n  rate: {low: 1}", UnknownName, "2:10", "unknown key of a range 'low'"),
        ("knobs:\n  rate: {min: 1}", BadValue, "2:9", "a range of rate needs numbers as min and"),
        ("knobs:\n  rate: {min: 1, max: b}", BadValue, "2:23", "a range of rate needs numbers"),
        ("knobs:\n  rate: {min: 2, max: 1}", BadValue, "2:9", "the range of rate is wrong: low"),
        ("knobs:\n  rate: {min: 1, max: 99}", BadValue, "2:9", "this range of rate leaves its"),
        ("knobs:\n  rate: {min: 1, max: .nan}", BadValue, "2:9", "the range of rate is wrong"),
        ("knobs:\n  rate: {min: 1, max: 2, log: 3}", BadValue, "2:31", "log is true or false"),
        ("knobs:\n  chunks: {min: 1.5, max: 2}", BadValue, "2:11", "the range of chunks is wrong"),
        ("knobs:\n  share: {min: 2, max: 3}", BadValue, "2:10", "this range of share leaves its"),
        ("knobs:\n  checkpointing: {min: 2, max: 3}", BadValue, "2:18", "this range of checkp"),
        ("knobs: {share: 0}\nrules: share > 0", SpaceFileError, "2:8", "section 'rules' is a lis"),
        ("knobs: {share: 0}\nrules:\n  - 3", SpaceFileError, "3:5", "a rule is a condition, but "),
        ("knobs: {share: 0}\nrules:\n  - shar > 0", UnknownName, "3:5", "in a rule: unknown name"),
        ("knobs: {share: 0}\nrules:\n  - share >", BadValue, "3:5", "in a rule: this is not an ex"),
        ("knobs: {share: 0}\nrules:\n  - share + 1", BadValue, "3:5", "a rule must be true or fa"),
        ("knobs: {share: 0}\nrules:\n  - checkpointing > 1", BadValue, "3:5", "in a rule: 'none'"),
        ("knobs: {share: 0}\ntraining:\n  step: 3", UnknownName, "3:3", "unknown training settin"),
        ("knobs: {share: 0}\ntraining:\n  steps: 0", BadValue, "3:10", "steps is a whole number "),
        ("knobs: {share: 0}\ntraining:\n  steps: 1.5", BadValue, "3:10", "steps is a whole number"),
        ("knobs: {share: 0}\ntraining:\n  steps: yes", BadValue, "3:10", "steps is a whole number"),
        ("knobs: {share: 0}\ntraining: [1]", SpaceFileError, "2:11", "section 'training' has set"),
    ],
)  # fmt: skip
def test_every_mistake_has_its_place(text, kind, place, message):
    with pytest.raises(UsageError) as caught:
        parse(text)
    assert caught.value.message.startswith(message)
    assert type(caught.value) is kind
    assert caught.value.where == f"mine.yaml:{place}"
    assert "▸" in caught.value.context[-2]
    assert "^" in caught.value.context[-1]


def test_an_error_shows_the_lines_around_it():
    text = "knobs:\n  lora.rank: [0, 8]\n  share: 0\n  checkpoiting: [none, full]\n"
    with pytest.raises(UnknownName) as caught:
        parse(text)
    assert caught.value.context == (
        "  2 │   lora.rank: [0, 8]",
        "  3 │   share: 0",
        "▸ 4 │   checkpoiting: [none, full]",
        "    │   ^^^^^^^^^^^^",
    )
    assert caught.value.help == "did you mean 'checkpointing'?  `autotune spaces knobs` lists all 6"


@given(st.text(max_size=60) | st.sampled_from(WHOLE.splitlines()).map(lambda line: WHOLE + line))
def test_any_text_is_a_space_or_an_error(text):
    place = "mine.yaml:"
    try:
        assert parse(text).domains
    except AutotuneError as error:
        place = error.where
    assert place.startswith("mine.yaml:")


@given(st.integers(0, len(WHOLE)), st.text("{}[]:-,#*&!|>%@ \n\t'\"0a.", min_size=1, max_size=3))
def test_a_damaged_file_is_a_space_or_an_error(position, noise):
    place = "mine.yaml:"
    try:
        assert parse(WHOLE[:position] + noise + WHOLE[position:]).domains
    except AutotuneError as error:
        place = error.where
    assert place.startswith("mine.yaml:")


def test_knobs_that_are_ranges_are_in_the_fixture():
    assert isinstance(CHUNKS.domain, Int)
    assert isinstance(RATE.domain, Float)


def test_a_path_is_read_as_a_path(tmp_path):
    path = tmp_path / "tiny.yml"
    path.write_bytes(b"\xef\xbb\xbf" + WHOLE.encode())
    space = load_space(str(path), KNOBS)
    assert (space.name, space.source) == ("tiny", WHOLE)


def test_local_spaces_come_before_shipped_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_space_text("smoke")[1] == "smoke.yaml"
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "smoke.yaml").write_text(WHOLE)
    assert find_space_text("smoke") == (WHOLE, "search_spaces/smoke.yaml")


def test_an_unknown_space_suggests_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search_spaces").mkdir()
    (tmp_path / "search_spaces" / "special.yaml").write_text(WHOLE)
    with pytest.raises(UnknownName) as caught:
        find_space_text("specal")
    listed = len(shipped_spaces()) + 1
    assert caught.value.help == f"did you mean 'special'?  `autotune spaces ls` lists all {listed}"


def test_files_that_cannot_be_read_say_why(tmp_path):
    with pytest.raises(SpaceFileError, match="cannot be read: No such file") as caught:
        find_space_text(str(tmp_path / "none.yaml"))
    assert caught.value.where == str(tmp_path / "none.yaml")
    with pytest.raises(SpaceFileError, match="cannot be read: Is a directory"):
        find_space_text(str(tmp_path))
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("summary: größe".encode("latin1"))
    with pytest.raises(SpaceFileError, match=r"not a text file in UTF-8: .* at byte 11"):
        find_space_text(str(latin))
