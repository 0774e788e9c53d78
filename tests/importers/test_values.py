"""Values of shops' columns: prices, availability, lists of photos."""

import pytest

from mmfusion.importers.values import (
    Prices,
    availability,
    boolean,
    currency_in,
    decimal_of_locale,
    language_of_locale,
    split_photos,
)


@pytest.mark.parametrize(
    ("text", "amount", "currency"),
    [
        ("1,299.00 SEK", 1299.0, "SEK"),
        ("€ 19,95", 19.95, "EUR"),
        ("1.299,95", 1299.95, ""),
        ("19.95EUR", 19.95, "EUR"),
        ("12", 12.0, ""),
        ("12.5", 12.5, ""),
        ("CHF 1'299.50", 1299.5, "CHF"),
        ("1 299,00 kr", 1299.0, ""),
        ("1\u202f299,00\xa0€", 1299.0, "EUR"),
        ("1.299.000", 1299000.0, ""),
        ("US$ 12", 12.0, "USD"),
        ("R$ 1.234,56", 1234.56, "BRL"),
        ("10.00 - 20.00 USD", 10.0, "USD"),
        ("10-20", 10.0, ""),
        ("ab 19,95 EUR", 19.95, "EUR"),
        ("19,-", 19.0, ""),
        ("-25% 19.95", 19.95, ""),
        ("1299 Kč", 1299.0, "CZK"),
        ("XXL 12", 12.0, ""),
        ("-5.00", None, ""),
        ("1,2.3,4", None, ""),
        ("on request", None, ""),
        ("", None, ""),
    ],
)
def test_prices(text: str, amount: float | None, currency: str) -> None:
    assert Prices().read(text) == (amount, currency)


@pytest.mark.parametrize(
    ("sample", "locale", "expected"),
    [
        ([], None, 1299.0),
        (["19,95", "1.299"], None, 1299.0),
        (["19.95", "1.299"], None, 1.299),
        ([], "de", 1299.0),
        ([], "de-CH", 1.299),
        ([], "en_US", 1.299),
    ],
)
def test_what_1_299_is(sample: list[str], locale: str | None, expected: float) -> None:
    prices = Prices(sample, locale)
    assert prices.read("1.299")[0] == expected
    assert bool(prices.doubtful) == (not sample and locale is None)


def test_currencies() -> None:
    assert (
        currency_in("Price (EUR)") == "EUR" and currency_in("price_usd") == "USD" and currency_in("Preis in €") == "EUR"
    )
    assert currency_in("all inclusive") == ""  # ALL is the currency of Albania
    assert Prices(currency="DKK").read("12") == (12.0, "DKK")


def test_locales() -> None:
    assert [language_of_locale(one) for one in (None, "de-CH", "fr_CH", "us", "zh-Hant", "jp", "german")] == [
        *(None, "de", "fr", "en", "zh", "ja", None)
    ]
    assert [decimal_of_locale(one) for one in (None, "fr", "fr_CH", "us", "pt-BR", "jp")] == [
        None,
        ",",
        ".",
        ".",
        ",",
        ".",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in stock", "in_stock"),
        ("In_Stock", "in_stock"),
        ("instock", "in_stock"),
        ("1", "in_stock"),
        ("12", "in_stock"),
        ("yes", "in_stock"),
        ("http://schema.org/InStock", "in_stock"),
        ("auf Lager", "in_stock"),
        ("0", "out_of_stock"),
        ("-3", "out_of_stock"),
        ("out of stock", "out_of_stock"),
        ("En rupture de stock", "out_of_stock"),
        ("pre-order", "preorder"),
        ("onbackorder", "backorder"),
        (" next week ", "next week"),
    ],
)
def test_availability(text: str, expected: str) -> None:
    assert availability(text) == expected


def test_yes_and_no() -> None:
    assert [boolean(text) for text in ("TRUE", " ja", "1", "no", "-1", "maybe", "")] == [
        True,
        True,
        True,
        False,
        False,
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("https://a.b/1.jpg, https://a.b/2.jpg", ["https://a.b/1.jpg", "https://a.b/2.jpg"]),
        ("https://a.b/w_2,h_3/1.jpg,https://a.b/2?x=1;2", ["https://a.b/w_2,h_3/1.jpg", "https://a.b/2?x=1;2"]),
        ("https://a.b/1 https://a.b/2", ["https://a.b/1", "https://a.b/2"]),
        ("https://a.b/my pan.jpg", ["https://a.b/my pan.jpg"]),
        ("a.jpg|b.PNG", ["a.jpg", "b.PNG"]),
        ("a.jpg; b.jpg;", ["a.jpg", "b.jpg"]),
        ("pan, red.jpg", ["pan, red.jpg"]),
        ('["a.jpg", "b.jpg"]', ["a.jpg", "b.jpg"]),
        ("['a.jpg', 'b.jpg']", ["a.jpg", "b.jpg"]),
        ("[a.jpg,b.jpg]", ["a.jpg", "b.jpg"]),
        ("[]", []),
        ("  ", []),
    ],
)
def test_photos_of_one_cell(cell: str, expected: list[str]) -> None:
    assert split_photos(cell) == expected
