"""Dates, times and durations as whole numbers, so that they compare exactly whatever unit a column has."""

import datetime
import re
from calendar import timegm
from typing import Any

import pyarrow as pa

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_DAY = 86_400 * 10**9
_TIME = r"(?P<time>\d{2}:\d{2}(?::\d{2})?)(?:(?<=:\d{2}:\d{2})[.,](?P<fraction>\d{1,9}))?"
_MOMENT = re.compile(
    rf"(?P<date>\d{{4}}-\d{{2}}-\d{{2}})(?:[Tt ]{_TIME}(?P<zone>[Zz]|[+-]\d{{2}}:?\d{{2}})?)?", re.ASCII
)
_CLOCK = re.compile(_TIME, re.ASCII)


def is_moment(kind: pa.DataType) -> bool:
    """Whether a column holds dates, times of day, timestamps or durations."""
    return bool(pa.types.is_temporal(kind) and not pa.types.is_interval(kind))


def number_type(kind: pa.DataType) -> pa.DataType:
    """Type of the whole numbers that such a column is stored as."""
    return pa.int32() if kind.bit_width == 32 else pa.int64()


def expected(kind: pa.DataType) -> str:
    """What such a column is compared with."""
    if pa.types.is_duration(kind):
        return "a datetime.timedelta; texts and numbers are none"
    if pa.types.is_time(kind):
        return "an ISO 8601 time such as '18:30' or '18:30:00.5'"
    return "an ISO 8601 date or time such as '2026-01-31' or '2026-01-31T18:30:00Z'"


def against_moment(kind: pa.DataType, operator: str, value: Any) -> tuple[str, int] | bool:
    """A comparison with a column of moments as one of the whole numbers that it is stored as.

    Args:
        kind: Type of the column.
        operator: One of `== != < <= > >=`.
        value: A date, datetime, time or timedelta, or an ISO 8601 text, as `nanoseconds` takes them.

    Returns:
        Operator and number; or True where it holds for all that is not null, False where for nothing.

    Raises:
        TypeError, ValueError: The value is none of a column of this type.
    """
    step, limit = _step(kind), 2 ** (number_type(kind).bit_width - 1) - 1
    number, rest = divmod(nanoseconds(kind, value), step)
    if abs(number) > limit:
        number, rest = max(min(number, limit), -limit), 1
    if not rest:
        return operator, number
    # Between two numbers that the column can hold.
    return {"==": False, "!=": True}.get(operator, ("<=" if operator in ("<", "<=") else ">", number))


def nanoseconds(kind: pa.DataType, value: Any) -> int:
    """A value in nanoseconds: since 1970 UTC, since midnight, or in all.

    What has no zone is UTC, in the column as in the value, and a date is its midnight.

    Raises:
        TypeError, ValueError: It is none of a column of this type.
    """
    if pa.types.is_duration(kind):
        return _of_duration(value)
    if pa.types.is_time(kind):
        return _of_clock(value)
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, datetime.datetime):
        whole = timegm(value.utctimetuple())
        return whole * 10**9 + value.microsecond * 1000 + int(getattr(value, "nanosecond", 0))
    if isinstance(value, datetime.date):
        return timegm(value.timetuple()) * 10**9
    return _of_numpy(value, "datetime64")


def _step(kind: pa.DataType) -> int:
    if pa.types.is_date32(kind):
        return _DAY
    return 10**9 // _PER_SECOND["ms" if pa.types.is_date64(kind) else kind.unit]


def _of_text(text: str) -> int:
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError("not ISO 8601")
    zone = (found["zone"] or "Z").upper()
    moment = datetime.datetime.fromisoformat(f"{found['date']}T{found['time'] or '00:00'}{zone}")
    # Not utctimetuple, for which the first and the last day have no zones.
    whole = timegm(moment.timetuple()) - int((moment.utcoffset() or datetime.timedelta()).total_seconds())
    return whole * 10**9 + _fraction(found["fraction"])


def _of_clock(value: Any) -> int:
    fraction = 0
    if isinstance(value, str):
        found = _CLOCK.fullmatch(value)
        if found is None:
            raise ValueError("not ISO 8601")
        value, fraction = datetime.time.fromisoformat(found["time"]), _fraction(found["fraction"])
    if not isinstance(value, datetime.time) or value.tzinfo is not None:
        raise TypeError("no time of day without a zone")
    return ((value.hour * 60 + value.minute) * 60 + value.second) * 10**9 + value.microsecond * 1000 + fraction


def _of_duration(value: Any) -> int:
    if isinstance(value, datetime.timedelta):
        whole = (value.days * 86_400 + value.seconds) * 10**9
        return whole + value.microseconds * 1000 + int(getattr(value, "nanoseconds", 0))
    return _of_numpy(value, "timedelta64")


def _of_numpy(value: Any, kind: str) -> int:
    if not str(getattr(value, "dtype", "")).startswith(kind):
        raise TypeError("no moment")
    return int(value.astype(f"{kind}[ns]").astype("int64"))


def _fraction(digits: str | None) -> int:
    return int((digits or "").ljust(9, "0"))
