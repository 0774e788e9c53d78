"""A Hugging Face Space: the search page over an index, as files of a Docker image that fetches nothing at start."""

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from huggingface_hub.utils import validate_repo_id

from mmfusion.files import whole_folder
from mmfusion.hub.publish import (
    CARD,
    LICENSE,
    Published,
    license_text,
    make_public,
    private_places,
    push,
    sizes_of,
)
from mmfusion.model.errors import HubError, explained
from mmfusion.retrieval import ProductIndex, Searcher
from mmfusion.retrieval.query_tower import check_trained, load_query_tower
from mmfusion.retriever import Retriever
from mmfusion.serving.wheel import torch_range, wheel_of
from mmfusion.training.run import finished_record, read_record

COMMAND = ("mmfusion", "serve", "--host", "0.0.0.0", "--port", "7860", "--index", "index")
_EMBEDDED = ("--embed_in", '["https://huggingface.co"]')
_MARK = "# A Space of mmfusion."
_DOCKERFILE = """{mark} Written by `mmfusion publish --space`.
FROM python:3.11-slim
RUN useradd --create-home --uid 1000 user
WORKDIR /home/user/app
COPY {wheel} .
RUN pip install --no-cache-dir "{torch}" --index-url https://download.pytorch.org/whl/cpu \\
 && pip install --no-cache-dir "./{wheel}[serve]"
COPY --chown=user:user . .
USER user
# All that is served is here; nothing is fetched.
ENV HOME=/home/user HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1
EXPOSE 7860
CMD {command}
"""
_README = """---
title: "{title}"
emoji: 🔎
colorFrom: blue
colorTo: green
sdk: docker
app_port: 7860
license: other
license_name: see-readme
license_link: README.md
---

# {title}

Search among {products:,} products by words, with mmfusion: the page is at `/`, the API at `/search?query=red+dress`.

- `query/` is the query tower of the model.
- `index/` holds the vectors of the products{columns}.
- {photos}

Run it elsewhere with `docker build -t space .` and `docker run -p 7860:7860 space`.

mmfusion is under the Apache License 2.0 (`LICENSE`). Products and model are under the terms of those who own them.
"""
# What belongs to a Space, and goes where it is published anew without it.
_NAMES = re.compile(rf"{CARD}|{LICENSE}|Dockerfile|(query|index|catalogue)(/.*)?|mmfusion-[^/]*\.whl")


def publish_space(
    index: str,
    repo: str,
    output: Path,
    *,
    base: str | None = None,
    wheel: Path | None = None,
    photos: bool = False,
    dry_run: bool = False,
    **options: Any,
) -> Published:
    """Writes the files of a Space, and sends them in one commit.

    Args:
        index: Output folder of `mmfusion index`.
        repo: Hub id (`org/name`) of the Space, created if missing: a private one, unless `private` is False.
        output: Folder for the files; one that was written before is replaced.
        base: Folder or Hub id of the model; None: the one that the index was built with.
        wheel: Wheel of mmfusion; None: it is made of the package that runs.
        photos: Whether small photos of the products are published, too.
        dry_run: Writes the files, and sends nothing.
        options: Further arguments of [`push`]: `private`, `revision`, `create_pr`, `message`, `token`.

    Raises:
        MMFusionError: There is no such index, or it is in Milvus or of another model; nothing has trained the model;
            there is no wheel to be had; a text names a folder of this machine; or the Space cannot be written.
    """
    with explained(repo, options.get("revision")):
        validate_repo_id(repo)
        files = write_space(index, output, title=repo.split("/")[-1], base=base, wheel=wheel, photos=photos)
        if dry_run:
            return Published(repo, files, [])
        return push(output, files, repo, superseded=_NAMES, space_sdk="docker", **options)


