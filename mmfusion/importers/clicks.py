"""Click data of a shop: aggregated search reports, session logs, UBI events and GA4 exports, as counts per pair.

Personal data stays outside: ids of users, sessions and searches are only compared with each other while a file is read,
as hashes whose key ends with the process, and what looks like an e-mail address, phone or card number is no query.
"""

import math
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmfusion.data.catalogue_schema import CatalogueError
from mmfusion.importers.click_columns import NAMES, choose_columns, require_columns
from mmfusion.importers.click_events import (
    NO_POSITION,
    SEARCH,
    SHOWN,
    carry_queries,
    count_sessions,
    event_code,
    ga4_rows,
    settle_views,
    times,
)
from mmfusion.importers.items import ImportLog
from mmfusion.importers.query_texts import normalise_query, unwanted_query
from mmfusion.importers.row_batches import Reject, RowBatch, read_table, row_batches
from mmfusion.importers.source import open_source

IntArray = npt.NDArray[np.int64]

COUNTS = ("impressions", "clicks", "add_to_cart", "purchases")
_MOST_WARNINGS = 10
_LARGEST_COUNT = 10**12


@dataclass(frozen=True)
class ClickLog:
    """What shoppers searched, were shown and did, counted.

    Attributes:
        kind: "aggregated report", "session log", "UBI events" or "GA4 export"; several joined by " and ".
        mapping: Column of the file by role, to be printed (of the first file of each kind).
        queries: Normalised texts; `cells` and `sessions` hold their places.
        products: Ids as in the catalogue; `cells` and `sessions` hold their places.
        cells: One row per query, product and position: `query`, `product` (int64), `position` (int64 from 1, 0 where
            none is known), the counts `impressions`, `clicks`, `add_to_cart`, `purchases` (int64, as in the file:
            clicks may exceed impressions), and `file` (place in `files`) and `line` of the first row that went into it.
            Of a log with sessions, the counts are sessions.
        sessions: Of logs with sessions, one row per session, query and product: `session` (a running number that means
            nothing else), `query`, `product`, `position` (int64), `clicked`, `add_to_cart`, `purchased` (bool). Else
            None.
        files: Names of the files that were read.
        has_impressions: Whether the log says what was shown; without, `impressions` are 0.
        counts: Rows that were left out, by reason.
        warnings: Sentences for the report.
        num_rows: Rows that could be read, with those that were left out.
        num_merged: Kept rows that were added to another one: the same query and product again, or the same event in the
            same session.
    """

    kind: str
    mapping: dict[str, str]
    queries: list[str]
    products: list[str]
    cells: pd.DataFrame
    sessions: pd.DataFrame | None
    files: list[str]
    has_impressions: bool
    counts: dict[str, int] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    num_rows: int = 0
    num_merged: int = 0

    @property
    def has_sessions(self) -> bool:
        """Whether it is known who saw what together, which `sdbn` needs."""
        return self.sessions is not None

    @property
    def has_positions(self) -> bool:
        """Whether all shown products have a position, which `coec`, `linear` and `sdbn` need."""
        return bool((self.cells["position"] > 0).all())


def read_clicks(
    paths: str | Path | Sequence[str | Path],
    known_products: Container[str] | Mapping[str, str],
    *,
    columns: Mapping[str, str] | None = None,
    reject: Reject | None = None,
    downloads: Path | None = None,
) -> ClickLog:
    """Reads click data of any of the kinds, told apart by their columns.

    Args:
        paths: Files, folders, patterns and URLs, as `open_source` takes them: CSV with any delimiter, JSON Lines, JSON,
            Parquet, Excel, also compressed. Events of UBI are joined with files of UBI queries by `query_id`.
        known_products: Ids of the catalogue; a mapping takes the ids of the log (SKUs, variants) to those.
        columns: Column of the file by role, for what is not recognised: query, product_id, impressions, clicks,
            add_to_cart, purchases, position, session_id, search_id, event, time.
        reject: Gets file, line (from 1) and reason of every row that is left out. A reason is "kind: value"; it never
            has personal data.
        downloads: Folder for what is fetched from URLs; default: one that is removed afterwards.

    Raises:
        CatalogueError: A file cannot be read, columns are missing or named twice, or no row is left.
    """
    given = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    log = ImportLog(reject)
    with tempfile.TemporaryDirectory() as folder:
        source = open_source(given, downloads or Path(folder))
        reader = _Reader(known_products, columns or {}, log)
        for file in source.tables:
            for batch in row_batches(read_table(file), log):
                reader.add(batch)
    return reader.log()


