"""Readers of click data: kinds, columns, numbers, queries, what is left out and why."""

import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.click_columns import NAMES, choose_columns
from mmfusion.importers.clicks import ClickLog, parse_count, read_clicks
from mmfusion.importers.query_texts import normalise_query, unwanted_query

KNOWN = {"0041", "0042", "43", "1E5", "90071992547409931234"}
REPORT = "Search Term,Product ID,Impressions,Clicks\n"


def write(folder: Path, text: str, name: str = "report.csv", encoding: str = "utf-8") -> Path:
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def read(path: Path, known: Any = KNOWN, **options: Any) -> tuple[ClickLog, list[tuple[int, str]]]:
    """The log, and line and reason of what was left out."""
    left_out: list[tuple[int, str]] = []
    log = read_clicks(path, known, reject=lambda file, line, reason: left_out.append((line, reason)), **options)
    return log, left_out


def counts_of(log: ClickLog) -> dict[str, list[int]]:
    """Impressions, clicks, carts and purchases by "query / product"."""
    sums = log.cells.groupby(["query", "product"])[["impressions", "clicks", "add_to_cart", "purchases"]].sum()
    return {f"{log.queries[query]} / {log.products[item]}": list(row) for (query, item), *row in sums.itertuples()}


def positions_of(log: ClickLog) -> list[int]:
    return sorted(set(log.cells["position"]))


# The samples


def test_the_sample_report_is_read_as_expected(samples: Path) -> None:
    folder = samples / "clicks"
    expected = json.loads((folder / "expected.json").read_text())["files"]["search_report.csv"]
    log, left_out = read(folder / "search_report.csv", {"007", "008", "009", "010"})
    assert log.queries == expected["normalised_queries"]
    assert counts_of(log)["red dress / 007"] == list(expected["merged_rows"]["red dress / 007"].values())
    assert log.warnings == expected["warnings"]
    assert (log.num_rows, log.num_merged, log.has_sessions, log.has_positions) == (11, 1, False, True)
    assert log.counts == {"query is a placeholder": 1, "query is blank": 1, "product is unknown": 1}
    reasons = ["query is a placeholder: (not set)", "product is unknown: '0999'", "query is blank"]
    assert left_out == list(zip([8, 9, 11], reasons, strict=True))


def test_the_sample_events_are_read_as_expected(samples: Path) -> None:
    log, left_out = read(samples / "clicks" / "ubi_events.ndjson", {"007", "008", "009", "010"})
    assert log.kind == "UBI events" and log.queries == ["red dress"] and not left_out
    assert log.sessions is not None and log.sessions["session"].nunique() == 4
    assert log.num_merged == 1  # a click that is repeated in its session
    assert counts_of(log)["red dress / 007"] == [4, 2, 1, 0]


# Reports


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("Search Term,Product ID,Avg. Position,Impressions,Clicks,Add to Cart,Purchases", "mug,0041,2,90,8,3,1"),
        ("search,hit,trackedHitCount,clickCount,averageClickPosition,addToCartCount,purchaseCount",
         "mug,0041,90,8,2,3,1"),
        ("Search term\tItem ID\tItem list position\tItems viewed in list\tItems clicked in list\tItems added to cart"
         "\tItems purchased", "mug\t0041\t2\t90\t8\t3\t1"),
        ("Search Term;Product SKU;Product List Position;Product List Views;Product List Clicks;Product List CTR;"
         "Product Adds To Cart;Unique Purchases", "mug;0041;2;90;8;8,89 %;3;1"),
        ("Suchbegriff;Artikelnummer;Durchschnittliche Position;Impressionen;Klicks;Warenkorb;Bestellungen",
         "mug;0041;2,0;90;8;3;1"),
        ("query|doc_id|avg_rank|views|clicks|carts|orders", "mug|0041|2|90|8|3|1"),
        ("date,Search query,Product title,SKU,Position,Impressions,Clicks,CTR,Added to cart,Orders,Revenue",
         "2026-05-01,mug,A mug,0041,2,90,8,8.9%,3,1,12.50"),
    ],
)  # fmt: skip
def test_columns_are_recognised_by_the_names_that_tools_give_them(tmp_path: Path, header: str, row: str) -> None:
    log, left_out = read(write(tmp_path, f"{header}\n{row}\n{row}\n"))
    assert counts_of(log) == {"mug / 0041": [180, 16, 6, 2]} and not left_out
    assert positions_of(log) == [2] and log.num_merged == 1 and log.kind == "aggregated report"


