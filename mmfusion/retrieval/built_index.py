"""The index that recipes/index.py built, wherever it is."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmfusion.retrieval.index import ProductIndex
from mmfusion.retrieval.milvus import MilvusIndex


def open_built_index(folder: Path, record: Mapping[str, Any]) -> ProductIndex | MilvusIndex:
    """Opens the index in a folder, or the collection that was built instead of one.

    Args:
        folder: Output folder of recipes/index.py.
        record: What its `run.json` holds. The token of a Milvus server is in the environment variable `MILVUS_TOKEN`.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The index is damaged, or Milvus cannot be reached.
    """
    uri = record.get("milvus_uri")
    if uri is None:
        return ProductIndex.load(folder / "index")
    return MilvusIndex.connect(uri, record["collection"], token=os.environ.get("MILVUS_TOKEN"))
