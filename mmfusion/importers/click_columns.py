"""Which column of a click report or log is which, by the names that shops' tools give them."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from mmfusion.data.catalogue_schema import CatalogueError

# By role, the best name first; compared in lower case, with all that is no letter or digit as one blank.
NAMES: dict[str, tuple[str, ...]] = {
    "query": (
        "user query",
        "search term",
        "search query",
        "search terms",
        "search phrase",
        "search keyword",
        "search keywords",
        "searchterm",
        "query text",
        "query string",
        "raw query",
        "query",
        "queries",
        "keyword",
        "keywords",
        "term",
        "terms",
        "phrase",
        "search",
        "search string",
        "search text",
        "site search term",
        "search_term",
        "q",
        "suchbegriff",
        "suchanfrage",
        "suchwort",
        "terme de recherche",
        "requête",
        "término de búsqueda",
        "termo de pesquisa",
        "termine di ricerca",
        "zoekterm",
        "zoekwoord",
        "wyszukiwana fraza",
        "sökord",
    ),
    "product_id": (
        "event attributes object object id",
        "product id",
        "productid",
        "item id",
        "object id",
        "objectid",
        "doc id",
        "docid",
        "document id",
        "clicked product id",
        "product sku",
        "item sku",
        "sku",
        "asin",
        "product",
        "item",
        "product code",
        "item code",
        "product number",
        "item number",
        "article id",
        "article number",
        "variant id",
        "product variant id",
        "product handle",
        "handle",
        "hit",
        "id",
        "artikelnummer",
        "artikel nr",
        "produkt id",
        "produktnummer",
        "référence",
        "id du produit",
        "id producto",
        "id de producto",
        "id do produto",
        "id prodotto",
        "artikelcode",
    ),
    "impressions": (
        "impressions",
        "impression count",
        "impression",
        "product list views",
        "items viewed in list",
        "item list views",
        "list views",
        "product impressions",
        "item impressions",
        "search impressions",
        "times shown",
        "shown",
        "appearances",
        "displays",
        "num impressions",
        "n impressions",
        "total impressions",
        "result impressions",
        "tracked hit count",
        "tracked search count",
        "impr",
        "views",
        "view count",
        "searches",
        "search count",
        "total searches",
        "number of searches",
        "count",
        "impressionen",
        "einblendungen",
        "anzeigen",
        "affichages",
        "impresiones",
        "impressões",
        "impressioni",
        "weergaven",
        "vertoningen",
        "wyświetlenia",
        "visningar",
    ),
    "clicks": (
        "clicks",
        "click count",
        "click",
        "clicked",
        "is click",
        "is clicked",
        "product list clicks",
        "items clicked in list",
        "item list clicks",
        "product clicks",
        "item clicks",
        "total clicks",
        "num clicks",
        "n clicks",
        "number of clicks",
        "result clicks",
        "search clicks",
        "klicks",
        "clics",
        "clic",
        "cliques",
        "clic totali",
        "klikken",
        "kliks",
        "kliknięcia",
        "klick",
    ),
    "add_to_cart": (
        "add to cart",
        "adds to cart",
        "add to carts",
        "added to cart",
        "cart adds",
        "carts",
        "cart",
        "product adds to cart",
        "items added to cart",
        "cart additions",
        "cart add count",
        "add to cart count",
        "total add to carts",
        "addtocart",
        "add to basket",
        "adds to basket",
        "atc",
        "atcs",
        "in den warenkorb",
        "warenkorb",
        "ajouts au panier",
        "añadidos al carrito",
        "adições ao carrinho",
        "aggiunte al carrello",
        "toegevoegd aan winkelwagen",
    ),
    "purchases": (
        "purchases",
        "purchase count",
        "purchase",
        "purchased",
        "orders",
        "order count",
        "ordered",
        "order",
        "items purchased",
        "unique purchases",
        "item purchases",
        "product purchases",
        "total purchases",
        "total orders",
        "transactions",
        "conversions",
        "conversion count",
        "checkouts completed",
        "units sold",
        "bought",
        "bestellungen",
        "käufe",
        "verkäufe",
        "achats",
        "commandes",
        "compras",
        "pedidos",
        "acquisti",
        "ordini",
        "bestellingen",
        "aankopen",
        "zakupy",
        "zamówienia",
    ),
    "position": (
        "event attributes position ordinal",
        "avg position",
        "ø position",
        "average position",
        "mean position",
        "position",
        "product list position",
        "item list position",
        "item list index",
        "list position",
        "avg rank",
        "average rank",
        "rank",
        "pos",
        "ordinal",
        "result position",
        "click position",
        "average click position",
        "avg click position",
        "index",
        "durchschnittliche position",
        "durchschn position",
        "position moyenne",
        "posición media",
        "posición",
        "posição",
        "posição média",
        "posizione media",
        "posizione",
        "positie",
        "gemiddelde positie",
        "pozycja",
    ),
    "search_id": ("query id", "queryid", "search id", "searchid", "serp id"),
    "session_id": (
        "session id",
        "sessionid",
        "session",
        "ga session id",
        "event attributes session id",
        "visit id",
        "visitid",
        "anonymous id",
        "client id",
        "visitor id",
        "visitorid",
        "user id",
        "userid",
        "user pseudo id",
        "user token",
        "usertoken",
        "cookie",
        "cookie id",
        "customer id",
        "user",
        "visitor",
        "session key",
    ),
    "event": (
        "action name",
        "event name",
        "event",
        "action",
        "event type",
        "eventtype",
        "action type",
        "interaction",
        "interaction type",
        "activity",
        "ereignis",
        "événement",
        "evento",
    ),
    "time": (
        "timestamp",
        "event timestamp",
        "event time",
        "time",
        "datetime",
        "created at",
        "ts",
        "event date time",
        "occurred at",
        "zeit",
        "zeitstempel",
    ),
    "shown_ids": ("query response hit ids", "result ids", "hit ids", "shown products", "results shown"),
}


def plain_name(name: str) -> str:
    """A column's name in lower case, with one blank for all that is no letter or digit, and between camelCase words.

    >>> plain_name("Avg. Position"), plain_name("userQuery")
    ('avg position', 'user query')
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", unicodedata.normalize("NFKC", name))
    return " ".join(re.sub(r"[\W_]+", " ", spaced).lower().split())


