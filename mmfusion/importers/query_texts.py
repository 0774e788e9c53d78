"""Queries as they are kept: normalised, and never what looks like personal data."""

import re
from collections.abc import Container

from mmfusion.importers.splits import normalised_query

# What exports write where there is no query, or where rare ones were added up.
_NO_QUERY = re.compile(
    r"\((not set|not provided|other|none|empty|blank|data deleted|entrance|redacted)\)|undefined|null|\[object object\]"
)
_INVISIBLE = dict.fromkeys([0xAD, 0x200B, 0x200E, 0x200F, 0x2060, 0xFEFF])

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_EMAIL = re.compile(r"[^\s@]+(@|%40|\s?\((at|a)\)\s?|\s?\[at\]\s?)[^\s@]+(\.|\s?[(\[]dot[)\]]\s?)[a-z]{2,}")
# Digits in groups, as phone and card numbers are written; not within a word or a decimal number.
_NUMBER = re.compile(r"(?<![\w.,])(?:\+\s?)?\(?\d(?:[ ()./-]{0,3}\d)*\)?(?!\w)")
_LONGEST = 500
_BARCODE_LENGTHS = (8, 12, 13, 14)


def normalise_query(text: str) -> str:
    """NFKC, lower case, invisible characters removed, white space collapsed.

    >>> normalise_query(" Red\\u00a0 DRESS ")
    'red dress'
    """
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode().translate(_INVISIBLE)
    return normalised_query(_CONTROL.sub(" ", text))


def unwanted_query(query: str, known_ids: Container[str] = ()) -> str:
    """Why a normalised query is dropped; "" if it is kept. The reason never repeats the query.

    Dropped are blanks, what exports write for "no query", more than 500 characters, and what looks like an e-mail
    address, a phone number or the number of a payment card. Numbers of goods stay: up to nine digits in one piece,
    barcodes (GTIN) and ISBNs with the right check digit, and ids of known products.

    Args:
        query: From `normalise_query`.
        known_ids: Ids of products, which are no phone numbers.

    >>> unwanted_query("iphone 13 128gb"), unwanted_query("me@example.org")
    ('', 'query looks like an e-mail address')
    """
    if not query:
        return "query is blank"
    if len(query) > _LONGEST:
        return f"query is longer than {_LONGEST} characters"
    if _NO_QUERY.fullmatch(query):
        return f"query is a placeholder: {query}"
    if _EMAIL.search(query):
        return "query looks like an e-mail address"
    for found in _NUMBER.finditer(query):
        number = found.group().strip()
        if number in known_ids or query in known_ids:
            continue
        digits = re.sub(r"\D", "", number)
        if _is_goods_number(digits) and not number.startswith(("+", "(", "00 ")):
            continue
        if _is_card(digits):
            return "query looks like a card number"
        if _is_phone(number, digits):
            return "query looks like a phone number"
    return ""


def _is_goods_number(digits: str) -> bool:
    """Whether the check digit is that of a barcode (GTIN-8, -12, -13, -14) or an ISBN-10."""
    numbers = [int(digit) for digit in digits]
    if len(digits) == 10:
        return sum(weight * number for weight, number in zip(range(10, 0, -1), numbers, strict=True)) % 11 == 0
    if len(digits) not in _BARCODE_LENGTHS:
        return False
    return sum(number * (3 if place % 2 else 1) for place, number in enumerate(reversed(numbers))) % 10 == 0


def _is_card(digits: str) -> bool:
    """Whether it has the length of a card number and the check digit of Luhn."""
    if not 13 <= len(digits) <= 19:
        return False
    doubled = [int(digit) * (2 if place % 2 else 1) for place, digit in enumerate(reversed(digits))]
    return sum(number - 9 if number > 9 else number for number in doubled) % 10 == 0


def _is_phone(number: str, digits: str) -> bool:
    """Whether it is written as a phone number is: international, national with a leading zero, or in usual groups."""
    groups = [len(group) for group in re.findall(r"\d+", number)]
    if number.startswith("+"):
        return 8 <= len(digits) <= 15
    if len(groups) == 1:
        return 10 <= len(digits) <= 13 or (digits.startswith("00") and 10 <= len(digits) <= 15)
    if digits.startswith("0"):
        return 9 <= len(digits) <= 15 and min(groups) >= 2 and not re.search(r"\d\.\d", number)
    if number.startswith("("):
        return 9 <= len(digits) <= 11
    # North America; Spain, Poland, Portugal …
    return groups in ([3, 3, 4], [1, 3, 3, 4]) or (groups in ([3, 3, 3], [3, 2, 2, 2]) and digits[0] in "56789")
