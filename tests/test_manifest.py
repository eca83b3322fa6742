"""Manifests: what is read from them, and every kind of line that is refused, by its number."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from qwen3_tts_jax.batch.manifest import BadLine, Item, ManifestError, read


def write(folder: Path, *lines: str | dict, name: str = "manifest.jsonl") -> Path:
    path = folder / name
    rows = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_every_field_of_json_lines(tmp_path):
    whole = {
        "id": "α 1",
        "text": "Grüße, 世界.",
        "language": "german",
        "speaker": "ryan",
        "instruct": "softly",
        "text_mode": "as-it-comes",
        "max_seconds": 2,
        "split": 100,
        "seed": 2**31 - 1,
    }
    clone = {"id": 7, "text": "a", "reference": "me.wav", "reference_text": "I am.", "x_vector_only": False}
    alone = {"id": "c", "text": "b", "reference": "/r/me.wav", "x_vector_only": True, "voice": None}
    voice = {"text": "c", "voice": "v/me.safetensors"}
    url = {"id": "u", "text": "d", "reference": "https://example.org/a.wav", "reference_text": "e"}
    path = write(tmp_path, whole, "", clone, alone, "  ", voice, url)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    items, bad = read(path)
    assert bad == []
    assert items == [
        Item(1, **whole),
        Item(3, "7", "a", reference=str(tmp_path / "me.wav"), reference_text="I am."),
        Item(4, "c", "b", reference="/r/me.wav", x_vector_only=True),
        Item(6, "6", "c", voice=str(tmp_path / "v/me.safetensors")),
        Item(7, "u", "d", reference="https://example.org/a.wav", reference_text="e"),
    ]
    assert items[0].max_seconds == 2.0


def test_a_line_number_is_an_id_like_any_other(tmp_path):
    items, bad = read(write(tmp_path, {"id": "2", "text": "a"}, {"text": "b"}))
    assert [item.id for item in items] == ["2"]
    assert bad == [BadLine(2, "2", "the id '2' is a duplicate of that of line 1")]


def test_csv(tmp_path):
    path = write(
        tmp_path,
        "id,text,seed,max_seconds,x_vector_only,reference,instruct",
        'a,"Two lines,',
        'and a ""quote"".",3,1.5,yes,me.wav,',
        "",
        ",Second.,,,no,,sadly",
        "b,Third.",
        name="m.CSV",
    )
    items, bad = read(path)
    assert bad == []
    assert items == [
        Item(2, "a", 'Two lines,\nand a "quote".', seed=3, max_seconds=1.5, x_vector_only=True,
             reference=str(tmp_path / "me.wav")),
        Item(5, "5", "Second.", instruct="sadly"),
        Item(6, "b", "Third."),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"id": "x"}, "the text is missing"),
        ({"text": None}, "the text is missing"),
        ({"text": " \n"}, "text is empty"),
        ({"text": 5}, "text must be a text, not a number"),
        ({"text": ["a"]}, "text must be a text, not a list"),
        ('{"text": "\\ud800"}', "text has half of a surrogate pair"),
        ({"text": "a", "txet": "b", "lang": "c"}, "unknown fields 'txet', 'lang'; there are id, text, language"),
        ({"text": "a", "id": "../b"}, "id '../b' is no file name"),
        ({"text": "a", "id": "/etc/b"}, "id '/etc/b' is no file name"),
        ({"text": "a", "id": "a\\b"}, "is no file name"),
        ({"text": "a", "id": "a\x00b"}, "is no file name"),
        ({"text": "a", "id": ".."}, "id '..' is no safe file name"),
        ({"text": "a", "id": ".hidden"}, "is no safe file name"),
        ({"text": "a", "id": "-o"}, "is no safe file name"),
        ({"text": "a", "id": "a "}, "is no safe file name"),
        ({"text": "a", "id": "NUL"}, "on Windows it is a device"),
        ({"text": "a", "id": "com1.x"}, "on Windows it is a device"),
        ({"text": "a", "id": "ü" * 101}, "is too long: 202 bytes"),
        ({"text": "a", "id": ""}, "id is empty"),
        ({"text": "a", "id": True}, "id must be a text, not true or false"),
        ({"text": "a", "id": 1.5}, "id must be a text, not a number"),
        ({"text": "a", "text_mode": "all_at_once"}, "text_mode must be all-at-once or as-it-comes, got 'all_at_once'"),
        ({"text": "a", "text_mode": []}, "text_mode must be all-at-once"),
        ({"text": "a", "max_seconds": 0}, "max_seconds must be a number above 0, got 0"),
        ({"text": "a", "max_seconds": True}, "max_seconds must be a number above 0, got True"),
        ({"text": "a", "max_seconds": "soon"}, "max_seconds must be a number above 0, got 'soon'"),
        ('{"text": "a", "max_seconds": NaN}', "max_seconds must be a number above 0, got nan"),
        ('{"text": "a", "max_seconds": 1e999}', "max_seconds must be a number above 0, got inf"),
        ('{"text": "a", "max_seconds": 1' + "0" * 400 + "}", "max_seconds must be a number above 0"),
        ('{"text": "a", "seed": 1' + "0" * 5000 + "}", "is not usable JSON"),
        ({"text": "a", "seed": -1}, "seed must be a whole number 0 … 2147483647, got -1"),
        ({"text": "a", "seed": 2**31}, "seed must be"),
        ({"text": "a", "seed": 1.5}, "seed must be"),
        ({"text": "a", "seed": "1.5"}, "seed must be"),
        ({"text": "a", "seed": False}, "seed must be"),
        ({"text": "a", "seed": "²"}, "seed must be"),
        ({"text": "a", "x_vector_only": 1}, "x_vector_only must be true or false, got 1"),
        ({"text": "a", "x_vector_only": "maybe"}, "x_vector_only must be true or false, got 'maybe'"),
        ({"text": "a", "reference": "r.wav"}, "reference_text is missing"),
        ({"text": "a", "reference": "r.wav", "voice": "v"}, "reference and voice are two voices"),
        ({"text": "a", "reference": "r", "reference_text": "b", "x_vector_only": True}, "takes no reference_text"),
        ({"text": "a", "reference_text": "b"}, "reference_text is for a reference"),
        ({"text": "a", "reference_text": "b", "voice": "v"}, "the voice has its own"),
        ({"text": "a", "x_vector_only": True}, "x_vector_only is for a reference or a voice"),
        ({"text": "a", "voice": "~nobody-here/v.pt"}, "voice is of a user who is not known here"),
        ('{"text": "a"', "is not JSON: "),
        ('{"text": "a", "text": "b"}', "the field 'text' is given twice"),
        ("[1]", "is not a JSON object but a list"),
        ("null", "is not a JSON object but null"),
        ("[" * 100_000, "is not usable JSON"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_bad_lines(tmp_path, line, reason):
    items, bad = read(write(tmp_path, {"id": "good", "text": "a"}, line, {"id": "also", "text": "a"}))
    assert [item.id for item in items] == ["good", "also"]
    assert [found.line for found in bad] == [2]
    assert reason in bad[0].reason
    assert str(bad[0]).startswith("line 2")


def test_all_that_is_wrong_with_a_line(tmp_path):
    (bad,) = read(write(tmp_path, {"id": "x", "seed": -1, "voices": 2}))[1]
    assert str(bad).startswith("line 1 (x): unknown field 'voices'; there are ")
    assert "; seed must be" in bad.reason
    assert bad.reason.endswith("; the text is missing")


def test_bytes_that_are_not_utf_8(tmp_path):
    path = write(tmp_path, {"text": "a"}, '{"text": "ü"}')
    path.write_bytes(path.read_bytes().replace("ü".encode(), b"\xfc"))
    assert read(path)[1] == [BadLine(2, None, "is not UTF-8 text: byte 10 is 0xfc")]
    text = tmp_path / "m.txt"
    text.write_bytes(b"a\n\xfc\n")
    assert read(text)[1] == [BadLine(2, None, "is not UTF-8 text: byte 0 is 0xfc")]
    csv = tmp_path / "m.csv"
    csv.write_bytes(b"text\na\n\xfc\n")
    with pytest.raises(ManifestError, match=r"m\.csv is not UTF-8 text: line 3 has the byte 0xfc"):
        read(csv)


@pytest.mark.parametrize("name", ["hello.wav", "m.jsonl", "m.csv", "m.txt"])
def test_a_file_that_is_no_text_is_one_problem(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"RIFF\x00\n\xfc\n\xfc\n")
    with pytest.raises(ManifestError, match=f"{name} is no manifest: it is not UTF-8 text"):
        read(path)


def test_plain_text_has_a_text_in_each_line(tmp_path):
    path = tmp_path / "m.TXT"
    path.write_bytes(b'\xef\xbb\xbfOne, "two".\r\n \n\t{"text": "x"} \n')
    assert read(path) == ([Item(1, "1", 'One, "two".'), Item(3, "3", '{"text": "x"}')], [])


def test_standard_input_has_json_lines(tmp_path, monkeypatch):
    def given(content):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    given(b'{"text": "a", "voice": "v.pt"}\n')
    assert read(Path("-")) == ([Item(1, "1", "a", voice="v.pt")], [])
    given(b"")
    with pytest.raises(ManifestError, match="standard input is empty"):
        read(Path("-"))


@pytest.mark.parametrize(
    ("first", "second"), [("a", "a"), ("A", "a"), ("\u00e9", "e\u0301"), ("Straße", "STRASSE")], ids=ascii
)  # fmt: skip
def test_ids_that_name_the_same_file(tmp_path, first, second):
    items, bad = read(write(tmp_path, {"id": first, "text": "a"}, {"id": second, "text": "b"}))
    assert len(items) == 1
    assert [str(line) for line in bad] == [f"line 2 ({second}): the id {second!r} is a duplicate of that of line 1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.jsonl", "", "m.jsonl is empty"),
        ("m.jsonl", " \n\n", "m.jsonl is empty"),
        ("m.csv", "", "m.csv is empty"),
        ("m.csv", "id,text\n", "m.csv is empty"),
        ("m.csv", "id,txet,x\na,b,c\n", "has the unknown columns 'txet', 'x': its first line must name the columns"),
        ("m.csv", "text,text\na,b\n", "names a column twice"),
        ("m.csv", "id,seed\na,1\n", "has no column 'text'"),
    ],
)
def test_files_that_are_no_manifests(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError, match=message):
        read(tmp_path / name)


def test_csv_rows_that_are_wrong(tmp_path):
    path = write(tmp_path, "id,text", "a,b,c", "d,e", name="m.csv")
    items, bad = read(path)
    assert [item.id for item in items] == ["d"]
    assert bad == [BadLine(2, None, "has 3 cells for 2 columns; quote commas")]


def test_whole_numbers_as_pandas_writes_them(tmp_path):
    """Of a column that has gaps."""
    (item,), bad = read(write(tmp_path, {"text": "a", "seed": 3.0, "split": 100.0, "max_seconds": None}))
    assert (item.seed, item.split, type(item.seed), bad) == (3, 100, int, [])
    (item, other), bad = read(write(tmp_path, "text,seed,split", "a,3.0,100.0", "b,,", name="m.csv"))
    assert (item.seed, item.split, other.seed, bad) == (3, 100, None, [])


def test_an_open_quote_in_csv_hides_all_that_follows(tmp_path):
    path = write(tmp_path, "id,text", "a,b", 'c,"d', "e,f", name="m.csv")
    with pytest.raises(ManifestError, match=r"m\.csv is not CSV from line 3 on: "):
        read(path)


def test_a_long_cell_of_csv(tmp_path):
    (item,), bad = read(write(tmp_path, "text", f'"{"a, " * 100_000}"', name="m.csv"))
    assert (len(item.text), bad) == (300_000, [])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "absent.jsonl")
