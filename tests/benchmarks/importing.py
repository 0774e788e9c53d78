"""What `mmfusion import` costs: rows per CPU second and memory on generated files, and seconds of the samples; by hand:

    python tests/benchmarks/importing.py --rows 1000000 --output outputs/importing

Each file is made from a seed, imported by a process of its own, and removed. CPU seconds are those of the whole command
and its children, from the start of Python to its end; memory is the largest resident set of one of its processes.
Writes importing.md; with --kinds it is about these alone. The samples are looked for in ../shared/samples.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CHECKOUT = Path(__file__).resolve().parents[2]
_TEXT = """
linen cotton wool silk denim suede leather canvas velvet jersey red blue green navy teal mustard sand ivory
black grey floral striped checked dotted plain quilted ribbed pleated dress shirt blouse jacket coat skirt
jeans hoodie cardigan scarf belt bag tote backpack sandal boot sneaker mug bowl lamp chair cushion rug vase
women men kids summer winter autumn spring slim wide short long midi soft light warm classic modern vintage
organic handmade
"""
_WORDS = _TEXT.split()
_CATEGORIES = [f"{one} > {two}" for one in ("Women", "Men", "Home", "Kids") for two in ("Clothing", "Shoes", "Living")]

Row = tuple[str, str, str, str, str, str]


def rows_of(count: int, seed: int, photos: int) -> Iterator[Row]:
    """Id of eight digits, title of 5 words, description of 20 without HTML, price, category, path of a photo."""
    chosen = random.Random(seed)
    for number in range(count):
        words = chosen.choices(_WORDS, k=25)
        image = f"photos/{number % photos:04}.jpg" if photos else ""
        price = f"{chosen.randrange(300, 40000) / 100:.2f}"
        category = _CATEGORIES[number % len(_CATEGORIES)]
        yield f"{number:08}", " ".join(words[:5]), " ".join(words[5:]), price, category, image


def write_photos(folder: Path, count: int) -> None:
    """Small photos that differ in colour."""
    (folder / "photos").mkdir(exist_ok=True)
    for number in range(count):
        Image.new("RGB", (32, 32), (number % 256, number // 256, 90)).save(folder / "photos" / f"{number:04}.jpg")


def _lines(path: Path, head: str, lines: Iterator[str], end: str = "") -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(head)
        file.writelines(lines)
        file.write(end)


def _csv(folder: Path, rows: Iterator[Row]) -> None:
    lines = (
        f'{one},{title},"{text}",{price},{category},{image}\n' for one, title, text, price, category, image in rows
    )
    _lines(folder / "products.csv", "id,title,description,price,category,image\n", lines)


def _tsv(folder: Path, rows: Iterator[Row]) -> None:
    _lines(
        folder / "products.tsv", "id\ttitle\tdescription\tprice\tcategory\timage\n", ("\t".join(r) + "\n" for r in rows)
    )


def _jsonl(folder: Path, rows: Iterator[Row]) -> None:
    names = ("id", "title", "description", "price", "category", "image")
    _lines(folder / "products.jsonl", "", (json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))


def _parquet(folder: Path, rows: Iterator[Row]) -> None:
    names = ("id", "title", "description", "price", "category", "image")
    pq.write_table(
        pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), folder / "products.parquet"
    )


def _excel(folder: Path, rows: Iterator[Row]) -> None:
    # A workbook of texts, as no library for writing one is among the dependencies.
    start, office = '<?xml version="1.0" encoding="UTF-8"?>', "http://schemas.openxmlformats.org"
    kind, sheet = "application/vnd.openxmlformats-officedocument.spreadsheetml", "xl/worksheets/sheet1.xml"
    relations = f'<Relationships xmlns="{office}/package/2006/relationships"><Relationship Id="r1" '
    main = f'xmlns="{office}/spreadsheetml/2006/main" xmlns:r="{office}/officeDocument/2006/relationships"'
    types = f"{office}/officeDocument/2006/relationships"
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{office}/package/2006/content-types"><Default Extension="rels" '
        'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/xl/workbook.xml" '
        f'ContentType="{kind}.sheet.main+xml"/><Override PartName="/{sheet}" '
        f'ContentType="{kind}.worksheet+xml"/></Types>',
        "_rels/.rels": f'{relations}Type="{types}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook {main}><sheets><sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'{relations}Type="{types}/worksheet" '
        'Target="worksheets/sheet1.xml"/></Relationships>',
    }
    head = ("id", "title", "description", "price", "category", "image")
    with zipfile.ZipFile(folder / "products.xlsx", "w", zipfile.ZIP_DEFLATED) as book:
        for name, text in parts.items():
            book.writestr(name, start + text)
        with book.open(sheet, "w", force_zip64=True) as file:
            file.write(f"{start}<worksheet {main}><sheetData>".encode())
            for row in itertools.chain([head], rows):
                cells = "".join(f'<c t="inlineStr"><is><t>{escape(cell)}</t></is></c>' for cell in row)
                file.write(f"<row>{cells}</row>".encode())
            file.write(b"</sheetData></worksheet>")


def _shopify(folder: Path, rows: Iterator[Row]) -> None:
    head = "Handle,Title,Body (HTML),Vendor,Type,Tags,Published,Option1 Name,Option1 Value,Variant SKU,Variant Price,"
    lines = (
        f'h{one},{title},"<p>{text}</p>",Oak,{category},"new, sale",true,Size,M,S-{one},{price},{image},1,active\n'
        for one, title, text, price, category, image in rows
    )
    _lines(folder / "products_export.csv", f"{head}Image Src,Image Position,Status\n", lines)


def _merchant_xml(folder: Path, rows: Iterator[Row]) -> None:
    head = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<rss version="2.0" xmlns:g="http://base.google.com/ns/1.0"><channel>\n'
    )
    lines = (
        f"<item><g:id>{one}</g:id><title>{title}</title><description>{text}</description><g:price>{price} EUR</g:price>"
        f"<g:image_link>{image}</g:image_link><g:availability>in_stock</g:availability>"
        f"<g:product_type>{escape(category)}</g:product_type></item>\n"
        for one, title, text, price, category, image in rows
    )
    _lines(folder / "feed.xml", head, lines, "</channel></rss>\n")


def _merchant_tsv(folder: Path, rows: Iterator[Row]) -> None:
    head = "id\ttitle\tdescription\tlink\timage_link\tavailability\tprice\tproduct_type\n"
    lines = (
        f"{one}\t{title}\t{text}\thttps://shop.example/{one}\t{image}\tin stock\t{price} EUR\t{category}\n"
        for one, title, text, price, category, image in rows
    )
    _lines(folder / "feed.tsv", head, lines)


def _woocommerce(folder: Path, rows: Iterator[Row]) -> None:
    head = "ID,Type,SKU,Name,Published,Is featured?,Visibility in catalog,Short description,Description,In stock?,"
    lines = (
        f'{int(one) + 1},simple,SKU-{one},{title},1,0,visible,,"<p>{text}</p>",1,{price},{category},{image},\n'
        for one, title, text, price, category, image in rows
    )
    _lines(folder / "wc-product-export.csv", f"{head}Regular price,Categories,Images,Parent\n", lines)


def _esci(folder: Path, rows: Iterator[Row]) -> None:
    products = [(f"B{one}", title, text, None, "Larkmoor", "red", "us") for one, title, text, *_ in rows]
    kind = ("id", "title", "description", "bullet_point", "brand", "color", "locale")
    table = {f"product_{name}": list(column) for name, column in zip(kind, zip(*products, strict=True), strict=True)}
    pq.write_table(pa.table(table), folder / "shopping_queries_dataset_products.parquet")
    queries = [number // 10 for number in range(len(products))]
    table = {
        "example_id": list(range(len(products))),
        "query": [f"query {products[10 * query][1]} {query}" for query in queries],
        "query_id": queries,
        "product_id": [product[0] for product in products],
        "product_locale": ["us"] * len(products),
        "esci_label": ["ESCI"[number % 4] for number in range(len(products))],
        "small_version": [1] * len(products),
        "large_version": [1] * len(products),
        "split": ["test" if query % 5 == 0 else "train" for query in queries],
    }
    pq.write_table(pa.table(table), folder / "shopping_queries_dataset_examples.parquet")


def _gs10m(folder: Path, rows: Iterator[Row]) -> None:
    head = "image,query,product_id,position,title,pair_id,score_linear,score_reciprocal,no_score,query_id\n"
    lines = (
        f"/data/{image},query {int(one) // 100},{one},{int(one) % 100 + 1},{title},{one}_q{int(one) // 100},"
        f"{100 - int(one) % 100},{1 / (int(one) % 100 + 1):.4f},1,q{int(one) // 100}\n"
        for one, title, _, _, _, image in rows
    )
    _lines(folder / "query_0_product_id_0.csv", head, lines)


def _beir(folder: Path, rows: Iterator[Row]) -> None:
    (folder / "qrels").mkdir()
    count = 0

    def lines() -> Iterator[str]:
        nonlocal count
        for one, title, text, price, *_ in rows:
            count += 1
            yield json.dumps({"_id": one, "title": title, "text": text, "metadata": {"price": price}}) + "\n"

    _lines(folder / "corpus.jsonl", "", lines())
    queries = range(max(count // 100, 1))
    _lines(
        folder / "queries.jsonl",
        "",
        (json.dumps({"_id": f"q{q}", "text": f"query number {q}"}) + "\n" for q in queries),
    )
    _lines(folder / "qrels" / "test.tsv", "query-id\tcorpus-id\tscore\n", (f"q{q}\t{q:08}\t1\n" for q in queries))


def _webdataset(folder: Path, rows: Iterator[Row]) -> None:
    with tarfile.open(folder / "shard-000000.tar", "w") as tar:
        for one, title, text, price, category, image in rows:
            fields = {"title": title, "description": text, "price": price, "category": category}
            parts = {"json": json.dumps(fields).encode()}
            if image:
                parts["jpg"] = (folder / image).read_bytes()
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{one}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


KINDS: dict[str, Callable[[Path, Iterator[Row]], None]] = {
    "csv": _csv,
    "tsv": _tsv,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "excel": _excel,
    "shopify": _shopify,
    "merchant_xml": _merchant_xml,
    "merchant_tsv": _merchant_tsv,
    "woocommerce": _woocommerce,
    "esci": _esci,
    "gs10m": _gs10m,
    "beir": _beir,
    "webdataset": _webdataset,
}
SAMPLES = {
    "Shopify": ["shopify/products_export_1.csv", "--photos", "shopify/photos"],
    "Google Merchant RSS": ["merchant/feed.xml", "--photos", "merchant/photos"],
    "Google Merchant TSV": ["merchant/feed.tsv", "--photos", "merchant/photos"],
    "WooCommerce": ["woocommerce", "--photos", "woocommerce/photos"],
    "products and search report": ["clicks/products.csv", "--clicks", "clicks/search_report.csv"],
    "ESCI": ["esci", "--locale", "us"],
    "Marqo-GS-10M": ["gs10m"],
    "styles.csv and photo folder": ["fashion/styles.csv", "--photos", "fashion/images"],
    "H&M articles.csv": ["fashion/hm/articles.csv"],
    "BEIR": ["beir"],
    "imagefolder": ["hf/imagefolder"],
    "webdataset": ["hf/shard-000000.tar"],
}


def _make(kind: str, folder: Path, rows: int, seed: int, photos: int) -> None:
    KINDS[kind](folder, rows_of(rows, seed, photos))


def run_import(arguments: list[str], folder: Path) -> tuple[float, float, float, str]:
    """Runs the command; seconds, CPU seconds with children, MiB of its largest process, and its last line."""
    command = [sys.executable, "-m", "mmfusion", "import", *arguments, "--output", str(folder / "catalogue")]
    shutil.rmtree(folder / "catalogue", ignore_errors=True)
    start = time.perf_counter()
    with (folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=log, stderr=subprocess.STDOUT)
        # What the process and the children that it waited for have used.
        _, status, used = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        log.seek(0)
        said = [line for line in log.read().splitlines() if line.strip()] or [""]
    if status:
        sys.exit(f"{' '.join(command)}\n" + "\n".join(said[-20:]))
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, said[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of each generated file")
    parser.add_argument(
        "--photos", type=int, default=1000, help="photos that the rows name in turns; 0: they name none"
    )
    parser.add_argument("--kinds", default=",".join(KINDS), help="kinds of generated files, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the generated rows")
    parser.add_argument("--output", type=Path, default=Path("outputs/importing"), help="folder of the page")
    parser.add_argument("--flags", default="", help="further flags of each import, separated by blanks")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    table = ["| file | rows | MB | seconds | CPU seconds | rows per CPU second | MiB |", "| --- |" + " ---: |" * 6]
    for kind in filter(None, options.kinds.split(",")):
        folder = options.output.absolute() / kind
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        write_photos(folder, options.photos)
        source = folder / "source"
        source.mkdir()
        if options.photos:
            (source / "photos").symlink_to(folder / "photos")
        # A process of its own: the memory of this one would count as that of its children, from their first moment.
        made = multiprocessing.Process(target=_make, args=(kind, source, options.rows, options.seed, options.photos))
        made.start()
        made.join()
        megabytes = sum(path.stat().st_size for path in source.rglob("*") if path.is_file()) / 1e6
        seconds, cpu, mib, said = run_import([str(source), *options.flags.split()], folder)
        table.append(
            f"| {kind} | {options.rows:,} | {megabytes:,.0f} | {seconds:.1f} | {cpu:.1f} | {options.rows / cpu:,.0f} | "
            f"{mib:,.0f} |"
        )
        print(table[-1], said, flush=True)
        shutil.rmtree(folder)
    places = [one / "shared" / "samples" for one in CHECKOUT.parents]
    samples = next((one for one in places if one.is_dir()), None)
    lines = ["| sample | seconds | CPU seconds |", "| --- | ---: | ---: |"]
    for name, words in SAMPLES.items() if samples is not None else ():
        arguments = [str(samples / word) if (samples / word).exists() else word for word in words]
        seconds, cpu, _, said = run_import([*arguments, "--allow_missing_photos", "true"], options.output.absolute())
        lines.append(f"| {name} | {seconds:.1f} | {cpu:.1f} |")
        print(lines[-1], said, flush=True)
    page = ["# What importing costs", __doc__.split("\n\n")[2], "\n".join(table), "\n".join(lines)]
    (options.output / "importing.md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