def test_what_stands_above_the_header_of_google_analytics_is_no_row(tmp_path: Path) -> None:
    text = f"# ----------\n# Search terms\n# 20260501-20260531\n# ----------\n\n{REPORT}" + 6 * "mug,0041,9,2\n"
    log, left_out = read(write(tmp_path, text))
    assert counts_of(log) == {"mug / 0041": [54, 12, 0, 0]} and not left_out


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1,000", 1000), ("1.000", 1000), ("1 000", 1000), ("1\u00a0000", 1000), ("1\u202f000", 1000), ("1'000", 1000),
        ("1’000", 1000), ("1,234,567", 1234567), ("1.234.567,00", 1234567), ("12,34,567", 1234567), ("0", 0), ("", 0),
        ("-", 0), ("007", 7), ("12.0", 12), ("12,00", 12), ("1.2E+03", 1200), ("true", 1), ("１２", 12),
        ("1,2", None), ("1.5", None), ("-3", None), ("−3", None), ("(3)", None), ("5%", None), ("many", None),
        ("1,00", 1), ("1,23,4", None), ("9" * 400, None), ("1e99", None), ("inf", None), ("<10", None),
    ],
)  # fmt: skip
def test_counts_are_read_with_the_thousands_separators_of_any_country(text: str, number: int | None) -> None:
    assert parse_count(text) == number


def test_ids_are_texts(tmp_path: Path) -> None:
    rows = "".join(f"mug,{name},30,1\n" for name in ("0041", "1E5", "90071992547409931234", "41"))
    log, left_out = read(write(tmp_path, REPORT + rows))
    assert log.products == ["0041", "1E5", "90071992547409931234"]
    assert left_out == [(5, "product is unknown: '41'")]
    assert any("'0041' is known: leading zeros were lost" in warning for warning in log.warnings)


def test_ids_of_variants_become_those_of_products(tmp_path: Path) -> None:
    path = write(tmp_path, REPORT + "mug,SKU-1,30,1\nmug,gid://shopify/Product/43,30,2\nmug,SKU-2,5,1\n")
    log, _ = read(path, {"SKU-1": "0041", "SKU-2": "0041", "43": "43"})
    assert counts_of(log) == {"mug / 0041": [35, 2, 0, 0], "mug / 43": [30, 2, 0, 0]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("mug,0041,-5,1", "impressions is not a count: '-5'"),
        ("mug,0041,50,12%", "clicks is not a count: '12%'"),
        ("mug,0041,many,1", "impressions is not a count: 'many'"),
        ("mug,,50,1", "product is blank"),
        ("mug,0041,50", "3 fields for 4 columns"),
        ("(other),0041,50,1", "query is a placeholder: (other)"),
        ("Anna@Example.org,0041,50,1", "query looks like an e-mail address"),
    ],
)
def test_a_bad_row_is_left_out_and_named(tmp_path: Path, row: str, reason: str) -> None:
    log, left_out = read(write(tmp_path, f"{REPORT}mug,0042,40,2\n{row}\nmug,43,40,2\n"))
    assert left_out == [(3, reason)]
    assert log.counts == {reason.partition(":")[0]: 1} and set(counts_of(log)) == {"mug / 0042", "mug / 43"}


