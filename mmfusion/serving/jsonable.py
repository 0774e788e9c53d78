"""Values of a catalogue's columns as JSON, and JSON as people send it."""

import base64
import math
from typing import Any

import orjson


def to_json(value: Any) -> bytes:
    """JSON in UTF-8: NaN and infinite numbers become null, dates ISO 8601, bytes base64, decimals text."""
    try:
        return orjson.dumps(value, default=_plain)
    except TypeError:
        # Keys that are no text, and numbers of more than 64 bits: rare, and worth an answer that takes longer.
        return orjson.dumps(_all_plain(value))


def from_json(raw: str | bytes) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: It is none; NaN and halves of surrogate pairs are none.
    """
    return orjson.loads(raw)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _all_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _all_plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_all_plain(one) for one in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**64:
        return str(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return _plain(value)
