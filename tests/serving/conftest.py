"""A served index and the encoder of its queries, once for each file of tests."""

from pathlib import Path

import pytest
from served_index import write_served

from mmfusion.retriever import Retriever


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def encoder(place: Path) -> Retriever:
    return write_served(place)