def test_a_file_cut_in_the_middle_of_a_row_loses_that_row_alone(tmp_path: Path) -> None:
    log, left_out = read(write(tmp_path, f'{REPORT}mug,0041,40,2\nmug,0042,40,1\nred "dr,43,9,1\n"green dre'))
    assert [line for line, _ in left_out] == [5] and len(counts_of(log)) == 3


@pytest.mark.parametrize("encoding", ["utf-8-sig", "cp1252", "utf-16"])
def test_encodings_are_found(tmp_path: Path, encoding: str) -> None:
    text = REPORT.replace(",", "\t") + "grüne Schürze\t0041\t40\t2\ncrème brûlée\t0042\t40\t1\n"
    log, _ = read(write(tmp_path, text, "report.tsv", encoding))
    assert log.queries == ["grüne schürze", "crème brûlée"]


def test_a_line_with_another_delimiter_is_left_out(tmp_path: Path) -> None:
    log, left_out = read(write(tmp_path, f"{REPORT}mug,0041,40,2\nmug;0042;40;1\nmug,43,40,2\n"))
    assert [line for line, _ in left_out] == [3] and len(counts_of(log)) == 2


def test_files_are_found_by_pattern_and_may_be_compressed(tmp_path: Path) -> None:
    (tmp_path / "may.csv.gz").write_bytes(gzip.compress(f"{REPORT}mug,0041,40,2\n".encode()))
    write(tmp_path, f"{REPORT}mug,0041,10,1\n", "june.csv")
    assert counts_of(read_clicks(tmp_path / "*.csv*", KNOWN)) == {"mug / 0041": [50, 3, 0, 0]}


def test_reports_in_json_lines_and_parquet_are_read(tmp_path: Path) -> None:
    rows = [{"query": "mug", "sku": "0041", "impressions": 40, "clicks": 2}, {"query": "cup", "sku": "43", "clicks": 1}]
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "report.parquet")
    expected = {"mug / 0041": [40, 2, 0, 0], "cup / 43": [0, 1, 0, 0]}
    assert counts_of(read_clicks(write(tmp_path, text, "report.jsonl"), KNOWN)) == expected
    assert counts_of(read_clicks(tmp_path / "report.parquet", KNOWN)) == expected


def test_more_clicks_than_impressions_are_a_warning(tmp_path: Path) -> None:
    log, _ = read(write(tmp_path, f"{REPORT}mug,0041,40,20\nmug,0041,10,50\n"))
    assert log.warnings == ["mug / 0041: 70 clicks for 50 impressions; the rate is cut to 1"]


def test_a_report_without_impressions_says_so(tmp_path: Path) -> None:
    log, _ = read(write(tmp_path, "query,sku,clicks\nmug,0041,20\n"))
    assert not log.has_impressions and counts_of(log) == {"mug / 0041": [0, 20, 0, 0]}
    assert any("does not say what was shown" in warning for warning in log.warnings)


def test_positions_that_begin_with_0_are_shifted(tmp_path: Path) -> None:
    log, _ = read(write(tmp_path, "query,sku,rank,views,clicks\nmug,0041,0,9,2\nmug,43,1,9,2\nmug,0042,,9,2\n"))
    assert positions_of(log) == [0, 1, 2] and not log.has_positions
    assert "positions begin with 0; 1 was added to each" in log.warnings


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        (REPORT, {}, "holds a header and no rows"),
        ("Search Term,Name,Clicks\nmug,a mug,3\n", {}, "no column of product_id .*Search Term, Name, Clicks"),
        ("Search Term,SKU,Revenue\nmug,0041,3\n", {}, "no column says what was clicked or bought"),
        ("Search Term,SKU,Clicks,Clicks\nmug,0041,3,4\n", {}, "clicks may be in each of .* 'Clicks', 'Clicks .2.'"),
        (f"{REPORT}mug,0041,3,1\n", {"clicks": "Taps"}, "'clicks' from 'Taps', which is no column"),
        (f"{REPORT}mug,0041,3,1\n", {"click": "Clicks"}, "names 'click', which is not read"),
        (f"{REPORT}mug,0041,3,1\n", {"clicks": "Clicks", "purchases": "Clicks"}, "clicks and purchases from one"),
        (f"{REPORT}mug,999,3,1\ncup,998,3,1\n", {}, "no row of 2 is left .product is unknown: 2."),
        (f"{REPORT}mug,41,3,1\n", {}, "'41' is unknown, but '0041' is known: leading zeros were lost"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_report_is_an_error(tmp_path: Path, text: str, columns: dict[str, str], message: str) -> None:
    with pytest.raises(CatalogueError, match=message):
        read_clicks(write(tmp_path, text), KNOWN, columns=columns)


def test_columns_that_are_given_override_what_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path, "query,text,sku,views,clicks\n1,mug,0041,9,2\n")
    assert read_clicks(path, KNOWN, columns={"query": "text"}).queries == ["mug"]


