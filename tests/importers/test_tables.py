"""Tables as text: what files of shops look like, and what becomes of rows that cannot be read."""

import gzip
import json
import sys
import zipfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.extras import MissingLibraryError
from mmfusion.importers import rows as importer_rows
from mmfusion.importers.arrow_table import ArrowTable
from mmfusion.importers.items import ImportLog
from mmfusion.importers.source import SourceFile
from mmfusion.importers.tables import TextTable, open_table


def source(folder: Path, name: str, content: str | bytes) -> SourceFile:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return SourceFile(path, name)


def table(file: SourceFile) -> TextTable:
    found = open_table(file)
    assert found is not None
    return found


def cells(file: SourceFile, log: ImportLog | None = None) -> list[list[str]]:
    return [row.cells for row in table(file).rows(log or ImportLog())]


def test_cells_stay_text(tmp_path: Path) -> None:
    row = ["0071", "1E5", "0x1F", "12345678901234567890", "NA", "null", "10:30", "1,299.00"]
    file = source(tmp_path, "a.csv", "a,b,c,d,e,f,g,h\n" + ",".join(row[:-1]) + ',"1,299.00"\n')
    assert cells(file) == [row]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends(tmp_path: Path, delimiter: str, end: str) -> None:
    rows = [["sku", "name", "cost"], ["01", "Kettle", "12"], ["02", "Pan", ""], ["03", "Lid", "3"]]
    text = end.join(delimiter.join(row) for row in rows) + end
    found = table(source(tmp_path, "a.csv", text))
    assert found.columns == rows[0]
    assert [(row.line, row.cells) for row in found.rows(ImportLog())] == [(2, rows[1]), (3, rows[2]), (4, rows[3])]


def test_semicolons_with_decimal_commas_and_lists(tmp_path: Path) -> None:
    text = "sku;name;cost;tags\n01;Kettle;12,50;a,b,c\n02;Pan;9,00;a,b\n"
    assert cells(source(tmp_path, "a.csv", text))[0] == ["01", "Kettle", "12,50", "a,b,c"]


def test_comma_table_with_lists_by_semicolon(tmp_path: Path) -> None:
    text = "sku,tags\n01,a;b;c\n02,d;e;f\n"
    assert cells(source(tmp_path, "a.csv", text)) == [["01", "a;b;c"], ["02", "d;e;f"]]


def test_mixed_line_ends_and_newlines_in_quotes(tmp_path: Path) -> None:
    found = table(source(tmp_path, "a.csv", 'sku,text\r\n1,"one\ntwo\r\n"\n2,b\r\n\r\n3,c'))
    assert [(row.line, row.cells) for row in found.rows(ImportLog())] == [
        (2, ["1", "one\ntwo\r\n"]),
        (5, ["2", "b"]),
        (7, ["3", "c"]),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings_that_are_certain(tmp_path: Path, encoding: str) -> None:
    log = ImportLog()
    file = source(tmp_path, "a.csv", "sku,name\n01,Größe – 日本\n".encode(encoding))
    assert table(file).columns == ["sku", "name"]
    assert cells(file, log) == [["01", "Größe – 日本"]]
    assert not log.warnings


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf_16_without_a_mark_and_with_little_ascii(tmp_path: Path, encoding: str) -> None:
    text = "商品番号,商品名,説明\n" + "".join(f"{number},赤いカップ,一番\n" for number in range(10, 20))
    log = ImportLog()
    file = source(tmp_path, "a.csv", text.encode(encoding))
    assert cells(file, log)[0] == ["10", "赤いカップ", "一番"] and not log.warnings


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Mütze – für große Köpfe"),
        ("cp1252", "Bonnet d’été à pois, côté façade"),
        ("cp1250", "Miękka czapka, źródło ciepła, żółte kółka, ćma"),
        ("cp1250", "Dětská čepice s květy, příjemný materiál, žlutá"),
        ("cp1254", "Kırmızı şapka, güneşli günler için yumuşak kumaş"),
        ("cp1251", "Тёплая шапка для долгой зимы"),
        ("koi8_r", "Тёплая шапка для долгой зимы"),
        ("cp1253", "Ζεστό καπέλο για τον χειμώνα"),
        ("cp932", "冬の暖かい帽子、柔らかい素材です"),
        ("gb18030", "冬天的暖帽，柔软的面料，适合孩子"),
        ("mac_roman", "Mütze für große Köpfe, schön weich"),
        ("cp850", "Mütze für große Köpfe, schön weich"),
    ],
)
@pytest.mark.parametrize("rows", [2, 8])
def test_encodings_that_letters_speak_for(tmp_path: Path, encoding: str, text: str, rows: int) -> None:
    lines = "".join(f"{number:04};{text}\n" for number in range(rows))
    log = ImportLog()
    file = source(tmp_path, "a.csv", ("sku;name\n" + lines).encode(encoding))
    assert cells(file, log)[0] == ["0000", text]
    assert len(log.warnings) == 1 and encoding in log.warnings[0]


