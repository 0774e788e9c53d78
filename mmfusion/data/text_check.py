"""What a model is about to read of products, where that is hardly meant: HTML, or titles alone beside descriptions."""

import logging
import re
from typing import Any

import numpy as np

from mmfusion.data.catalogue import BaseCatalogue
from mmfusion.data.catalogue_files import ParquetTable, find_folder
from mmfusion.data.catalogue_schema import LANGUAGE_KEY, TEMPLATE_KEY, CatalogueError
from mmfusion.model import MMFusionProcessor

# Products whose texts are looked at, over all of the catalogue.
_SAMPLE = 500
_HTML = re.compile(
    r"</?(?:p|br|div|span|ul|ol|li|b|i|strong|em|a|img|table|tr|td|h[1-6])(?:\s[^<>]*)?/?>|&(?:nbsp|amp|quot|lt|gt|#\d+);",
    re.IGNORECASE,
)

logger = logging.getLogger(__name__)


def recommended_template(source: str) -> str | None:
    """The product text that a catalogue recommends, as `mmfusion import` notes it in the metadata of its products.

    None: it recommends none, is not in a folder, or has no products.
    """
    return _noted(source, TEMPLATE_KEY)


def noted_language(source: str) -> str | None:
    """ISO 639 code of titles and queries, as `mmfusion import --locale` notes it; None in the same way."""
    return _noted(source, LANGUAGE_KEY)


def _noted(source: str, key: bytes) -> str | None:
    try:
        folder = find_folder(source)
        found = None if folder is None else ParquetTable(folder, "products").footers[0].metadata
    except CatalogueError:
        return None
    return (found or {}).get(key, b"").decode() or None


def warn_of_texts(catalogue: BaseCatalogue, processor: MMFusionProcessor) -> None:
    """Warns where the product text leaves out what the catalogue has to say, or where it holds HTML.

    Args:
        catalogue: Products; of a stream, texts are not looked at.
        processor: Its template is what a model reads.
    """
    read, template = processor.template_columns, processor.product_template
    recommended = recommended_template(catalogue.source)
    texts = _sample(catalogue)
    if recommended is not None and any(f"{{{name}}}" not in template for name in _columns(recommended)):
        logger.warning(
            "the catalogue recommends the product text %r, and the model reads %r; make the base with --catalogue %s, "
            "or with another --product_template",
            *(recommended, template, catalogue.source),
        )
    elif recommended is None and "description" not in read and any(texts.get("description", [])):
        logger.warning(
            "products have descriptions, which the product text %r leaves out; make the base with --product_template "
            "'{title} {description}' to read them",
            template,
        )
    for name in read:
        held = sum(_HTML.search(text) is not None for text in texts.get(name, []))
        if held:
            logger.warning(
                "%d of %d texts in the column %r hold HTML, which the model reads as words; `mmfusion import` turns it "
                "into text",
                *(held, len(texts[name]), name),
            )


def _columns(template: str) -> list[str]:
    return re.findall(r"\{(\w+)", template)


def _sample(catalogue: BaseCatalogue) -> dict[str, list[Any]]:
    """Some texts of each column of texts."""
    table = catalogue.products.data.table
    rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), _SAMPLE)).astype(np.int64))
    names = [field.name for field in table.schema if str(field.type) in ("string", "large_string")]
    sample = catalogue.products.select_columns(names)[rows.tolist()] if names else {}
    return {name: [value for value in values if value and value.strip()] for name, values in sample.items()}