def choose_columns(
    names: Sequence[str],
    given: Mapping[str, str],
    known: Mapping[str, Sequence[str]],
    place: str,
) -> dict[str, str]:
    """The column of each role: those given, and for the other roles those whose name is known.

    Args:
        names: Columns of the file.
        given: Column by role, as somebody passed it.
        known: Names by role, plain ones; of several that are there, the first one is taken.
        place: The file, for errors.

    Raises:
        CatalogueError: A role or a column that is given does not exist, a column is given for two roles, or the name of
            a column that is recognised is there twice.

    >>> choose_columns(["Search Term", "SKU", "Clicks", "CTR"], {}, NAMES, "report.csv")
    {'query': 'Search Term', 'product_id': 'SKU', 'clicks': 'Clicks'}
    """
    for role, name in given.items():
        if role not in known:
            remedy = f"Use {', '.join(known)}."
            raise CatalogueError(f"--click_columns names {role!r}, which is not read from these files", place, remedy)
        if name not in names:
            problem = f"--click_columns takes {role!r} from {name!r}, which is no column (columns: {', '.join(names)})"
            raise CatalogueError(problem, place, "Correct the name; upper and lower case count.")
        roles = [other for other, column in given.items() if column == name]
        if len(roles) > 1:
            problem = f"--click_columns takes {' and '.join(roles)} from one column, {name!r}"
            raise CatalogueError(problem, place, "Give each its own.")
    by_name: dict[str, list[str]] = {}
    for name in names:
        if name not in given.values():
            # A table numbers names that come again.
            by_name.setdefault(plain_name(re.sub(r" \(\d+\)$", "", name)), []).append(name)
    mapping = dict(given)
    for role, options in known.items():
        found = next((by_name[option] for option in options if option in by_name), [])
        if role not in given and found:
            mapping[role] = found[0]
            if len(found) > 1:
                problem = f"{role} may be in each of the columns {', '.join(map(repr, found))}"
                remedy = "Rename or remove one of them in the file, or say which with --click_columns."
                raise CatalogueError(problem, place, remedy)
    return {role: mapping[role] for role in known if role in mapping}


def require_columns(mapping: Mapping[str, str], roles: Sequence[str], names: Sequence[str], place: str) -> None:
    """Refuses a file without a column that it needs.

    Raises:
        CatalogueError: One of the roles has none.
    """
    for role in roles:
        if role not in mapping:
            problem = f"no column of {role} is recognised (columns: {', '.join(names)})"
            raise CatalogueError(problem, place, f'Name it: --click_columns \'{{"{role}": "…"}}\'.')
