"""List products whose title and photo disagree, what titles leave out, and photos under several titles."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mmfusion.audit.audit import AuditError, Settings, Texts, audit, counts
from mmfusion.audit.page import attribute_rows, audit_page, findings_csv
from mmfusion.audit.views import product_views, query_views
from mmfusion.audit.vocabulary import ENGLISH, read_vocabulary, used_in
from mmfusion.data.catalogue import Catalogue
from mmfusion.data.photo_check import check_photos
from mmfusion.data.qrels import Qrels
from mmfusion.files import replace_text
from mmfusion.pages import text_table
from mmfusion.report import write_page
from mmfusion.retrieval.fingerprint import model_fingerprint
from mmfusion.retrieval.query_tower import check_trained
from mmfusion.training.output_lock import take_lock
from mmfusion.training.sources import load_base, load_catalogue


@dataclass
class Config:
    """Settings of `mmfusion audit`.

    Attributes:
        base: Folder or Hub id of a trained model that looks at photos, of stage 1 or stage 2.
        catalogue: Folder, fsspec URL or Hub id of a catalogue; default: the one that the model was trained on. It is
            never changed.
        cache_dir: Folder in which all commands share the catalogue as they map it into memory; default: the environment
            variable MMFUSION_CACHE, or else the output folder, with hard links to what folders beside it have.
        output: Folder for audit.csv, audit.html and the vectors, which a second run does not compute again.
        split: Products to audit; default: all. What photos show is always learned from train and val.
        queries: Whether to learn from train queries and judgements as well; false reads products alone.
        vocabulary: CSV file of attributes, a value in each line: attribute, value, further words for it; default:
            colours, patterns, audiences and materials in English.
        min_texts: Titles and train queries that name a value, at least; rarer values are left out.
        precision: Share of the findings that shall be right, in (0, 1). It is measured with titles that are made wrong
            on purpose; an attribute that does not reach it gets no findings.
        photo_distance: Difference between small copies of two photos, in proportion to their contrast, in (0, 1), up to
            which they show the same.
        shown: Findings of each kind that the page shows with their photo; the table has all.
        allow_missing_photos: Whether to continue where fewer than half of the photos that products name can be read.
        batch_size: Products per forward pass.
        num_workers: Processes that decode photos.
        seed: Of what is drawn to measure precision.
    """

    base: str = "outputs/stage2"
    catalogue: str | None = None
    cache_dir: str | None = None
    output: str = "outputs/audit"
    split: Literal["train", "val", "test"] | None = None
    queries: bool = True
    vocabulary: str | None = None
    min_texts: int = 5
    precision: float = 0.8
    photo_distance: float = 0.06
    shown: int = 48
    allow_missing_photos: bool = False
    batch_size: int = 64
    num_workers: int = 0
    seed: int = 0


def main(config: Config) -> None:
    """Writes audit.csv, with all findings, and audit.html, a sheet with photos that needs no network."""
    settings = Settings(config.precision, config.photo_distance, config.seed)
    for name, least in (("min_texts", 1), ("shown", 0)):
        if getattr(config, name) < least:
            raise AuditError(f"--{name} is {getattr(config, name)}; give {least} or more")
    vocabulary = ENGLISH if config.vocabulary is None else read_vocabulary(config.vocabulary)
    lock = take_lock(config.output)
    folder = Path(config.output)
    model, processor = load_base(config.base)
    check_trained(model, config.base)
    if model.config.fusion == "text_only":
        raise AuditError(
            f"--base {config.base!r} is a tower of texts, which never looks at a photo; give another model"
        )
    catalogue = load_catalogue(
        config.catalogue, config.base, folder, products_only=not config.queries, cache_dir=config.cache_dir
    )
    if "image" not in catalogue.product_schema.names:
        raise AuditError(f"catalogue {catalogue.source!r} has no column 'image': an audit compares titles with photos")
    learned = np.union1d(catalogue.product_rows("train"), catalogue.product_rows("val"))
    rows = np.union1d(learned, catalogue.product_rows(config.split))
    check_photos(catalogue, rows, allow_missing=config.allow_missing_photos)
    titles = catalogue.titles(rows)
    if not any(titles):
        raise AuditError(
            f"no product of catalogue {catalogue.source!r} has a title: an audit compares titles with photos"
        )
    query_rows, qrels = _train_queries(catalogue, rows)
    queries = catalogue.query_texts(query_rows)
    attributes = used_in(vocabulary, titles, queries, config.min_texts)
    sizes = {"batch_size": config.batch_size, "num_workers": config.num_workers}
    views = product_views(model.eval(), processor, catalogue, rows, folder / "cache" / "views", **sizes)
    found = audit(
        attributes,
        titles,
        views,
        learned=np.isin(rows, learned),
        audited=np.isin(rows, catalogue.product_rows(config.split)),
        texts=Texts(queries, query_views(model, processor, queries), qrels),
        settings=settings,
    )
    page = audit_page(
        found,
        catalogue,
        rows,
        titles,
        shown=config.shown,
        settings=settings,
        fingerprint=model_fingerprint(model, processor),
    )
    # With the mark that tells spreadsheets that it is UTF-8.
    replace_text(folder / "audit.csv", "\ufeff" + findings_csv(found, titles, catalogue.product_ids[rows].tolist()))
    path = write_page(folder, page, "audit.html")
    lock.release()
    print(text_table(attribute_rows(found), aligned=True))
    print(", ".join(f"{kind}: {number:,}" for kind, number in counts(found).items()))
    print(
        f"page: {path.absolute()} ({path.stat().st_size / 1e6:.1f} MB); all findings: {folder.absolute() / 'audit.csv'}"
    )
    print("next: open it in a browser, and correct what is wrong in your own files; the catalogue stays as it is")


def _train_queries(catalogue: Catalogue, rows: np.ndarray) -> tuple[np.ndarray, Qrels]:
    """Rows of the train queries, and their judgements by position among these and among product rows."""
    query_rows = catalogue.query_rows("train")
    judged = catalogue.split_qrels("train").restrict(query_rows, rows)
    return query_rows, Qrels(
        np.searchsorted(query_rows, judged.query), np.searchsorted(rows, judged.product), judged.grade
    )