def test_a_few_letters_are_windows_1252(tmp_path: Path) -> None:
    assert cells(source(tmp_path, "a.csv", "sku,name\n1,Été\n".encode("cp1252"))) == [["1", "Été"]]


def test_a_letter_that_comes_late_decides(tmp_path: Path) -> None:
    text = "sku,name\n" + "".join(f"{number},plain\n" for number in range(20_000)) + "x,Größe\n"
    assert cells(source(tmp_path, "a.csv", text.encode("cp1252")))[-1] == ["x", "Größe"]


def test_stray_bytes_in_utf8(tmp_path: Path) -> None:
    log = ImportLog()
    text = "sku,name\n1,Größe\n2,schön, \n".encode() + b"3,\x80 19\n"
    assert cells(source(tmp_path, "a.csv", text), log)[-1] == ["3", "€ 19"]
    assert "some bytes are Windows-1252" in log.warnings[0]


def test_lines_above_the_header_are_left_out(tmp_path: Path) -> None:
    log = ImportLog()
    found = table(
        source(tmp_path, "a.csv", "Products of 2031\n\n# made by hand\nsku,name,cost\n01,Kettle,3\n02,Pan,4\n")
    )
    assert found.columns == ["sku", "name", "cost"]
    assert [row.line for row in found.rows(log)] == [5, 6]
    assert len(log.warnings) == 2


def test_a_header_with_some_names_missing(tmp_path: Path) -> None:
    text = "sku,,name,,,cost,,\n1,a,b,c,d,e,f,g\n2,a,b,c,d,e,f,g\n"
    assert table(source(tmp_path, "a.csv", text)).columns[:3] == ["sku", "column 2", "name"]
    text = "Goods,2031,,\nsku,name,cost,kind\n1,a,b,c\n2,a,b,c\n"
    assert table(source(tmp_path, "b.csv", text)).columns == ["sku", "name", "cost", "kind"]


def test_a_comment_that_is_as_wide_as_the_header(tmp_path: Path) -> None:
    text = "# Required | an id,# Required | a name\nsku,name\n01,Kettle\n02,Pan\n"
    assert table(source(tmp_path, "a.csv", text)).columns == ["sku", "name"]
    assert table(source(tmp_path, "b.csv", "#sku,name\n01,Kettle\n")).columns == ["sku", "name"]


def test_rows_with_another_delimiter_are_rejected(tmp_path: Path) -> None:
    log = ImportLog()
    assert len(cells(source(tmp_path, "a.csv", "sku,name,cost\n01,Pan,1\n02;Lid;2\n03,Cup,3\n"), log)) == 2
    assert log.rejected == [("a.csv", 3, "1 field for 3 columns")]


def test_a_line_that_names_the_delimiter(tmp_path: Path) -> None:
    assert cells(source(tmp_path, "a.csv", "sep=;\nsku;name\n01;Pan, small\n02;Lid, small\n")) == [
        ["01", "Pan, small"],
        ["02", "Lid, small"],
    ]


def test_names_that_are_missing_or_there_twice(tmp_path: Path) -> None:
    found = table(source(tmp_path, "a.csv", "sku,,image, image \n1,b,c,d\n"))
    assert found.columns == ["sku", "column 2", "image", "image (2)"]


def test_surplus_belongs_to_a_last_column_of_words(tmp_path: Path) -> None:
    log = ImportLog()
    file = source(tmp_path, "a.csv", "sku,kind,name\n1,pan,A pan, small, red\n2,lid,A blue lid\n3,lid,A red lid\n")
    assert cells(file, log)[0] == ["1", "pan", "A pan, small, red"]
    assert log.rejected == [] and "line 2" in log.warnings[0] and "'name'" in log.warnings[0]


