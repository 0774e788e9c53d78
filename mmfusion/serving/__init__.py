"""The search service: HTTP over a query tower and an index. Needs the extra `mmfusion[serve]`."""

from importlib.util import find_spec

from mmfusion.serving.settings import ServiceLimits

_NEEDED = ("orjson", "starlette", "uvicorn", "prometheus_client")


def check_installed() -> None:
    """Refuses to begin without the packages of the extra.

    Raises:
        ValueError: One is missing.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise ValueError(f"serving needs {', '.join(missing)}; install it with: pip install 'mmfusion[serve]'")


__all__ = ["ServiceLimits", "check_installed"]
