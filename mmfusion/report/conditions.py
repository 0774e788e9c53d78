"""What the numbers were measured with: labels, commands, seeds and provenance, as far as they were recorded."""

import json
import os
from collections.abc import Mapping
from typing import Any

from mmfusion.evaluation import Evaluation
from mmfusion.report.html import Html, escape, foreign, join, tag

# A run's arguments fit; their seed comes last.
_LONGEST = 4000


def introduction(variants: list[Evaluation], split: str) -> Html:
    """What every number of the page holds for, and who labelled it."""
    sources = list(dict.fromkeys(variant.label_source for variant in variants if variant.label_source))
    labels = foreign("; ".join(sources), 600) if sources else "not recorded in the results"
    partly = (
        " (not recorded for all variants)" if sources and not all(variant.label_source for variant in variants) else ""
    )
    # The labels have a line of their own.
    measured = variants[0].conditions().split("; labels: ")[0]
    return join(
        tag("p", f"Split {split}; ", foreign(measured, 600), "."),
        tag("p", tag("strong", "Labels: "), labels, partly, ".", class_="labels"),
    )


def facts(title: str, recorded: Mapping[str, Any], *, opened: bool = False) -> Html:
    """Names and values behind a line that unfolds; absolute paths are cut to their last part.

    Args:
        title: The line.
        recorded: JSON-like values by name; nested mappings are written as JSON.
        opened: Unfolded from the start.
    """
    if not recorded:
        return tag("p", foreign(title), ": nothing recorded.")
    entries = [join(tag("dt", foreign(name, 80)), tag("dd", _value(value))) for name, value in recorded.items()]
    return tag("details", tag("summary", foreign(title)), tag("dl", *entries), open=opened)


def shorten_paths(value: Any) -> Any:
    """The value with each absolute path in it cut to "…/name": a page is passed on, a machine's folders are not."""
    if isinstance(value, Mapping):
        return {name: shorten_paths(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [shorten_paths(inner) for inner in value]
    if isinstance(value, str) and os.path.isabs(value):
        return f"…/{os.path.basename(value.rstrip('/'))}"
    return value


def _value(value: Any) -> Html:
    plain = shorten_paths(value)
    text = plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, default=str)
    return tag("code", escape(text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"), dir="auto")
