"""Events of session logs, UBI and GA4: what each means, which search it belongs to, and what they come to."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from mmfusion.importers.click_columns import plain_name
from mmfusion.importers.items import ImportLog
from mmfusion.importers.row_batches import RowBatch

SEARCH, SHOWN, CLICK, CART, PURCHASE, VIEW = range(6)
# Position of a row that has none.
NO_POSITION = 10**9

_NAMES = {
    SEARCH: "search, query, on search, products searched, site search, search performed, search submitted",
    SHOWN: "impression, impressions, shown, show, displayed, display, view item list, view search results, exposure, "
    "product impression, item impression, search impression, result impression, product list viewed, exposed, "
    "viewed search results, search result",
    CLICK: "click, clicks, clicked, click through, clickthrough, product click, product clicked, item click, "
    "item clicked, result click, result clicked, search click, search result click, select item, select, selected, "
    "open, opened, view item, product view, product viewed, product detail view, detail, detail view, item view, "
    "item viewed, pdp view, quick view, click out, klick",
    CART: "add to cart, addtocart, add cart, cart, carted, added to cart, cart add, add to basket, basket, "
    "product added, product added to cart, add, atc, add to bag",
    PURCHASE: "purchase, purchases, purchased, order, ordered, buy, bought, transaction, product purchase, "
    "product purchased, order completed, checkout completed, conversion, converted, sale, placed order",
    VIEW: "view, views, viewed",
}
_CODES = {name: code for code, names in _NAMES.items() for name in names.split(", ")}
_GA4_EVENTS = ("search", "view_search_results", "view_item_list", "select_item", "add_to_cart", "purchase")
# A list of search results, by its name in many languages.
_SEARCH_LIST = re.compile(
    r"search|such|recherche|busc|búsq|ricerc|zoek|pesquis|sök|søg|szuk|поиск|検索|搜索|검색", re.I
)


def event_code(name: str) -> int | None:
    """What an event means: `SEARCH`, `SHOWN`, `CLICK`, `CART`, `PURCHASE`; None: nothing that is counted.

    `VIEW` may be either a click or being shown, see `settle_views`.
    """
    return _CODES.get(plain_name(name))


def times(texts: Sequence[str]) -> npt.NDArray[np.int64]:
    """Numbers that order times: of numbers of any unit, or of dates as text; equal where nothing is known."""
    if not any(texts):
        return np.zeros(len(texts), np.int64)
    series = pd.Series(texts, dtype=object)
    numbers = pd.to_numeric(series, errors="coerce")
    if numbers.notna().mean() < 0.5:
        dates = pd.to_datetime(series, errors="coerce", format="ISO8601", utc=True)
        if dates.notna().mean() < 0.5:
            dates = pd.to_datetime(series, errors="coerce", format="mixed", utc=True)
        return dates.dt.as_unit("us").astype("int64").to_numpy()
    return (numbers.fillna(0).clip(-1e15, 1e18) * 4).astype("int64").to_numpy()


def ga4_rows(batch: RowBatch, log: ImportLog) -> RowBatch:
    """Rows of one product or search each, from events of the BigQuery export of Google Analytics 4.

    An item's query is the event's `search_term`; where it has none, `carry_queries` finds it. Lists that are named, and
    not named after a search, are left out, as are events about no search; both are counted.
    """
    found: list[tuple[int, dict[str, str]]] = []
    names = batch.column("event_name")
    rows = [row for row, name in enumerate(names) if name in _GA4_EVENTS]
    log.leave_out("event is about no search and no product", len(names) - len(rows))
    users, moments = (batch.column(name, rows) for name in ("user_pseudo_id", "event_timestamp"))
    nested = [
        batch.values(name, rows) if name in batch.names else [""] * len(rows) for name in ("event_params", "items")
    ]
    for row, user, time, parameters, items in zip(rows, users, moments, *nested, strict=True):
        name, line = names[row], batch.lines[row]
        values = dict(_ga4_parameters(parameters))
        session = f"{user}.{values.get('ga_session_id', '')}" if user else ""
        query = values.get("search_term", "")
        # Events that were sent together have one time; the search comes first.
        searching = name in ("search", "view_search_results")
        moment = str(2 * int(time) + (not searching)) if time.isdecimal() else time
        shared = {"query": query, "session_id": session, "time": moment, "event": "impression" if searching else name}
        if searching:
            found.append((line, {**shared, "event": "search"}))
        for item in _objects(items):
            lists = f"{item.get('item_list_name') or ''} {item.get('item_list_id') or ''}".replace(
                "(not set)", ""
            ).strip()
            of_list = name in ("view_item_list", "select_item") and not query and lists
            if of_list and not _SEARCH_LIST.search(lists):
                log.leave_out("product list is of no search")
                continue
            places = (str(item.get(key)) for key in ("item_list_index", "index"))
            position = next((place for place in places if place not in ("None", "", "(not set)")), "")
            found.append((line, {**shared, "product_id": str(item.get("item_id") or ""), "position": position}))
    return RowBatch.of_records(batch.file, found)


def _ga4_parameters(parameters: Sequence[Any]) -> Iterator[tuple[str, str]]:
    for parameter in _objects(parameters):
        value = next(_objects([parameter.get("value")]), {})
        text = next((str(value[kind]) for kind in ("string_value", "int_value") if value.get(kind) is not None), "")
        yield str(parameter.get("key")), text


def _objects(values: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """What a list should hold, without what else an export may have put there."""
    return (value for value in values if isinstance(value, dict))


def settle_views(events: pd.DataFrame) -> pd.DataFrame:
    """Events in which a view is being shown, if the log has clicks as well, and a click otherwise."""
    meaning = SHOWN if (events["event"] == CLICK).any() else CLICK
    return events.assign(event=events["event"].replace(VIEW, meaning))


def carry_queries(events: pd.DataFrame) -> pd.DataFrame:
    """Gives events without a query that of the search they belong to.

    That is the query of the same search id, where they have one; else the latest one of the same session for which the
    product was shown or clicked; else, for a product that is shown or clicked, the latest search event of the session.

    Args:
        events: Columns `query` (-1 for none), `product`, `event`, `session_id`, `search_id` (0 for none), `time`.

    Returns:
        The events in the same order; `query` is -1 where none was found.
    """
    order = np.lexsort([events["time"], events["session_id"]])
    given, events = events, events.iloc[order].reset_index(drop=True)
    query = events["query"].where(events["query"] >= 0)
    named = events["search_id"] != 0
    if named.any():
        query = query.fillna(events["search_id"].map(query[named].groupby(events["search_id"][named]).first()))
    session, product, event = events["session_id"], events["product"], events["event"]
    searching = event == SEARCH

    def carried(given: pd.Series, keys: list[pd.Series], where: pd.Series) -> pd.Series:
        return query.fillna(given.groupby(keys).ffill().where(where & (session != 0) & ~named))

    query = carried(query.mask(searching), [session, product], ~searching)
    query = carried(query.where(searching), [session], event.isin([SHOWN, CLICK, VIEW]))
    query = carried(query.mask(searching), [session, product], ~searching)
    found = np.empty(len(given), np.int64)
    found[order] = query.fillna(-1)
    return given.assign(query=found)


def count_sessions(events: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """What became of each product that each session was shown for a query.

    Args:
        events: Columns `query`, `product`, `position`, `event` (`SHOWN` to `PURCHASE`), `session_id`, `search_id`,
            `file`, `line`. A search is a session of its own; rows with neither id are no part of any.

    Returns:
        Sessions and cells as in `ClickLog` (sessions also with `file` and `line`), and how many events were repeats. A
        product that was clicked or bought was shown, and one that was bought or put into a cart was chosen: clicked.
    """
    key = events["search_id"].where(events["search_id"] != 0, events["session_id"])
    # Numbers in the order of the file, so that nothing depends on the hashes.
    events = events.assign(session=pd.factorize(key)[0])
    alone = key == 0
    pairs = ["query", "product"]
    grouped = events[~alone].drop_duplicates(["session", *pairs, "event"])
    merged = int((~alone).sum()) - len(grouped)
    flags = {
        "clicked": grouped["event"] >= CLICK,
        "add_to_cart": grouped["event"] == CART,
        "purchased": grouped["event"] == PURCHASE,
    }
    sessions = (
        grouped.assign(**flags)
        .groupby(["session", *pairs], sort=True, as_index=False)
        .agg({"position": "min", **dict.fromkeys(flags, "max"), "file": "first", "line": "first"})
    )
    counted = sessions.assign(impressions=1).rename(columns={"clicked": "clicks", "purchased": "purchases"})
    single = events[alone]
    cells = pd.concat(
        [
            counted.drop(columns="session"),
            single.assign(
                impressions=single["event"] == SHOWN,
                clicks=single["event"] == CLICK,
                add_to_cart=single["event"] == CART,
                purchases=single["event"] == PURCHASE,
            ),
        ],
        ignore_index=True,
    )
    return sessions, cells, merged
