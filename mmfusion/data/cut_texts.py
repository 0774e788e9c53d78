"""How many texts are longer than a model reads."""

import logging

import numpy as np

from mmfusion.data.tables import ProductTable, QueryTable, Rows

logger = logging.getLogger("mmfusion")

# What a run of any size can tokenise once more without being slower for it.
_MOST_TEXTS = 20_000
# More special tokens than any tokenizer puts around a text.
_SPECIAL_TOKENS = 8


def log_cut_texts(table: ProductTable | QueryTable, rows: Rows) -> None:
    """Logs one line if texts are cut at the processor's limit; of more than 20,000 texts a sample is looked at.

    Args:
        table: Products or queries.
        rows: (N,) int64, their rows.
    """
    products = isinstance(table, ProductTable)
    field = "max_product_length" if products else "max_query_length"
    processor = table.processor
    prompt = processor.product_prompt if products else processor.query_prompt
    limit = min(getattr(processor, field), processor.tokenizer.model_max_length)
    sample = rows if len(rows) <= _MOST_TEXTS else rows[np.linspace(0, len(rows) - 1, _MOST_TEXTS).astype(np.int64)]
    texts = [prompt + text for text in table.texts(sample)]
    # No tokenizer makes more tokens than bytes, so that short titles need no second look.
    long = [text for text in texts if len(text.encode()) + _SPECIAL_TOKENS > limit]
    tokens = processor.tokenizer(long, verbose=False)["input_ids"] if long else []
    cut = sum(len(ids) > limit for ids in tokens)
    if cut:
        logger.info(
            "%s of %s%s %s are longer than %s %s, and are cut there",
            f"{cut:,}",
            f"{len(texts):,}",
            "" if len(sample) == len(rows) else f" sampled (of {len(rows):,})",
            "product texts" if products else "queries",
            field,
            f"{limit} tokens",
        )
