"""Makes the toy catalogue of audit.png, with a wrong colour in a tenth of its titles; by hand:

    mmfusion quickstart --output outputs/quickstart
    python docs/images/audit.py outputs/quickstart/stage1/toy_catalogue outputs/misled
    mmfusion audit --base outputs/quickstart/stage1 --catalogue outputs/misled --output outputs/misled_audit --shown 12

and then audit.html in a browser, 1,280 pixels wide.
"""

import shutil
import sys
from pathlib import Path
from random import Random

import pyarrow as pa
import pyarrow.parquet as pq

from mmfusion.evaluation.perturb import mislead

source, target = map(Path, sys.argv[1:])
shutil.copytree(source, target)
products, rng = pq.read_table(source / "products.parquet"), Random(0)
titles = [mislead(title or "", rng) if rng.random() < 0.1 else title for title in products["title"].to_pylist()]
at = products.column_names.index("title")
pq.write_table(products.set_column(at, "title", pa.array(titles, pa.string())), target / "products.parquet")