def test_surplus_elsewhere_and_short_rows_are_rejected(tmp_path: Path) -> None:
    log = ImportLog()
    file = source(tmp_path, "a.csv", "sku,name,cost\n1,pan,3\n2,lid, red,4\n3,pot\n4,cup,5,\n5,mug,6\n6,jar,7\n")
    assert [row[0] for row in cells(file, log)] == ["1", "4", "5", "6"]
    assert log.rejected == [("a.csv", 3, "4 fields for 3 columns"), ("a.csv", 4, "2 fields for 3 columns")]


def test_rows_that_leave_out_blank_ends(tmp_path: Path) -> None:
    log = ImportLog()
    rows = "".join(f"{number},pan\n{number}b,lid,3\n" for number in range(10))
    found = cells(source(tmp_path, "a.csv", "sku,name,cost\n" + rows), log)
    assert len(found) == 20 and found[0] == ["0", "pan", ""] and not log.rejected


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_file_cut_in_a_row(tmp_path: Path, end: str) -> None:
    log = ImportLog()
    assert len(cells(source(tmp_path, "a.csv", "sku,name,cost\n1,pan,3\n2,li" + end), log)) == 1
    assert log.rejected == [("a.csv", 3, "2 fields for 3 columns")]
    log = ImportLog()
    assert len(cells(source(tmp_path, "b.csv", 'sku,name,cost\n1,pan,3\n2,"li' + end), log)) == 1
    assert log.rejected == [("b.csv", 3, "a quote is opened and not closed")]


def test_a_quote_that_stays_open_swallows_nothing(tmp_path: Path) -> None:
    log = ImportLog()
    text = 'sku,name\n1,"pan\n2,lid\n3,"pot"\n4,"jar\nof glass"\n5,12" plate\n'
    assert cells(source(tmp_path, "a.csv", text), log) == [
        ["2", "lid"],
        ["3", "pot"],
        ["4", "jar\nof glass"],
        ["5", '12" plate'],
    ]
    assert log.rejected == [("a.csv", 2, "a quote is opened and not closed")]


def test_quotes_by_backslash(tmp_path: Path) -> None:
    text = 'sku,name\n"1","pan \\"big\\", red"\n"2","C:\\\\"\n"3","a\\nb"\n'
    assert cells(source(tmp_path, "a.csv", text)) == [["1", 'pan "big", red'], ["2", "C:\\\\"], ["3", "a\\nb"]]


def test_blank_after_the_delimiter(tmp_path: Path) -> None:
    assert cells(source(tmp_path, "a.csv", 'sku, name, cost\n1, "pan, red", 3\n')) == [["1", "pan, red", "3"]]


def test_rows_beyond_the_limit_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("delimited", "json_table"):
        monkeypatch.setattr(f"mmfusion.importers.{module}.MAX_ROW", 1000)
    log = ImportLog()
    text = "sku,name\n1,a\n2," + "x" * 5000 + '\n3,b\n4,"' + "y\n" * 2000 + '"\n5,c\n'
    assert [row[0] for row in cells(source(tmp_path, "a.csv", text), log)] == ["1", "3", "5"]
    reasons = {line: reason for _, line, reason in log.rejected}
    assert reasons[3].startswith("a row of more than") and reasons[5] == "a quote is opened and not closed"
    lines = [json.dumps({"sku": "1"}), json.dumps({"sku": "2" * 5000}), json.dumps({"sku": "3"})]
    log = ImportLog()
    assert cells(source(tmp_path, "a.jsonl", "\n".join(lines)), log) == [["1"], ["3"]]
    assert [line for _, line, _ in log.rejected] == [2]
    assert importer_rows.MAX_ROW == 1 << 24


def test_long_cells_are_read(tmp_path: Path) -> None:
    assert len(cells(source(tmp_path, "a.csv", "sku,name\n1," + "x" * 500_000 + "\n"))[0][1]) == 500_000


