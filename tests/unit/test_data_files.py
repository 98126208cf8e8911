"""Every way in which the user's own data can be right or wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from autotune.objectives.columns import (
    Labelled,
    classes_of,
    held_out,
    labelled,
    split_labelled,
    texts,
)
from autotune.objectives.files import READERS, Splits, Table, read_data

from autotune.core.errors import DataError

ROWS = [{"text": "good film", "label": "pos"}, {"text": "bad, film", "label": "neg"}]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(rows: list[dict[str, Any]] = ROWS) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(**columns: list[Any]) -> Table:
    return Table(columns=columns, where="data.csv")


def failure(data: Path | str) -> DataError:
    with pytest.raises(DataError) as caught:
        read_data(str(data))
    return caught.value


CONTENTS: dict[str, str | bytes] = {
    "a.jsonl": jsonl(),
    "a.ndjson": "\n" + jsonl(),
    "a.json": json.dumps(ROWS, indent=2),
    "a.csv": 'text,label\ngood film,pos\n"bad, film",neg\n',
    "b.csv": b'\xef\xbb\xbftext,label\r\ngood film,pos\r\n\r\n"bad, film",neg\r\n',
    "a.tsv": "text\tlabel\ngood film\tpos\nbad, film\tneg\n",
}


@pytest.mark.parametrize("name", CONTENTS)
def test_tables_of_all_formats_read_alike(tmp_path: Path, name: str) -> None:
    splits = read_data(str(write(tmp_path / name, CONTENTS[name])))
    assert splits.validation is None
    assert labelled(splits.train, None, None) == Labelled(
        texts=["good film", "bad, film"], labels=["pos", "neg"]
    )


def test_parquet_reads_alike(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    assert labelled(read_data(str(tmp_path / "a.parquet")).train, None, None).labels == [
        "pos",
        "neg",
    ]


def test_plain_text_is_one_document(tmp_path: Path) -> None:
    read = read_data(str(write(tmp_path / "book.txt", "first line\nsecond line\n"))).train
    assert texts(read, None) == ["first line\nsecond line\n"]
    with pytest.raises(DataError, match="plain text has no labels"):
        labelled(read, None, None)


def test_a_folder_is_split_by_the_names_of_its_files(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00002.jsonl", jsonl())
    write(tmp_path / "train-00001-of-00002.jsonl", jsonl())
    write(tmp_path / "test.jsonl", jsonl(ROWS[:1]))
    write(tmp_path / "data" / "validation-00000.jsonl", jsonl(ROWS[1:]))
    write(tmp_path / "README.md", "about this data")
    write(tmp_path / ".hidden.csv", "x")
    splits = read_data(str(tmp_path))
    assert len(splits.train) == 4
    assert splits.validation is not None
    assert list(splits.validation.columns["label"]) == ["neg"]


def test_folders_are_parts_too_and_names_only_count_as_words(tmp_path: Path) -> None:
    write(tmp_path / "test" / "0.jsonl", jsonl(ROWS[:1]))
    write(tmp_path / "train" / "testimonials.jsonl", jsonl())
    splits = read_data(str(tmp_path))
    assert len(splits.train) == 2
    assert splits.validation is not None
    assert len(splits.validation) == 1


def test_saved_datasets_give_names_of_classes(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    part = Dataset.from_dict({"text": ["a b", "c d"], "label": [1, 0]}, features=features)
    part.save_to_disk(str(tmp_path / "one"))
    assert labelled(read_data(str(tmp_path / "one")).train, None, None).labels == ["pos", "neg"]
    DatasetDict(train=part, test=part).save_to_disk(str(tmp_path / "both"))
    splits = read_data(str(tmp_path / "both"))
    assert splits.validation is not None
    assert len(splits.validation) == 2
    DatasetDict(test=part).save_to_disk(str(tmp_path / "test"))
    assert "none to train on" in failure(tmp_path / "test").message


BROKEN: dict[str, tuple[str, str | bytes, str, str]] = {
    "empty file": ("a.csv", "", "the file is empty", ""),
    "header only": ("a.csv", "text,label\n", "no rows", ""),
    "blank text": ("a.txt", " \n ", "no rows", ""),
    "broken line": ("a.jsonl", jsonl() + '{"text": "x"\n', "not JSON", ":3:13"),
    "broken array": ("a.json", '[{"text": "x"},\n {"text" "y"}]', "not JSON", ":2:10"),
    "line that is no object": ("a.jsonl", jsonl() + "17\n", "this one is a int", ":3"),
    "missing field": ("a.csv", "text,label\na b,x\nc d\n", "1 fields, but the header has 2", ":3"),
    "open quote": ("a.csv", 'text,label\n"a b,x\n', "not CSV", ":2"),
    "latin-1": ("a.csv", "text,label\ncaf\xe9,x\n".encode("latin-1"), "not UTF-8", ":2"),
    "no parquet": ("a.parquet", "version https://git-lfs", "cannot be read as Parquet", ""),
    "unknown type": ("a.xlsx", "PK", "not a type of data", ""),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_say_where(tmp_path: Path, case: str) -> None:
    name, content, message, place = BROKEN[case]
    path = write(tmp_path / name, content)
    error = failure(path)
    assert message in error.message
    assert error.where == f"{path}{place}"


def test_unknown_types_list_those_that_are_known(tmp_path: Path) -> None:
    error = failure(write(tmp_path / "a.xlsx", "PK"))
    assert all(suffix in str(error.help) for suffix in READERS)


def test_missing_files_and_empty_folders(tmp_path: Path) -> None:
    missing = failure(tmp_path / "none.csv")
    assert "there is no file or folder" in missing.message
    assert ".jsonl" in str(missing.help)
    assert "it is empty" in failure(tmp_path).message
    write(tmp_path / "photo.png", "x")
    assert "it holds photo.png" in failure(tmp_path).message


def test_folders_without_training_data_or_of_mixed_columns(tmp_path: Path) -> None:
    write(tmp_path / "test.jsonl", jsonl())
    assert "none to train on" in failure(tmp_path).message
    write(tmp_path / "train" / "a.jsonl", jsonl())
    write(tmp_path / "train" / "b.csv", "sentence,label\nx y,pos\n")
    error = failure(tmp_path)
    assert "same columns" in error.message
    assert error.where == str(tmp_path / "train" / "b.csv")


def test_broken_saved_folders_are_no_traceback(tmp_path: Path) -> None:
    write(tmp_path / "state.json", "{}")
    assert "saved by datasets" in failure(tmp_path).message


def test_columns_that_are_asked_for_must_exist() -> None:
    data = table(review=["a b"], label=["x"])
    with pytest.raises(DataError, match="no column 'reviews'") as caught:
        labelled(data, "reviews", None)
    assert "did you mean 'review'?" in str(caught.value.help)
    assert "--text-column: review, label" in str(caught.value.help)
    with pytest.raises(DataError, match="no column 'lable'") as caught:
        labelled(data, None, "lable")
    assert "did you mean 'label'?" in str(caught.value.help)


def test_columns_are_chosen_where_there_is_no_doubt() -> None:
    assert labelled(table(id=[1, 2], review=["a", "b"], labels=["x", "y"]), None, None) == Labelled(
        texts=["a", "b"], labels=["x", "y"]
    )
    with pytest.raises(DataError, match="which column is the text"):
        texts(table(title=["a"], body=["b"]), None)
    with pytest.raises(DataError, match="which column is the label"):
        labelled(table(text=["a"], stars=[1]), None, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["a", None], "has nothing in row 2"),
        ([1, 2], "has a int in row 1"),
        (["1.5", "2"], "holds numbers, not text"),
    ],
)
def test_a_text_column_holds_text(values: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(table(text=values, label=["x", "y"]), None)


def test_labels_are_words_or_whole_numbers() -> None:
    def names(*labels: Any) -> list[str]:
        return list(
            labelled(table(text=["a"] * len(labels), label=list(labels)), None, None).labels
        )

    assert names("x", 3, 1.0, True) == ["x", "3", "1", "True"]
    for wrong in (None, "", 0.5, [1]):
        with pytest.raises(DataError, match="row 2"):
            names("x", wrong)


def test_classes_are_ordered_by_value_or_alphabet() -> None:
    def part(*labels: str) -> Labelled:
        return Labelled(texts=["t"] * len(labels), labels=labels)

    assert classes_of(part("10", "9"), part("9", "2", "10", "9"), where="x") == ["2", "9", "10"]
    assert classes_of(part("b", "a"), part("c", "c", "a", "b"), where="x") == ["a", "b", "c"]
    with pytest.raises(DataError, match="same label, 'a'"):
        classes_of(part("a", "a"), where="x")
    with pytest.raises(DataError, match="these are not classes"):
        classes_of(part(*"abcdef"), where="x")


def test_splits_are_the_same_always_and_do_not_overlap() -> None:
    kept, held = held_out(100)
    assert (kept, held) == held_out(100)
    assert sorted(kept + held) == list(range(100))
    assert len(held) == 15
    data = table(text=[f"t{i}" for i in range(40)], label=["x", "y"] * 20)
    train, validation = split_labelled(Splits(train=data), None, None)
    assert len(train) == 34
    assert not set(train.texts) & set(validation.texts)
    train, validation = split_labelled(Splits(train=data, validation=data), None, None)
    assert list(train.texts) == data.columns["text"]
    assert sorted(validation.texts) == sorted(train.texts)
