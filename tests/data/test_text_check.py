"""What is said of the texts of products before a training, and the product text that a catalogue recommends."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_encoders
from commands import command

from mmfusion.data.catalogue import Catalogue
from mmfusion.data.catalogue_schema import TEMPLATE_KEY
from mmfusion.data.text_check import recommended_template, warn_of_texts
from mmfusion.data.toy_catalogue import write_toy_catalogue
from mmfusion.data.toy_encoders import write_toy_encoders
from mmfusion.model import MMFusionProcessor


def shop(folder: Path, template: str | None = None, **columns: Any) -> Path:
    folder.mkdir()
    table = pa.table({"product_id": ["1", "2", "3"], "title": ["Mug", "R&D lamp, 5 < 6", "Cup"], **columns})
    if template is not None:
        table = table.replace_schema_metadata({TEMPLATE_KEY: template.encode()})
    pq.write_table(table, folder / "products.parquet")
    return folder


def said(folder: Path, template: str, caplog: pytest.LogCaptureFixture) -> str:
    processor = tiny_encoders.tiny_processor(product_template=template)
    catalogue = Catalogue.load_products(folder, cache_dir=folder.parent / "cache")
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="mmfusion"):
        warn_of_texts(catalogue, processor)
    return caplog.text


LONG = ["blue", None, " "]


@pytest.mark.parametrize(
    ("recommended", "columns", "template", "warning"),
    [
        (None, {}, "{title}", None),
        (None, {"description": LONG}, "{title}", "--product_template '{title} {description}' to read them"),
        (None, {"description": [None, " ", ""]}, "{title}", None),
        (None, {"description": LONG}, "{description} {title}", None),
        ("{title} {description}", {"description": LONG}, "{title}", "recommends the product text"),
        ("{title} {description}", {"description": LONG}, "{title}, {description}", None),
        ("{title}", {"description": LONG}, "{title}", None),
        (None, {"description": ["<p class='a'>x</p>", "a<br/>b", "c"]}, "{title} {description}", "2 of 3 texts in the"),
        (None, {"description": ["a&nbsp;b", "c", "d"]}, "{title} {description}", "1 of 3 texts in the column 'descr"),
        (None, {"note": ["<p>x</p>"] * 3}, "{title}", None),
    ],
)
def test_what_a_model_would_leave_out_or_misread_is_said(
    recommended: str | None,
    columns: dict[str, Any],
    template: str,
    warning: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = said(shop(tmp_path / "shop", recommended, **columns), template, caplog)
    assert text == "" if warning is None else warning in text


def test_a_base_for_a_catalogue_reads_what_that_recommends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = write_toy_catalogue(tmp_path / "toy", num_products=40)
    assert recommended_template(str(toy)) is None and recommended_template("no/catalogue") is None
    table = pq.read_table(toy / "products.parquet")
    noted = {**(table.schema.metadata or {}), TEMPLATE_KEY: b"{title}. {description}"}
    pq.write_table(table.replace_schema_metadata(noted), toy / "products.parquet")
    encoders = write_toy_encoders(tmp_path / "encoders")
    both = {"text": str(encoders.text), "vision": str(encoders.vision)}
    command("base")(**both, output=str(tmp_path / "base"), catalogue=str(toy))
    assert "product text: {title}. {description}" in capsys.readouterr().out
    assert MMFusionProcessor.from_pretrained(tmp_path / "base").product_template == "{title}. {description}"
    # Stage 1 learns from it without being told again.
    command("stage1")(base=str(tmp_path / "base"), output=str(tmp_path / "stage1"), steps=1, batch_size=8)
    assert json.loads((tmp_path / "stage1" / "run.json").read_text())["catalogue"] == str(toy)
    command("base")(**both, output=str(tmp_path / "own"), catalogue=str(toy), product_template="{title}")
    assert MMFusionProcessor.from_pretrained(tmp_path / "own").product_template == "{title}"
    command("base")(**both, output=str(tmp_path / "plain"))
    assert MMFusionProcessor.from_pretrained(tmp_path / "plain").product_template == "{title}"
