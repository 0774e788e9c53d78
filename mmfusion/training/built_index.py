"""The index that mmfusion index built, wherever it is."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmfusion.retrieval import MilvusIndex, ProductIndex
from mmfusion.training.run import RunError, read_record


def index_record(index: str) -> dict[str, Any]:
    """What `run.json` of an index says: its model (`base`), and where it is.

    Args:
        index: Output folder of mmfusion index.

    Raises:
        RunError: There is no index, or it is not finished.
    """
    record = read_record(Path(index))
    if record is None or not record["complete"]:
        raise RunError(f"{index!r} holds no finished index; build one with mmfusion index --output {index}.")
    return record


def open_built_index(index: str, record: Mapping[str, Any], *, verify: bool = False) -> ProductIndex | MilvusIndex:
    """Opens the index in a folder, or the collection that was built instead of one.

    Args:
        index: Output folder of mmfusion index.
        record: Its `index_record`. The token of a Milvus server is in the environment variable `MILVUS_TOKEN`.
        verify: Compares all bytes of the files with their checksums, see [`ProductIndex.load`].

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The index is damaged, or Milvus cannot be reached, or is to be verified.
    """
    uri = record.get("milvus_uri")
    if uri is None:
        return ProductIndex.load(Path(index) / "index", verify=verify)
    if verify:
        raise RunError(f"verify is true, but {index!r} is an index in Milvus, which keeps its own files; leave it out.")
    return MilvusIndex.connect(uri, record["collection"], token=os.environ.get("MILVUS_TOKEN"))