def test_no_name_is_known_for_two_roles() -> None:
    names = [name for options in NAMES.values() for name in options]
    assert len(names) == len(set(names))
    assert choose_columns(["Avg. Position", "CTR"], {}, NAMES, "") == {"position": "Avg. Position"}


# Queries


def test_queries_are_normalised() -> None:
    assert normalise_query(" ＲＥＤ\u00a0\u200bDress\t\x00 ") == "red dress"
    assert normalise_query(normalise_query("Straße\ud800")) == normalise_query("STRAßE\ud800")


PRIVATE = [
    "max.muster@example.com", "an max@example.co.uk bitte", "max(at)example.com", "anna%40example.org",
    "+49 171 2345678", "0049 171 2345678", "0171 2345678", "0171/2345678", "030 1234567", "06 12 34 56 78",
    "07911 123456", "(555) 123-4567", "555-123-4567", "1-800-555-1234", "5551234567", "tel 555.123.4567",
    "612 345 678", "+33612345678", "13812345678", "491701234567",
    "4111 1111 1111 1111", "4111111111111111", "5500-0000-0000-0004", "378282246310005", "visa 4111111111111111 x",
]  # fmt: skip
PUBLIC = [
    "red dress", "iphone 13 128gb", "12345678", "803.548.76", "4006381333931", "978-3-16-148410-0", "0306406152",
    "501 32 34", "10 x 15 cm", "120x200", "2026-05-01", "1.5 l", "size 42 43 44", "rtx 4090 24gb", "wd-40", "50-60-70",
    "123456789", "a4 80g 500 blatt", "0850 e", "0.5 1.0 1.5 2.0 2.5", "@home", "5w-30", "1000 2000 3000 teile",
]  # fmt: skip


@pytest.mark.parametrize("query", PRIVATE)
def test_queries_that_look_like_personal_data_are_dropped(query: str) -> None:
    reason = unwanted_query(normalise_query(query))
    assert reason.startswith("query looks like") and not any(word in reason for word in query.split() if len(word) > 2)


@pytest.mark.parametrize("query", PUBLIC)
def test_numbers_of_goods_are_kept(query: str) -> None:
    assert unwanted_query(normalise_query(query)) == ""


def test_the_id_of_a_known_product_is_no_phone_number() -> None:
    assert unwanted_query("0108775015") and not unwanted_query("0108775015", {"0108775015"})


def test_nothing_personal_is_kept(tmp_path: Path) -> None:
    events = "session_id,user_id,event,query,sku,position\n" + "".join(
        f"SECRET-{number % 2},USER-7,{event},{query},0041,1\n"
        for number, (event, query) in enumerate(
            [("impression", "mug"), ("click", "mug"), ("click", "u@secret.example")]
        )
    )
    left_out: list[str] = []
    log = read_clicks(write(tmp_path, events), KNOWN, reject=lambda file, line, reason: left_out.append(reason))
    stored = pickle.dumps(log) + repr(left_out).encode()
    assert left_out and not any(secret in stored for secret in (b"SECRET", b"USER-7", b"secret.example"))


