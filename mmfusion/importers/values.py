"""Values of shops' columns: prices with their currency, availability, yes and no, lists in one cell."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from mmfusion.importers.items import ImportLog

Decimal = Literal[".", ","]

# Of ISO 4217.
_CODES = (
    "COD AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD "
    "CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ GYD "
    "HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR LRD LSL "
    "LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN PGK PHP PKR "
    "PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP "
    "TRY TTD TWD TZS UAH UGX USD UYU UZS VES VND VUV WST XAF XCD XOF XPF YER ZAR ZMW ZWL "
)
# The longer ones first: US$ before $.
_SIGNS = {
    "US$": "USD", "CA$": "CAD", "AU$": "AUD", "NZ$": "NZD", "HK$": "HKD", "NT$": "TWD", "R$": "BRL", "C$": "CAD",
    "A$": "AUD", "S$": "SGD", "€": "EUR", "$": "USD", "£": "GBP", "¥": "JPY", "₹": "INR", "₩": "KRW", "₺": "TRY",
    "₽": "RUB", "₴": "UAH", "₫": "VND", "฿": "THB", "₪": "ILS", "₱": "PHP", "₦": "NGN", "zł": "PLN", "Kč": "CZK",
    "руб": "RUB", "лв": "BGN", "lei": "RON", "Ft": "HUF", "Fr.": "CHF",
}  # fmt: skip
_CODE = re.compile(r"(?<![A-Za-z])([A-Za-z]{3})(?![A-Za-z])")
_PLAIN = re.compile(r"\d+(?:\.\d{1,2})?")
_NUMBER = re.compile(r"(?<![\d.,])-?\d+(?:[\s'’]\d{3}(?!\d))*(?:[.,]\d+)*(?!\s?%)|(?<=\d-)\d+(?:[.,]\d+)*")
# One sign with three digits after it: 1.299.
_AMBIGUOUS = re.compile(r"-?[1-9]\d{0,2}[.,]\d{3}")
_COMMA_LANGUAGES = "bg ca cs da de el es et fi fr hr hu id is it lt lv nb nl nn no pl pt ro ru sk sl sr sv tr uk vi"
_LANGUAGES_OF_MARKETS = {"us": "en", "uk": "en", "gb": "en", "jp": "ja", "cn": "zh"}
_POINT_MARKETS = "de-ch de-li it-ch fr-ch es-mx es-us es-gt es-hn es-ni es-pa es-pe es-pr es-sv es-do"

_AVAILABLE = {
    "in_stock": (
        "instock in available lowstock limited limitedavailability availablefororder instoreonly onlineonly auflager "
        "lieferbar sofortlieferbar verfügbar vorrätig enstock disponible disponibile opvoorraad voorradig leverbaar "
        "ilager påager nasklade skladem dostępny emestoque disponível stokta"
    ),
    "out_of_stock": (
        "outofstock out outstock soldout unavailable discontinued notavailable nichtverfügbar nichtlieferbar "
        "nichtauflager ausverkauft nichtvorrätig épuisé enrupturedestock rupturedestock horsstock indisponible agotado "
        "sinexistencias esaurito nondisponibile uitverkocht nietopvoorraad slutsåld niedostępny vyprodáno esgotado"
    ),
    "preorder": "preorder presale vorbestellung vorbestellbar précommande preordine reserva preventa pedidoantecipado",
    "backorder": "backorder onbackorder backorderable lieferrückstand enréapprovisionnement nabestelling",
}
_AVAILABILITY = {word: kind for kind, words in _AVAILABLE.items() for word in words.split()}
_YES = "1 1.0 true t yes y x on ja wahr oui vrai sí si verdadero vero sì waar tak ano sim sant да"
_NO = "0 0.0 -1 false f no n off nein falsch non faux falso nee onwaar nie ne não nej falskt нет"
_BOOLEANS = {**dict.fromkeys(_YES.split(), True), **dict.fromkeys(_NO.split(), False)}
_PHOTO = re.compile(r"\.(?:jpe?g|png|webp|gif|bmp|tiff?|avif|heic)\Z", re.IGNORECASE)
_MAY_BE_LIST = re.compile(r"[,;|\n\[]|\shttps?://")
_BEFORE_URL = re.compile(r"""\s*[,;|\n]\s*(?=https?://|//|gs://|s3://|data:)|\s+(?=https?://)""")


class Prices:
    """Reads the prices of one column.

    Which of `.` and `,` is the decimal point is seen in most prices: 1,299.00 and 19,95. Where it is not, as in 1.299,
    the other prices of the column decide, then the locale; else three digits after a single sign are thousands.

    Attributes:
        decimal: The decimal point where a price does not show it; None: unknown.
        doubtful: The first price that could be read in two ways, with no other one to decide; "" if none.
        unreadable: Texts that are no price, with their numbers.

    Args:
        sample: Some values of the column.
        locale: Language or market, e.g. "de" or "de-CH"; None: unknown.
        currency: Code of prices that name none.
    """

    def __init__(self, sample: Iterable[str] = (), locale: str | None = None, currency: str = "") -> None:
        seen = Counter(decimal for text in sample for number in _numbers(text) if (decimal := _decimal_of(number)))
        self.decimal: Decimal | None = seen.most_common(1)[0][0] if seen else decimal_of_locale(locale)
        self.currency = currency
        self.doubtful = ""
        self.unreadable: Counter[str] = Counter()

    def read(self, text: str) -> tuple[float | None, str]:
        """Amount of a price and its currency (a code of ISO 4217, or ""); the lowest of a range. None: no price."""
        if _PLAIN.fullmatch(text) and not (self.decimal == "," and "." in text):
            return float(text), self.currency
        amounts = [
            amount
            for number in _numbers(text)
            if not number.startswith("-") and (amount := self._amount(number)) is not None
        ]
        if not amounts:
            if text.strip() and len(self.unreadable) < 1000:
                self.unreadable[text] += 1
            return None, ""
        return min(amounts), currency_in(text) or self.currency

    def report(self, log: ImportLog, column: str) -> None:
        """Says what is doubtful, after all was read."""
        if self.doubtful:
            log.warn(
                f"{column}: {self.doubtful!r} was read as thousands, as no other price shows its decimal point; "
                "where that is wrong, say how numbers are written, e.g. --locale de or --locale en"
            )
        if self.unreadable:
            text, _ = self.unreadable.most_common(1)[0]
            log.warn(f"{column}: {self.unreadable.total():,} values are not prices and stay empty, e.g. {text[:40]!r}")

    def _amount(self, number: str) -> float | None:
        decimal = _decimal_of(number)
        if decimal is None and _AMBIGUOUS.fullmatch(number):
            decimal = self.decimal
            self.doubtful = self.doubtful or number * (decimal is None)
        if decimal is None or decimal not in number:
            return float(number.replace(",", "").replace(".", ""))
        digits = number.replace("," if decimal == "." else ".", "").replace(decimal, ".")
        return float(digits) if digits.count(".") == 1 else None


def decimal_of_locale(locale: str | None) -> Decimal | None:
    """The decimal point of a language or market; None where it is not known."""
    if not locale:
        return None
    tag = locale.lower().replace("_", "-")
    return "," if tag.split("-")[0] in _COMMA_LANGUAGES.split() and tag not in _POINT_MARKETS.split() else "."


def language_of_locale(locale: str | None) -> str | None:
    """ISO 639 code of a language or market: "de-CH" is de, and the market us is en; None where it is not known."""
    tag = re.split("[-_]", (locale or "").lower())[0]
    return _LANGUAGES_OF_MARKETS.get(tag, tag if re.fullmatch("[a-z]{2}", tag) else None)


def currency_in(text: str) -> str:
    """The currency that a price or a column's name says; "" if none."""
    for code in _CODE.findall(text):
        if code.upper() in _CODES and (code.isupper() or code.lower() in ("eur", "usd", "gbp")):
            return code.upper()
    return next((code for sign, code in _SIGNS.items() if sign in text), "")


@lru_cache(maxsize=4096)
def availability(text: str) -> str:
    """`in_stock`, `out_of_stock`, `preorder` or `backorder`; other words as they are. A number is one of pieces."""
    word = re.sub(r"[\s_-]", "", text.strip().rsplit("/", 1)[-1].lower())
    if word in _AVAILABILITY:
        return _AVAILABILITY[word]
    if (known := boolean(word)) is not None:
        return "in_stock" if known else "out_of_stock"
    if re.fullmatch(r"-?\d+(?:[.,]\d+)?", text.strip()):
        return "out_of_stock" if text.strip().startswith("-") else "in_stock"
    return text.strip()


def boolean(text: str) -> bool | None:
    """Yes or no, in several languages; None: neither."""
    return _BOOLEANS.get(text.strip().lower())


def names_photo(text: str) -> bool:
    """Whether a text ends like a photo's path or URL."""
    return _PHOTO.search(text.split("?")[0].split("#")[0]) is not None


def split_photos(cell: str) -> list[str]:
    """Photos that one cell names: a list of JSON or Python, or separated by `,` `;` `|` or line breaks.

    URLs may hold commas; a sign separates only where a further URL or, between paths, two names of photos meet.
    """
    cell = cell.strip()
    if not _MAY_BE_LIST.search(cell):
        return [cell] if cell else []
    if cell.startswith("[") and cell.endswith("]"):
        parts = listed(cell)
        return parts if parts is not None else split_photos(cell[1:-1])
    if "://" in cell or cell.startswith("//"):
        return [part for part in (one.strip(" ,;|\n") for one in _BEFORE_URL.split(cell)) if part]
    for separator in ("\n", "|", ";", ","):
        if separator not in cell:
            continue
        parts = [part for part in (one.strip() for one in cell.split(separator)) if part]
        if len(parts) > 1 and all(map(names_photo, parts)):
            return parts
    return [cell.rstrip(",;|")] if cell else []


def listed(cell: str) -> list[str] | None:
    """Texts of a list that is written as in JSON or Python; None: it is none."""
    for text in (cell, cell.replace("'", '"')):
        try:
            found = json.loads(text)
        except ValueError:
            continue
        return [one.strip() for one in found if isinstance(one, str) and one.strip()]
    return None


def _numbers(text: str) -> list[str]:
    return [re.sub(r"['’\s]", "", number) for number in _NUMBER.findall(text)]


def _decimal_of(number: str) -> Decimal | None:
    """The decimal point that a number shows; None if it shows none."""
    point, comma = number.rfind("."), number.rfind(",")
    if point >= 0 and comma >= 0:
        return "." if point > comma else ","
    if number.count(".") + number.count(",") != 1 or _AMBIGUOUS.fullmatch(number):
        return None
    return "." if point >= 0 else ","
