"""Where a command gets its base and its catalogue from."""

import sys
from contextlib import ExitStack
from pathlib import Path

from processes import started

from mmfusion import Catalogue, MMFusionModel

RANK = """
import sys
from pathlib import Path
from mmfusion.training.sources import load_catalogue, starting_base
folder = Path(sys.argv[1])
load_catalogue(None, None, folder, num_products=40)
starting_base(None, folder)
"""


def test_ranks_that_start_together_share_toy_catalogue_and_base(tmp_path: Path) -> None:
    with ExitStack() as stack:
        ranks = [stack.enter_context(started([sys.executable, "-c", RANK, str(tmp_path)])) for _ in range(2)]
        assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    assert len(Catalogue.load(tmp_path / "toy_catalogue").products) == 40
    MMFusionModel.from_pretrained(tmp_path / "toy_base")