class _Codes(dict[str, int]):
    """A number for each text, which `number` finds when a text comes first."""

    def __init__(self, number: Callable[[str], int]) -> None:
        super().__init__()
        self.number = number

    def __missing__(self, text: str) -> int:
        self[text] = code = self.number(text)
        return code

    def of(self, texts: Iterable[str]) -> IntArray:
        return np.fromiter(map(self.__getitem__, texts), np.int64)


class _Reader:
    """Takes rows of any kind and makes one log of them.

    A value that cannot be used has a negative code, which says in `reasons` why.
    """

    def __init__(
        self, known: Container[str] | Mapping[str, str], columns: Mapping[str, str], left_out: ImportLog
    ) -> None:
        self.known, self.columns, self.left_out = known, columns, left_out
        self.reasons: list[str] = []
        self.queries, self.products = _Codes(self._query), _Codes(self._product)
        self.query_codes: dict[str, int] = {}
        self.product_codes: dict[str, int] = {}
        self.numbers = {name: _Codes(partial(self._count, name)) for name in COUNTS}
        self.events, self.positions = _Codes(self._event), _Codes(self._position)
        self.blank = self.queries[""]
        self.num_rows = 0
        self.files: dict[str, int] = {}
        self.mappings: dict[str, dict[str, str]] = {}
        self.reports: list[pd.DataFrame] = []
        self.logs: list[pd.DataFrame] = []
        self.searches: list[pd.DataFrame] = []
        self.has_impressions = True

    def add(self, batch: RowBatch) -> None:
        """Rows of one file."""
        self.num_rows += len(batch.lines)
        if "event_name" in batch.names and {"event_params", "items"} & set(batch.names):
            self.mappings.setdefault("GA4 export", {name: name for name in ("event_name", "event_params", "items")})
            rows = ga4_rows(batch, self.left_out)
            self._add_events(rows, {name: name for name in rows.names})
            return
        mapping = choose_columns(batch.names, self.columns, NAMES, batch.file)
        follows = {"session_id", "search_id"} & set(mapping)
        if {"shown_ids", "search_id", "query"} <= set(mapping):
            events = batch.column(mapping.get("event"))
            self._add_searches(batch.take([row for row, event in enumerate(events) if not event]), mapping)
            batch = batch.take([row for row, event in enumerate(events) if event])
            if not batch.lines:
                return
        needed = ("product_id",) if "event" in mapping and follows else ("query", "product_id")
        require_columns(mapping, needed, batch.names, batch.file)
        if "event" in mapping:
            self.mappings.setdefault("UBI events" if "action_name" in batch.names else "session log", mapping)
            self._add_events(batch, mapping)
        elif set(COUNTS[1:]) & set(mapping):
            flags = bool(follows) and "impressions" not in mapping
            self.mappings.setdefault("session log" if flags else "aggregated report", mapping)
            self._add_counts(batch, mapping, flags)
        else:
            raise CatalogueError(
                f"no column says what was clicked or bought (columns: {', '.join(batch.names)})",
                batch.file,
                'Name one: --click_columns \'{"clicks": "…"}\'.',
            )

    def _add_counts(self, batch: RowBatch, mapping: dict[str, str], flags: bool) -> None:
        """Rows with counts; with `flags` each is a product that one session was shown, and what became of it."""
        frame = self._frame(batch, mapping)
        for name in COUNTS:
            frame[name] = self.numbers[name].of(batch.column(mapping[name])) if name in mapping else 0
        kept = self._kept(frame, batch, ("query", "product", *COUNTS, "position"))
        if not flags:
            self.has_impressions &= "impressions" in mapping
            self.reports.append(kept)
            return
        kept = self._with_sessions(kept, batch, mapping)
        shown = kept.drop(columns=list(COUNTS))
        self.logs.append(shown.assign(event=SHOWN))
        self.logs += [shown[kept[name] > 0].assign(event=event_code(name)) for name in COUNTS[1:]]

    def _add_events(self, batch: RowBatch, mapping: dict[str, str]) -> None:
        frame = self._frame(batch, mapping).assign(event=self.events.of(batch.column(mapping["event"])))
        frame = self._with_sessions(frame, batch, mapping)
        # A search names no product, and other events may belong to an earlier search of their session.
        frame.loc[frame["event"] == SEARCH, "product"] = 0
        later = (frame["query"] == self.blank) & ((frame["session_id"] != 0) | (frame["search_id"] != 0))
        later &= frame["event"] != SEARCH
        frame = self._kept(
            frame.assign(query=frame["query"].mask(later, 0), later=later),
            batch,
            ("event", "query", "product", "position"),
        )
        self.logs.append(frame.assign(query=frame["query"].mask(frame["later"], -1)).drop(columns="later"))

    def _add_searches(self, batch: RowBatch, mapping: dict[str, str]) -> None:
        """Queries of UBI, with the ids of what each has found."""
        frame = self._frame(batch, {role: name for role, name in mapping.items() if role in ("query", "time")})
        frame = self._with_sessions(frame, batch, mapping)
        lists = batch.values(mapping["shown_ids"])
        frame["hits"] = [re.findall(r"[^][\s\"',;|]+", hits) if isinstance(hits, str) else hits for hits in lists]
        self.searches.append(self._kept(frame, batch, ("query",)))

    def _frame(self, batch: RowBatch, mapping: Mapping[str, str]) -> pd.DataFrame:
        file = self.files.setdefault(batch.file, len(self.files))
        return pd.DataFrame(
            {
                "query": self.queries.of(batch.column(mapping.get("query"))),
                "product": self.products.of(batch.column(mapping.get("product_id"))),
                "position": self.positions.of(batch.column(mapping.get("position"))),
                "file": file,
                "line": np.asarray(batch.lines, np.int64),
            }
        )

    def _with_sessions(self, frame: pd.DataFrame, batch: RowBatch, mapping: Mapping[str, str]) -> pd.DataFrame:
        """The rows with hashes of their session and search, 0 for none, and with their time."""
        # Python's hash of a text has a key that is new in every process.
        sessions, searches = (
            np.array([hash(text) if text else 0 for text in batch.column(mapping.get(role))], np.int64)
            for role in ("session_id", "search_id")
        )
        if "action_name" not in batch.names and "shown_ids" not in mapping:
            # Outside of UBI the id may be that of the text, and the same in all sessions.
            searches = np.where(searches != 0, searches ^ sessions, 0)
        time = times(batch.column(mapping.get("time")))
        at = frame.index
        return frame.assign(session_id=sessions[at], search_id=searches[at], time=time[at])

    def _kept(self, frame: pd.DataFrame, batch: RowBatch, names: Sequence[str]) -> pd.DataFrame:
        """The rows whose values can be used; the first one of each other row that cannot is why it is left out."""
        codes = frame[list(names)].to_numpy()
        bad = codes < 0
        for row in np.flatnonzero(bad.any(axis=1)):
            reason = self.reasons[-1 - codes[row, bad[row].argmax()]]
            self.left_out.reject(batch.file, int(frame["line"].iloc[row]), reason)
        return frame[~bad.any(axis=1)]

    def log(self) -> ClickLog:
        """All that was added.

        Raises:
            CatalogueError: No row is left.
        """
        warnings = list(self.left_out.warnings)
        sessions, merged, parts = None, 0, []
        if self.logs:
            events = settle_views(self._events(warnings))
            self.has_impressions &= bool((events["event"] == SHOWN).any())
            sessions, cells, merged = count_sessions(events)
            parts.append(cells)
        if self.reports:
            report = _from_one(pd.concat(self.reports, ignore_index=True), warnings)
            merged += int(report.duplicated(["query", "product"]).sum())
            parts.append(report)
        if not sum(map(len, parts)):
            raise self._nothing_left()
        order = dict.fromkeys(COUNTS, "sum") | {"file": "first", "line": "first"}
        cells = pd.concat(parts, ignore_index=True).replace({"position": {NO_POSITION: 0}})
        cells = cells.groupby(["query", "product", "position"], sort=False, as_index=False).agg(order)
        cells[list(COUNTS)] = cells[list(COUNTS)].astype("int64")
        if self.has_impressions:
            warnings += self._impossible(cells)
        else:
            cells["impressions"] = 0
            warnings.append(
                "the log does not say what was shown: no pair gets grade 0, and min_impressions does nothing"
            )
        warnings += self._lost_zeros()
        if sessions is not None:
            sessions = sessions.drop(columns=["file", "line"]).replace({"position": {NO_POSITION: 0}})
            sessions = None if sessions.empty else sessions
        return ClickLog(
            kind=" and ".join(self.mappings),
            mapping=dict(item for mapping in reversed(self.mappings.values()) for item in mapping.items()),
            queries=list(self.query_codes),
            products=list(self.product_codes),
            cells=cells,
            sessions=sessions,
            files=list(self.files),
            has_impressions=self.has_impressions,
            counts=dict(self.left_out.rejected_by_reason + self.left_out.left_out),
            warnings=warnings,
            num_rows=self.num_rows,
            num_merged=merged,
        )

    def _events(self, warnings: list[str]) -> pd.DataFrame:
        """Events with the query of each, and what was shown for the searches of UBI that log no impressions."""
        events = pd.concat([*self.logs, *self._hits()], ignore_index=True)
        if self.searches or (events["query"] < 0).any():
            events = carry_queries(events)
        for file, line in events.loc[events["query"] < 0, ["file", "line"]].itertuples(index=False):
            self.left_out.reject(list(self.files)[file], line, "query is blank, and no search before it is known")
        return _from_one(events[(events["query"] >= 0) & (events["event"] != SEARCH)], warnings)

    def _hits(self) -> Iterator[pd.DataFrame]:
        """The queries of UBI as searches, and their hits as shown where no event says what was."""
        if not self.searches:
            return
        searches = pd.concat(self.searches, ignore_index=True)
        yield searches.drop(columns="hits").assign(event=SEARCH, product=0)
        logs = pd.concat([log.loc[log["event"] == SHOWN, ["search_id"]] for log in self.logs])
        searches = searches[~searches["search_id"].isin(logs["search_id"])]
        hits = searches.explode("hits", ignore_index=True)
        hits["position"] = hits.groupby(level=0).cumcount() + 1
        hits["product"] = self.products.of(map(str, hits["hits"]))
        yield hits[hits["product"] >= 0].drop(columns="hits").assign(event=SHOWN)

    def _impossible(self, cells: pd.DataFrame) -> list[str]:
        pairs = cells.groupby(["query", "product"], sort=False, as_index=False)[["clicks", "impressions"]].sum()
        pairs = pairs[pairs["clicks"] > pairs["impressions"]]
        queries, products = list(self.query_codes), list(self.product_codes)
        found = [
            f"{queries[query]} / {products[product]}: {clicks} clicks for {shown} impressions; the rate is cut to 1"
            for query, product, clicks, shown in pairs[:_MOST_WARNINGS].itertuples(index=False)
        ]
        more = len(pairs) - len(found)
        return [*found, f"{more} more pairs have more clicks than impressions"] if more else found

    def _lost_zeros(self) -> list[str]:
        """A hint where unknown ids would be known with the zeros that a spreadsheet took from them."""
        unknown = {text.strip() for text, code in self.products.items() if code < 0 and text.strip().isdecimal()}
        if not unknown or not isinstance(self.known, Iterable):
            return []
        zeros = {known.lstrip("0"): known for known in self.known if known.startswith("0")}
        lost = next((text for text in sorted(unknown) if text in zeros), None)
        if lost is None:
            return []
        return [
            f"product {lost!r} is unknown, but {zeros[lost]!r} is known: leading zeros were lost; export ids as text"
        ]

    def _nothing_left(self) -> CatalogueError:
        files = ", ".join(self.files) or "the click files"
        if self.searches and not self.logs:
            return CatalogueError("holds searches, but nothing that shoppers did", files, "Give the events, too.")
        found = self.left_out.rejected_by_reason + self.left_out.left_out
        reasons = ", ".join(f"{reason}: {count:,}" for reason, count in found.most_common(3)) or "it has none"
        hint = "".join(f"; {one}" for one in self._lost_zeros())
        return CatalogueError(
            f"no row of {self.num_rows:,} is left ({reasons}){hint}",
            files,
            "Product ids must be those of the catalogue; name other columns with --click_columns.",
        )

    def _reason(self, text: str) -> int:
        self.reasons.append(text)
        return -len(self.reasons)

    def _query(self, text: str) -> int:
        query = normalise_query(text)
        unwanted = unwanted_query(query, self.known)
        return self._reason(unwanted) if unwanted else self.query_codes.setdefault(query, len(self.query_codes))

    def _product(self, text: str) -> int:
        text = text.strip()
        if not text:
            return self._reason("product is blank")
        for name in (text, text.rpartition("/")[2]):
            # The second: gid://shopify/Product/123.
            if name in self.known:
                found = self.known[name] if isinstance(self.known, Mapping) else name
                return self.product_codes.setdefault(found, len(self.product_codes))
        return self._reason(f"product is unknown: {text[:100]!r}")

    def _event(self, text: str) -> int:
        code = event_code(text)
        return self._reason(f"event is not used: {text[:100]!r}") if code is None else code

    def _count(self, name: str, text: str) -> int:
        number = parse_count(text)
        return number if number is not None else self._reason(f"{name} is not a count: {text[:100]!r}")

    def _position(self, text: str) -> int:
        position = parse_position(text)
        return position if position is not None else self._reason(f"position is not a rank: {text[:100]!r}")


