"""Which column of a click report or log is which, by the names that shops' tools give them."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

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
        "impr",
        "views",
        "view count",
        "searches",
        "search count",
        "total searches",
        "number of searches",
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
    "search_id": ("query id", "queryid", "search id", "searchid", "request id", "serp id", "impression id"),
    "session_id": (
        "session id",
        "sessionid",
        "session",
        "ga session id",
        "event attributes session id",
        "visit id",
        "visitid",
        "client id",
        "visitor id",
        "visitorid",
        "user id",
        "userid",
        "user pseudo id",
        "user token",
        "usertoken",
        "anonymous id",
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
ROLES = tuple(NAMES)


def plain_name(name: str) -> str:
    """A column's name in lower case, with one blank for all that is no letter or digit, and between camelCase words.

    >>> plain_name("Avg. Position"), plain_name("userQuery")
    ('avg position', 'user query')
    """
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", " ", unicodedata.normalize("NFKC", name))
    return " ".join(re.sub(r"[\W_]+", " ", spaced).lower().split())


def recognise(names: Iterable[str]) -> dict[str, str]:
    """The column of each role that has one, by `NAMES`; of several, the one whose name comes first there.

    >>> recognise(["Search Term", "SKU", "Clicks", "CTR"])
    {'query': 'Search Term', 'product_id': 'SKU', 'clicks': 'Clicks'}
    """
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(plain_name(name), name)
    found = {
        role: next((by_name[name] for name in options if name in by_name), None) for role, options in NAMES.items()
    }
    return {role: name for role, name in found.items() if name is not None}


def map_columns(names: Sequence[str], given: Mapping[str, str], place: str) -> dict[str, str]:
    """The column of each role: those given, and for the other roles those that are recognised.

    Args:
        names: Columns of the file.
        given: Column by role (`ROLES`), as somebody passed it.
        place: The file, for errors.

    Raises:
        CatalogueError: A role or a column that is given does not exist, a column is given for two roles, or the name of
            a column that is used is there twice.
    """
    for role, name in given.items():
        if role not in ROLES:
            raise CatalogueError(
                f"--columns names {role!r}, which a click log has not", place, f"Use {', '.join(ROLES)}."
            )
        if name not in names:
            raise CatalogueError(
                f"--columns takes {role!r} from {name!r}, which is no column (columns: {', '.join(names)})", place,
                "Correct the name; upper and lower case count.",
            )  # fmt: skip
    twice = sorted(name for name in set(given.values()) if list(given.values()).count(name) > 1)
    if twice:
        roles = " and ".join(role for role, name in given.items() if name == twice[0])
        raise CatalogueError(f"--columns takes {roles} from one column, {twice[0]!r}", place, "Give each its own.")
    free = [name for name in names if name not in given.values()]
    mapping = {**recognise(free), **given}
    for role, name in mapping.items():
        alike = [other for other in names if plain_name(other) == plain_name(name)]
        if len(alike) > 1 and (role not in given or alike.count(name) > 1):
            raise CatalogueError(
                f"{role} may be in each of the columns {', '.join(map(repr, alike))}", place,
                "Rename or remove one of them in the file, or say which with --columns.",
            )  # fmt: skip
    return mapping