def write_space(
    index: str, output: Path, *, title: str, base: str | None, wheel: Path | None, photos: bool
) -> dict[str, int]:
    """Writes the files of a Space to a folder: all of them or none; returns their sizes in bytes by name."""
    if wheel is not None:
        torch_range(wheel)
    record = finished_record(index, "index", "index")
    if record.get("milvus_uri") is not None:
        raise HubError(f"{index!r} is an index in Milvus, which a Space cannot hold; run mmfusion index without it.")
    base = base or str(record["base"])
    model, processor = load_query_tower(base)
    check_trained(model, base)
    opened = ProductIndex.load(Path(index) / "index", verify=True)
    Searcher(Retriever(model, processor), opened)  # raises an error for an index of another model
    places = private_places(Path(index), Path(base))
    _check_columns(opened, index, places)
    found = {path.name for path in output.iterdir()} if output.is_dir() else set()
    marked = not found or ("Dockerfile" in found and (output / "Dockerfile").read_text("utf-8").startswith(_MARK))
    if not marked:
        raise FileExistsError(f"{output} holds files that are no Space of mmfusion; give another --output.")
    allowed = frozenset(name for name in found if _NAMES.fullmatch(name))
    with whole_folder(output.absolute(), files=allowed, overwrite=True) as new:
        opened.save(new / "index" / "index")
        model.save_pretrained(new / "query")
        processor.save_pretrained(new / "query")
        served = {"recipe": "index", "arguments": {}, "complete": True, "base": "query", "products": len(opened)}
        if photos:
            _write_photos(index, record, opened.product_ids, new / "catalogue")
            served["catalogue"] = "catalogue"
        (new / "index" / "run.json").write_text(json.dumps(served, indent=2) + "\n", "utf-8")
        (new / LICENSE).write_text(license_text(new), "utf-8")
        packed = wheel_of(new) if wheel is None else Path(shutil.copy(wheel, new))
        command = json.dumps([*COMMAND, *_EMBEDDED])
        fields = {"mark": _MARK, "wheel": packed.name, "torch": torch_range(packed), "command": command}
        (new / "Dockerfile").write_text(_DOCKERFILE.format(**fields), "utf-8")
        facts: dict[str, Any] = {"title": title, "products": len(opened)}
        columns = ", ".join(f"`{name}`" for name in opened.metadata_types())
        facts["columns"] = f", and their columns {columns}" if columns else ""
        facts["photos"] = "`catalogue/` holds small photos of them." if photos else "There are no photos."
        (new / CARD).write_text(_README.format(**facts), "utf-8")
        make_public(new, Path(index), Path(base))
    return sizes_of(output)


def _check_columns(index: ProductIndex, name: str, places: Sequence[str]) -> None:
    """Looks through the texts of an index for folders of this machine."""
    for column, kind in index.metadata_types().items():
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            continue
        texts = index.metadata_column(column)
        for place in places:
            if pc.any(pc.match_substring(texts, place)).as_py():
                raise HubError(
                    f"the column {column!r} of {name!r} names the folder {place} of this machine; index a "
                    "catalogue without it."
                )


def _write_photos(index: str, record: dict[str, Any], product_ids: Sequence[str], folder: Path) -> None:
    """Writes a catalogue of small photos, as the page shows them, of the products of an index."""
    from mmfusion.serving.photos import Thumbnails

    embedded = read_record(record.get("arguments", {}).get("embeddings", "")) or {}
    source = record.get("catalogue") or embedded.get("catalogue")
    remedy = "give mmfusion index its --catalogue, or leave out --space_photos"
    if source is None:
        raise HubError(f"{index!r} does not say which catalogue its photos are in; {remedy}.")
    with tempfile.TemporaryDirectory(prefix="mmfusion-space-") as kept:
        thumbnails = Thumbnails(source, Path(kept))
        if not thumbnails.are_there:
            raise HubError(f"the catalogue {source} has no column 'image'; leave out --space_photos.")
        kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
        schema = pa.schema({"product_id": pa.string(), "title": pa.string(), "image": kind})
        folder.mkdir()
        with pq.ParquetWriter(folder / "products.parquet", schema) as writer:
            for start in range(0, len(product_ids), 1000):
                ids = product_ids[start : start + 1000]
                try:
                    small = [thumbnails(one) for one in ids]
                except KeyError as error:
                    raise HubError(f"product {error} of {index!r} is not in {source}; {remedy}.") from None
                images = [None if one is None else {"bytes": one.data, "path": None} for one in small]
                rows = {"product_id": ids, "title": [""] * len(ids), "image": images}
                writer.write_table(pa.table(rows, schema=schema))
