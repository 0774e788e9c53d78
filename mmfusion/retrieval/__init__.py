"""Searchable indexes of product embeddings."""

from mmfusion.retrieval.calibration import Calibration, calibrate
from mmfusion.retrieval.choose import Choice, choose_index
from mmfusion.retrieval.filters import FilterError
from mmfusion.retrieval.hits import Hits
from mmfusion.retrieval.index import ProductIndex
from mmfusion.retrieval.index_files import IndexDescription
from mmfusion.retrieval.milvus import MilvusError, MilvusIndex
from mmfusion.retrieval.ranking import Ranking, RankingError
from mmfusion.retrieval.search import (
    Hit,
    PhotoQueryEncoder,
    PhotoQueryError,
    QueryEncoder,
    Searcher,
    SearchIndex,
    StoredProduct,
)

__all__ = [
    "Calibration",
    "Choice",
    "FilterError",
    "Hit",
    "Hits",
    "IndexDescription",
    "MilvusError",
    "MilvusIndex",
    "PhotoQueryEncoder",
    "PhotoQueryError",
    "ProductIndex",
    "QueryEncoder",
    "Ranking",
    "RankingError",
    "SearchIndex",
    "Searcher",
    "StoredProduct",
    "calibrate",
    "choose_index",
]
