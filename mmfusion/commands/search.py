"""Search an index by words, by a photo, or by both."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmfusion.data.hub_ids import check_readable
from mmfusion.data.photos import is_url
from mmfusion.files import replace_text
from mmfusion.retrieval import Hits, MilvusIndex, ProductIndex, Searcher
from mmfusion.retrieval.hits import GENERATOR, PhotoSource
from mmfusion.retrieval.query_tower import check_trained, load_query_tower
from mmfusion.retriever import Retriever
from mmfusion.training.run import RunError, finished_record, read_record

logger = logging.getLogger(__name__)


@dataclass
class Config:
    """Settings of `mmfusion search`.

    Attributes:
        query: Words to search for.
        image: File of a photo to search for, alone or with words; loads the whole model, not the query tower alone.
        index: Folder that `mmfusion index` wrote; where it built into Milvus, the collection is searched (with the
            token in the environment variable MILVUS_TOKEN).
        base: Folder or Hub id of the model; default: the one that the index was built with.
        k: Number of products, at least 1.
        filter: Conditions on columns of the catalogue, e.g. [["price", "<", 50], ["category", "in", ["dress"]]]; a
            list of such lists finds what fulfils one of them.
        mode: vectors; words (BM25 over the words of an index that was built with --lexical true); or hybrid, both.
        weight: Of vectors in hybrid, from 0 to 1; default: the two lists are fused by reciprocal rank.
        group_by: Column whose values are shown once each, with their best product, such as item_group_id.
        boosts: Columns of numbers with weights from 0 to 1, e.g. '{"sales": 0.1}': what is high there comes earlier.
        min_score: Lowest score of a product, a number or "calibrated" (by mmfusion index --calibrate); a query that
            asks for what is not there finds nothing.
        verify: Whether all bytes of a FAISS index are compared with their checksums first, which reads it once. Of
            files above 64 MiB, only the size and both ends are compared otherwise.
        html: File for a page of the hits with photos.
        catalogue: Folder, fsspec URL or Hub id that photos of the page are taken from; default: the one that was
            indexed.
    """

    optional: ClassVar[str] = "query"

    query: str | None = None
    image: str | None = None
    index: str = "outputs/index"
    base: str | None = None
    k: int = 10
    filter: list[Any] | None = None
    mode: Literal["vectors", "words", "hybrid"] = "vectors"
    weight: float | None = None
    group_by: str | None = None
    boosts: dict[str, float] = field(default_factory=dict)
    min_score: float | Literal["calibrated"] | None = None
    verify: bool = False
    html: str | None = None
    catalogue: str | None = None


def main(config: Config) -> None:
    """Prints the k best products with score, modality weights and title, and perhaps writes a page with photos."""
    if config.query is None and config.image is None:
        raise RunError('there is nothing to search for; give words, e.g. mmfusion search "red dress", or --image FILE.')
    if config.image is not None and is_url(config.image):
        raise RunError(f"image {config.image!r} is a URL, which is not fetched; save the photo and give its file.")
    if config.html is not None:
        _check_page(Path(config.html))
    record = finished_record(config.index, "index", "index")
    base = config.base or record["base"]
    retriever = load_retriever(base, whole=config.image is not None)
    index = open_index(config.index, record, verify=config.verify)
    photos = None if config.html is None else photos_of(config.index, record, config.catalogue)
    searcher = Searcher(retriever, index, photos)
    ranking = {name: getattr(config, name) for name in ("mode", "weight", "group_by", "boosts", "min_score")}
    hits = searcher.search(config.query, config.k, image=config.image, filter=config.filter, **ranking)
    print(f"{'rank':>4}  {'score':>6}  {'text':>5} {'photo':>5}  product")
    for hit in hits:
        weights = hit.modality_weights or {}
        shares = " ".join(f"{weights.get(name, float('nan')):5.2f}" for name in ("text", "image"))
        title = hit.metadata.get("title") or "(no title)"
        print(f"{hit.rank:>4}  {hit.score:6.3f}  {shares}  {hit.product_id}  {title}")
    if config.html is not None:
        _write_page(Path(config.html), hits, config, base, len(index))
    print(f"next: mmfusion serve --index {config.index}, then open http://127.0.0.1:8000/")


def load_retriever(base: str, *, whole: bool) -> Retriever:
    """The query tower of a model, or the whole model to search by photo; on the CPU.

    Raises:
        HubError, UntrainedError: There is no such model, or nothing has trained it.
    """
    if whole:
        check_readable(base, "model")
        retriever = Retriever.from_pretrained(base, device="cpu")
    else:
        retriever = Retriever(*load_query_tower(base))
    check_trained(retriever.model, base)
    return retriever


def photos_of(index: str, record: Mapping[str, Any], catalogue: str | None = None) -> PhotoSource | None:
    """Photos of the catalogue that was indexed; None where it is not there any more.

    Args:
        index: Output folder of `mmfusion index`.
        record: Its record.
        catalogue: Folder, URL or Hub id of another catalogue; if it cannot be read, that is an error.
    """
    # Not at the top, as a search without a page need not wait for them.
    from mmfusion.data.catalogue import Catalogue
    from mmfusion.retrieval.hits import catalogue_photos
    from mmfusion.training.catalogue_cache import load_shared

    embedded = read_record(record["arguments"].get("embeddings", "")) or {}
    source = catalogue or record.get("catalogue") or embedded.get("catalogue")
    reason = "the index does not say which catalogue it is of"
    if source is not None:
        try:
            return catalogue_photos(load_shared(Catalogue.load_products, source, Path(index)))
        except (OSError, ValueError) as error:
            if catalogue is not None:
                raise
            reason = f"the catalogue cannot be read ({error})"
    logger.warning("hits are shown without photos: %s; name the catalogue", reason)
    return None


def _check_page(path: Path) -> None:
    if path.is_dir():
        raise RunError(f"html {str(path)!r} is a folder; give the name of a file, e.g. {path / 'hits.html'}.")
    if path.exists() and GENERATOR not in path.read_text("utf-8", errors="replace")[:4000]:
        raise FileExistsError(f"{path} was not written by mmfusion search; move it away, or give another --html.")


def _write_page(path: Path, hits: Hits, config: Config, base: str, products: int) -> None:
    facts = {"of": f"{products:,} products", "model": Path(base).name}
    if config.filter:
        facts["filter"] = str(config.filter)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, hits.to_html(facts))
    print(f"page: {path.absolute()} ({path.stat().st_size / 1e3:,.0f} kB)")


def open_index(folder: str, record: Mapping[str, Any], *, verify: bool) -> ProductIndex | MilvusIndex:
    """Opens the index in a folder, or the collection that was built instead of one.

    Args:
        folder: Output folder of `mmfusion index`.
        record: Its record. The token of a Milvus server is in the environment variable `MILVUS_TOKEN`.
        verify: Compares all bytes of the files with their checksums, see [`ProductIndex.load`].

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: The index is damaged, or Milvus cannot be reached, or is to be verified.
    """
    uri = record.get("milvus_uri")
    if uri is None:
        return ProductIndex.load(Path(folder) / "index", verify=verify)
    if verify:
        raise RunError(f"verify is true, but {folder!r} is an index in Milvus, with files of its own; leave it out.")
    return MilvusIndex.connect(uri, record["collection"], token=os.environ.get("MILVUS_TOKEN"))