def _from_one(frame: pd.DataFrame, warnings: list[str]) -> pd.DataFrame:
    """Rows with positions from 1."""
    known = frame["position"] != NO_POSITION
    shift = int((frame.loc[known, "position"] == 0).any())
    if shift:
        warnings.append("positions begin with 0; 1 was added to each")
    return frame.assign(position=frame["position"] + shift * known)


_NOTHING = ("", "-", "–", "—", "n/a", "na", "null", "none", "nan", "(not set)")
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:([.,' ’])\d{3})(?:\1\d{3})*|[1-9]\d?(?:,\d{2})+,\d{3}")


def parse_count(text: str) -> int | None:
    """A whole number of at least 0 as people and spreadsheets write it; 0 where nothing is written, None if it is none.

    >>> [parse_count(text) for text in ("1,200", "1.200", "1 200,00", "12.0", "1,2", "-3", "5%", "true")]
    [1200, 1200, 1200, 12, None, None, None, 1]
    """
    text = unicodedata.normalize("NFKC", text).strip().lower()
    if text in _NOTHING or text in ("false", "no"):
        return 0
    if text in ("true", "yes"):
        return 1
    whole = re.sub(r"[.,]0{1,2}$", "", text)
    if _GROUPED.fullmatch(whole):
        whole = re.sub(r"\D", "", whole)
    elif re.fullmatch(r"\d+(\.\d+)?e\+?\d{1,2}", whole):
        whole = f"{float(whole):.0f}" if float(whole).is_integer() else text
    else:
        whole = re.sub(r"[.,]0+$", "", text)
    number = int(whole) if whole.isascii() and whole.isdigit() and len(whole) < 16 else None
    return number if number is not None and number <= _LARGEST_COUNT else None


def parse_position(text: str) -> int | None:
    """A rank, rounded where it is an average; `NO_POSITION` where nothing is written, None if it is none.

    >>> [parse_position(text) for text in ("3", "1,4", "2.0", "-1", "top")]
    [3, 1, 2, None, None]
    """
    text = unicodedata.normalize("NFKC", text).strip().lower().replace(",", ".")
    if text in _NOTHING:
        return NO_POSITION
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        return None
    return math.floor(float(text) + 0.5)