# Session logs


def test_what_a_session_did_counts_once(tmp_path: Path) -> None:
    rows = [
        "s1,impression,0041,1", "s1,impression,43,2", "s1,click,43,2", "s1,click,43,2", "s1,add_to_cart,43,",
        "s2,impression,0041,1", "s2,impression,43,2", "s2,purchase,0041,", "s2,hover,43,2",
    ]  # fmt: skip
    text = "session,action,product_id,position,query\n" + "".join(f"{row},Mug\n" for row in rows)
    log, left_out = read(write(tmp_path, text))
    assert log.kind == "session log" and log.has_sessions and log.has_positions
    assert counts_of(log) == {"mug / 0041": [2, 1, 0, 1], "mug / 43": [2, 1, 1, 0]}
    assert left_out == [(10, "event is not used: 'hover'")] and log.num_merged == 1


def test_rows_that_say_what_became_of_a_product_are_sessions(tmp_path: Path) -> None:
    text = "session_id,query,product_id,position,clicked\na,mug,0041,1,0\na,mug,43,2,1\nb,mug,0041,1,true\n"
    log, _ = read(write(tmp_path, text))
    assert log.has_sessions and counts_of(log) == {"mug / 0041": [2, 1, 0, 0], "mug / 43": [1, 1, 0, 0]}


@pytest.mark.parametrize(("others", "clicks"), [("s1,purchase,mug,43", 1), ("s1,click,mug,43", 0)])
def test_a_view_is_a_click_unless_there_are_clicks(tmp_path: Path, others: str, clicks: int) -> None:
    log, _ = read(write(tmp_path, f"session,event,query,sku\ns1,view,mug,0041\n{others}\n"))
    assert counts_of(log)["mug / 0041"][1] == clicks


def test_events_without_a_query_belong_to_the_search_before_them(tmp_path: Path) -> None:
    rows = [
        "a,5,search,mug,", "a,6,impression,,0041", "a,7,click,,0041", "a,8,search,cup,", "a,9,click,,43",
        "a,10,purchase,,0041", "a,11,purchase,,0042", "b,1,click,,43",
    ]  # fmt: skip
    text = "session_id,time,event,query,sku\n" + "".join(f"{row}\n" for row in reversed(rows))
    log, left_out = read(write(tmp_path, text))
    assert counts_of(log) == {"mug / 0041": [1, 1, 0, 1], "cup / 43": [1, 1, 0, 0]}
    # Never shown in its session, and no search in its session.
    reason = "query is blank, and no search before it is known"
    assert sorted(left_out) == [(2, reason), (3, reason)]


def test_names_of_sessions_change_nothing(tmp_path: Path) -> None:
    rows = [("s1", "impression", "0041"), ("s2", "click", "43"), ("s1", "click", "0041"), ("s3", "impression", "43")]
    logs = []
    for names in ({}, {"s1": "z", "s2": "a", "s3": "m"}):
        text = "".join(f"{names.get(session, session)},{event},mug,{item}\n" for session, event, item in rows)
        logs.append(read_clicks(write(tmp_path, f"session,event,query,sku\n{text}"), KNOWN))
    assert logs[0].sessions is not None and logs[1].sessions is not None
    pd.testing.assert_frame_equal(logs[0].sessions, logs[1].sessions)
    pd.testing.assert_frame_equal(logs[0].cells, logs[1].cells)


def test_a_log_of_clicks_alone_does_not_say_what_was_shown(tmp_path: Path) -> None:
    log, _ = read(write(tmp_path, "session,event,query,sku\ns1,click,mug,0041\ns2,click,mug,0041\n"))
    assert not log.has_impressions and counts_of(log) == {"mug / 0041": [0, 2, 0, 0]}


def test_events_without_sessions_are_counted_one_by_one(tmp_path: Path) -> None:
    log, _ = read(write(tmp_path, "event,query,sku\nimpression,mug,0041\nimpression,mug,0041\nclick,mug,0041\n"))
    assert not log.has_sessions and counts_of(log) == {"mug / 0041": [2, 1, 0, 0]}