def test_nul_bytes_are_removed(tmp_path: Path) -> None:
    log = ImportLog()
    assert cells(source(tmp_path, "a.csv", b"sku,name\n1,pa\0n\n\0\0\0\n2,lid\n"), log) == [["1", "pan"], ["2", "lid"]]
    assert "NUL bytes" in log.warnings[0]


def test_the_header_once_more(tmp_path: Path) -> None:
    log = ImportLog()
    assert cells(source(tmp_path, "a.csv", "sku,name\n1,pan\nsku,name\n2,lid\n"), log) == [["1", "pan"], ["2", "lid"]]
    assert log.left_out == {"a.csv: the header once more": 1}


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_header_alone_is_an_error(tmp_path: Path, name: str) -> None:
    found = table(source(tmp_path, name, "sku,name\n"))
    with pytest.raises(CatalogueError, match=f"{name}: holds a header and no rows"):
        list(found.rows(ImportLog()))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.xlsx", "a.parquet"])
def test_an_empty_table_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(CatalogueError, match=f"{name}: is empty"):
        open_table(source(tmp_path, name, "\n"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", "Dear reader,\nthis is a letter, and no table.\nYours, me\n"),
        ("a.md", "a,b\n1,2\n"),
        ("a.txt", b"\x00\x01\x02\x03" * 100),
        ("a.csv", "<html><body>Please log in</body></html>"),
        ("a.json", '{"name": "config", "size": 3}'),
        ("a.json", "[1, 2, 3]"),
        ("noname", "1 0 d1 2\n1 0 d2 1\n"),
    ],
)
def test_what_is_no_table(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert open_table(source(tmp_path, name, content)) is None


def test_a_file_that_changes_is_opened_again(tmp_path: Path) -> None:
    assert table(source(tmp_path, "a.csv", "a,b\n1,2\n")).columns == ["a", "b"]
    assert table(source(tmp_path, "a.csv", "sku,name,cost\n1,2,3\n")).columns == ["sku", "name", "cost"]


def test_compressed(tmp_path: Path) -> None:
    file = source(tmp_path, "a.csv.gz", gzip.compress(b"sku,name\n01,pan\n"))
    assert cells(file) == [["01", "pan"]]
    assert cells(source(tmp_path, "a.csv", gzip.compress(b"sku,name\n01,pan\n"))) == [["01", "pan"]]
    content = gzip.compress("".join(f"{n},{n * 7919}\n" for n in range(90_000)).encode())
    with pytest.raises(CatalogueError, match=r"b\.csv\.gz: cannot be read"):
        cells(source(tmp_path, "b.csv.gz", content[: len(content) // 2]))


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n"])
def test_json_lines(tmp_path: Path, ending: str) -> None:
    rows = [
        '{"id": 12345678901234567890, "price": 19.90, "new": true, "tags": ["a", "b"]}',
        '{"id": "007", "price": null, "late": "x"}',
        '{"id": "008", ',
        "[1]",
        '{"price": 3}',
    ]
    log = ImportLog()
    found = table(source(tmp_path, "a.jsonl", ending.join(rows)))
    assert found.columns == ["id", "price", "new", "tags", "late"]
    assert [row.cells for row in found.rows(log)] == [
        ["12345678901234567890", "19.90", "true", ["a", "b"], ""],
        ["007", "", "", "", "x"],
        ["", "3", "", "", ""],
    ]
    step = len(ending.replace("\r", ""))
    assert [(line, reason[:8]) for _, line, reason in log.rejected] == [
        (1 + 2 * step, "not JSON"),
        (1 + 3 * step, "not JSON"),
    ]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("key", [None, "products"])
def test_json_arrays(tmp_path: Path, indent: int | None, key: str | None) -> None:
    rows = [{"id": str(number), "title": "{[,]}" * number, "images": [{"src": "a"}]} for number in range(30)]
    content = json.dumps({key: rows} if key else rows, indent=indent)
    assert cells(source(tmp_path, "b.json", content.replace("\n", "\r\n"))) == cells(
        source(tmp_path, "a.json", content)
    )
    assert cells(source(tmp_path, "a.json", content)) == [[row["id"], row["title"], row["images"]] for row in rows]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_half_an_emoji_in_json(tmp_path: Path, name: str) -> None:
    rows = [{"id": "1", "name": "Cup \ud83d"}, {"id": "2", "name": "Mug \U0001f3fa"}]
    text = json.dumps(rows) if name == "a.json" else "\n".join(map(json.dumps, rows))
    assert cells(source(tmp_path, name, text)) == [["1", "Cup ?"], ["2", "Mug \U0001f3fa"]]


def test_json_arrays_that_end_early_or_are_broken(tmp_path: Path) -> None:
    log = ImportLog()
    assert cells(source(tmp_path, "a.json", '[{"id": "1"},\n{"id": "2'), log) == [["1"]]
    assert log.rejected == [("a.json", 2, "not JSON: the file ends in the middle")]


def sheet(*rows: str) -> bytes:
    """XML of a sheet; each row is the XML of its cells."""
    body = "".join(f'<row r="{number}">{row}</row>' for number, row in enumerate(rows, 1))
    name = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    return f'<worksheet xmlns="{name}"><sheetData>{body}</sheetData></worksheet>'.encode()


def words(*values: str) -> str:
    return "".join(f'<c t="inlineStr"><is><t>{value}</t></is></c>' for value in values)


def number(value: str) -> str:
    return f"<c><v>{value}</v></c>"


def workbook(path: Path, **sheets: bytes) -> SourceFile:
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    links = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    names = "".join(f'<sheet name="{name}" sheetId="{n}" r:id="r{n}"/>' for n, name in enumerate(sheets, 1))
    package = "http://schemas.openxmlformats.org/package/2006"
    related = "".join(
        f'<Relationship Id="r{n}" Type="{links}/worksheet" Target="worksheets/sheet{n}.xml"/>'
        for n in range(1, len(sheets) + 1)
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "xl/workbook.xml", f'<workbook xmlns="{main}" xmlns:r="{links}"><sheets>{names}</sheets></workbook>'
        )
        archive.writestr(
            "xl/_rels/workbook.xml.rels", f'<Relationships xmlns="{package}/relationships">{related}</Relationships>'
        )
        archive.writestr(
            "_rels/.rels",
            f'<Relationships xmlns="{package}/relationships"><Relationship Id="r1" Type="{links}/officeDocument" '
            'Target="xl/workbook.xml"/></Relationships>',
        )
        archive.writestr("[Content_Types].xml", f'<Types xmlns="{package}/content-types"/>')
        for n, content in enumerate(sheets.values(), 1):
            archive.writestr(f"xl/worksheets/sheet{n}.xml", content)
    return SourceFile(path, path.name)


def test_excel(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    file = workbook(
        tmp_path / "a.xlsx",
        Info=sheet(),
        Cover=sheet(words("Price list"), words("Spring")),
        Goods=sheet(
            words("Our goods"),
            "",
            words("sku", "name", "ean", "cost"),
            words("0071", "Pan") + number("4006381333931") + number("19.95"),
            number("72") + words("Lid") + number("12345678901234567000"),
        ),
        Old=sheet(words("a", "b"), words("c", "d")),
    )
    log = ImportLog()
    found = table(file)
    assert found.columns == ["sku", "name", "ean", "cost"]
    assert [(row.line, row.cells) for row in found.rows(log)] == [
        (4, ["0071", "Pan", "4006381333931", "19.95"]),
        (5, ["72", "Lid", "12345678901234567000", ""]),
    ]
    assert any("'Goods' is read, not 'Cover', 'Old'" in one for one in log.warnings)
    assert any("'ean' have more than 15 digits" in one for one in log.warnings)


def test_excel_needs_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = workbook(tmp_path / "a.xlsx", One=sheet(words("a", "b")))
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(MissingLibraryError, match=r"mmfusion\[excel\]"):
        open_table(file)


def test_excel_that_is_cut_off(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    file = workbook(tmp_path / "a.xlsx", One=sheet(words("a", "b")))
    file.path.write_bytes(file.path.read_bytes()[:300])
    with pytest.raises(CatalogueError, match=r"a\.xlsx: this workbook cannot be read"):
        open_table(file)


def test_a_workbook_that_is_called_text(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    file = workbook(tmp_path / "a.csv", One=sheet(words("sku", "name"), words("01", "Pan")))
    assert cells(file) == [["01", "Pan"]]


def test_objects_in_a_text_file(tmp_path: Path) -> None:
    assert cells(source(tmp_path, "a.txt", '{"sku": "01"}\n{"sku": "02"}\n')) == [["01"], ["02"]]


def test_text_that_is_called_a_workbook(tmp_path: Path) -> None:
    assert cells(source(tmp_path, "a.xls", "sku\tname\n01\tpan\n02\tlid\n")) == [["01", "pan"], ["02", "lid"]]


def test_parquet(tmp_path: Path) -> None:
    columns = {
        "big": pa.array([12345678901234567890, 7], pa.uint64()),
        "float_id": pa.array([12345.0, None], pa.float64()),
        "price": pa.array([19.95, 3.0], pa.float32()),
        "kind": pa.array(["pan", None]).dictionary_encode(),
        "photos": pa.array([["a.jpg", "b.jpg"], None]),
        "photo": pa.array([{"bytes": b"1", "path": None}, None]),
        "none": pa.nulls(2),
        "new": pa.array([True, False]),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = table(SourceFile(tmp_path / "a.parquet", "a.parquet"))
    assert found.columns == list(columns)
    assert [tuple(row) for row in found.rows(ImportLog())] == [
        (
            1,
            [
                "12345678901234567890",
                "12345",
                "19.95",
                "pan",
                ["a.jpg", "b.jpg"],
                {"bytes": b"1", "path": None},
                "",
                "true",
            ],
        ),
        (2, ["7", "", "3", "", "", "", "", "false"]),
    ]


def test_parquet_ids_that_were_rounded(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1e19, 1.0]}), tmp_path / "a.parquet")
    log = ImportLog()
    cells(SourceFile(tmp_path / "a.parquet", "a.parquet"), log)
    assert "'id' above 2^53" in log.warnings[0]


def test_parquet_that_is_cut_off(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["1"]}), tmp_path / "a.parquet")
    file = source(tmp_path, "a.parquet", (tmp_path / "a.parquet").read_bytes()[:-10])
    with pytest.raises(CatalogueError, match=r"a\.parquet: cannot be read"):
        open_table(file)


CELL = st.text(st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\t\x85"), max_size=12)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=8), st.sampled_from(",;\t|"))
def test_any_cells_come_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], by: str
) -> None:
    def quoted(cell: str) -> str:
        return '"' + cell.replace('"', '""') + '"'

    lines = [by.join(["sku", "name", "cost"]), *(by.join(map(quoted, ("x", *row[1:]))) for row in rows)]
    file = source(tmp_path_factory.mktemp("any"), "a.csv", "\n".join(lines).encode("utf-8-sig"))
    assert cells(file) == [["x", *row[1:]] for row in rows]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
def test_labels_and_photos_of_datasets(tmp_path: Path, kind: str) -> None:
    features = {
        "photo": datasets.Image(),
        "kind": datasets.ClassLabel(names=["pan", "lid"]),
        "n": datasets.Value("int8"),
    }
    rows = {"photo": [{"bytes": b"1", "path": None}, None], "kind": [1, -1], "n": [0, None]}
    data = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(data.data.table, path)
    else:
        new = pa.ipc.new_stream if kind == "arrow" else pa.ipc.new_file
        with new(str(path), data.data.schema) as writer:
            writer.write_table(data.data.table)
    assert cells(SourceFile(path, path.name)) == [[{"bytes": b"1", "path": None}, "lid", "0"], ["", "", ""]]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_large_photos_are_read_a_few_at_a_time(tmp_path: Path, kind: str) -> None:
    rows = pa.table({"photo": [bytes(5 << 20)] * 10})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(rows, path, compression="none", use_dictionary=False)
    else:
        with pa.ipc.new_stream(str(path), rows.schema) as writer:
            writer.write_table(rows)
    found = table(SourceFile(path, path.name))
    assert isinstance(found, ArrowTable)
    assert [len(batch) for batch in found.batches()] == [3, 3, 3, 1]


def test_arrow_that_is_cut_off(tmp_path: Path) -> None:
    with pa.ipc.new_stream(str(tmp_path / "a.arrow"), pa.schema([("id", pa.string())])) as writer:
        writer.write_table(pa.table({"id": ["1" * 500]}))
    file = source(tmp_path, "a.arrow", (tmp_path / "a.arrow").read_bytes()[:-600])
    with pytest.raises(CatalogueError, match=r"a\.arrow: cannot be read"):
        cells(file)