# UBI and GA4


def ubi(
    action: str, query_id: str, item: str | None = None, position: int | None = None, **more: Any
) -> dict[str, Any]:
    attributes = {"object": {"object_id": item, "object_id_field": "sku"}, "position": {"ordinal": position}}
    return {"action_name": action, "query_id": query_id, "client_id": "c", "event_attributes": attributes, **more}


def test_events_of_ubi_are_joined_with_their_queries(tmp_path: Path) -> None:
    events = [
        ubi("click", "q1", "43", 2),
        ubi("click", "q2", "0041", 1),
        ubi("click", "q9", "43", 1),
        ubi("login", "q1"),
    ]
    queries = [
        {"query_id": "q1", "user_query": "Red  Mug", "query_response_hit_ids": ["0041", "43", "unknown"]},
        {"query_id": "q2", "user_query": "cup", "query_response_hit_ids": ["0041"]},
    ]
    for name, rows in (("events", events), ("queries", queries)):
        write(tmp_path, "".join(f"{json.dumps(row)}\n" for row in rows), f"ubi_{name}.ndjson")
    log, left_out = read(tmp_path)
    assert log.kind == "UBI events" and log.has_positions and log.num_rows == 6
    assert counts_of(log) == {
        "red mug / 0041": [1, 0, 0, 0],
        "red mug / 43": [1, 1, 0, 0],
        "cup / 0041": [1, 1, 0, 0],
    }
    assert sorted(left_out) == [
        (3, "query is blank, and no search before it is known"),
        (4, "event is not used: 'login'"),
    ]


def test_events_and_queries_of_ubi_may_be_in_one_file(tmp_path: Path) -> None:
    rows = [
        {"query_id": "q1", "user_query": "mug", "query_response_hit_ids": '["0041", "43"]'},
        ubi("click", "q1", "43", 2),
    ]
    log, left_out = read(write(tmp_path, "".join(f"{json.dumps(row)}\n" for row in rows), "ubi.ndjson"))
    assert counts_of(log) == {"mug / 0041": [1, 0, 0, 0], "mug / 43": [1, 1, 0, 0]} and not left_out
    with pytest.raises(CatalogueError, match="holds searches, but nothing that shoppers did"):
        read(write(tmp_path, json.dumps(rows[0]) + "\n", "queries.ndjson"))


def test_values_of_the_wrong_kind_are_left_out(tmp_path: Path) -> None:
    rows = [
        {"query": "mug", "sku": "0041", "clicks": {"a": 1}},
        {"query": ["mug"], "sku": "0041", "clicks": 1},
        {"query": "mug", "sku": {"id": "0041"}, "clicks": 1},
        {"query": "mug", "sku": "43", "clicks": 2},
        {"query": "m" * 501, "sku": "43", "clicks": 2},
    ]
    log, left_out = read(write(tmp_path, "".join(f"{json.dumps(row)}\n" for row in rows), "r.jsonl"))
    assert counts_of(log) == {"mug / 43": [0, 2, 0, 0]}
    assert [line for line, _ in left_out] == [1, 2, 3, 5]
    events = [ga4("view_search_results", 1, 5, "mug", item("43", 1)), ga4("select_item", 1, 6, "mug")]
    events[0]["items"].append("0041")
    events[1] |= {"event_params": "none", "items": "43"}
    log, _ = read(write(tmp_path, "".join(f"{json.dumps(row)}\n" for row in events), "ga4.jsonl"))
    assert counts_of(log) == {"mug / 43": [1, 0, 0, 0]}


def test_the_bulk_format_and_the_envelope_of_opensearch_are_no_rows(tmp_path: Path) -> None:
    bulk = [{"index": {"_index": "ubi_events"}}, ubi("impression", "q1", "43", 1, user_query="mug")]
    hit = [{"_index": "ubi_events", "_id": "1", "_source": ubi("click", "q1", "43", 1, user_query="mug")}]
    for name, rows in (("bulk", bulk), ("hits", hit)):
        write(tmp_path, "".join(f"{json.dumps(row)}\n" for row in rows), f"{name}.ndjson")
    log, left_out = read(tmp_path)
    assert counts_of(log) == {"mug / 43": [1, 1, 0, 0]} and not left_out


def test_events_of_segment_have_their_values_in_properties(tmp_path: Path) -> None:
    rows = [
        {
            "event": "Products Searched",
            "userId": "u",
            "timestamp": "2026-01-01T10:00:00Z",
            "properties": {"query": "mug"},
        },
        {"event": "Product Clicked", "timestamp": "2026-01-01T10:00:02Z", "properties": {"product_id": "43"}},
    ]
    text = "".join(json.dumps({**row, "anonymousId": "a"}) + "\n" for row in rows)
    log, left_out = read(write(tmp_path, text, "events.jsonl"))
    assert counts_of(log)["mug / 43"][1] == 1 and not left_out


def test_numbers_of_json_keep_their_digits(tmp_path: Path) -> None:
    line = json.dumps(ubi("click", "q1", "@", 1, user_query="mug")).replace('"@"', "90071992547409931234")
    assert read_clicks(write(tmp_path, line + "\n" + line + "\n", "e.ndjson"), KNOWN).products == [
        "90071992547409931234"
    ]


def ga4(name: str, session: int, time: int, term: str | None = None, *items: dict[str, Any]) -> dict[str, Any]:
    empty = {"string_value": None, "int_value": None}
    parameters = [{"key": "ga_session_id", "value": {**empty, "int_value": session}}]
    if term is not None:
        parameters.append({"key": "search_term", "value": {**empty, "string_value": term}})
    return {
        "event_date": "20260501", "event_timestamp": time, "event_name": name, "user_pseudo_id": "77.88",
        "event_params": parameters, "items": list(items),
    }  # fmt: skip


def item(name: str, index: int | None = None, of: str | None = None) -> dict[str, Any]:
    return {"item_id": name, "index": index, "item_list_name": of, "price": 9.5}


EXPORT = [
    ga4("page_view", 1, 10),
    ga4("view_item_list", 1, 20, None, item("0041", 0), item("43", 1), item("(not set)", 2)),  # sent with the search
    ga4("view_search_results", 1, 20, "Red Mug"),
    ga4("view_item_list", 1, 25, None, item("0042", 0, "Related products")),
    ga4("select_item", 1, 30, None, item("43", 1)),
    ga4("add_to_cart", 1, 40, None, item("43")),
    ga4("purchase", 1, 50, None, item("43"), item("0042")),
    ga4("view_item_list", 2, 60, "cup", item("0041", 0, "Search results")),
    ga4("select_item", 3, 70, None, item("0041", 0, "Search results")),
]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_exports_of_google_analytics_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"events.{kind}"
    if kind == "jsonl":
        # BigQuery writes whole numbers as texts.
        text = "".join(f"{json.dumps(row)}\n" for row in EXPORT)
        path.write_text(text.replace('"event_timestamp": 20', '"event_timestamp": "20"'), "utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(EXPORT), path)
    log, left_out = read(path)
    assert log.kind == "GA4 export" and log.has_sessions and log.num_rows == len(EXPORT)
    assert counts_of(log) == {
        "red mug / 0041": [1, 0, 0, 0],
        "red mug / 43": [1, 1, 1, 1],
        "cup / 0041": [1, 0, 0, 0],
    }
    assert positions_of(log) == [1, 2]
    assert log.counts == {
        "event is about no search and no product": 1,
        "product list is of no search": 1,
        "product is unknown": 1,
        "query is blank, and no search before it is known": 2,
    }
    assert [reason for _, reason in left_out if "unknown" in reason] == ["product is unknown: '(not set)'"]
