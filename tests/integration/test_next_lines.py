"""What commands print: no bars and notices of libraries, and in the last line what comes next."""

import re
from pathlib import Path

import datasets
import pytest
from transformers.utils import logging as transformers_logging

from mmfusion import cli
from mmfusion.commands import COMMANDS

OF_LIBRARIES = (
    r"Loading weights|Writing model shards|Generating \w+ split|Map:|Saving the dataset|"
    r"GPU available|TPU available|LOCAL_RANK|Tip:|`Trainer\.fit` stopped|UserWarning|FutureWarning"
)


@pytest.fixture(autouse=True)
def bars_are_on() -> None:
    """As at the start of a process."""
    transformers_logging.enable_progress_bar()
    datasets.enable_progress_bars()


def test_commands_end_with_what_comes_next_and_keep_libraries_quiet(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = "--steps 1 --batch_size 8"
    encoders = "s1/toy_encoders"
    chain = {
        f"stage1 --output s1 --num_products 80 {short}": "mmfusion stage2 --base s1",
        f"stage1 --output s1 --num_products 80 {short} ": "mmfusion stage2 --base s1",
        f"base --text {encoders}/text --vision {encoders}/vision --output b": "mmfusion stage1 --base b",
        "mine --base s1 --output hn": "mmfusion stage2 --hard_negatives hn",
        f"stage2 --base s1 --output s2 {short}": "mmfusion evaluate --base s2",
        "evaluate --base s2 --output ev": "mmfusion embed --base s2",
        "evaluate --base s2 --output ev --ranker bm25": "mmfusion report --results ev",
        "report --base s2 --baseline s1 --results ev --output rep": "open it in a browser, then mmfusion card",
        "embed --base s2 --output em": "mmfusion index --embeddings em",
        "index --embeddings em --output ix": 'mmfusion search "red floral summer dress" --index ix',
        "search dress --index ix": "mmfusion serve --index ix",
        "export --base s2 --output onnx": "mmfusion serve --onnx onnx",
        "audit --base s2 --output au": "open it in a browser",
        "card --base s2 --results [ev] --repo org/mm": "mmfusion publish --base s2 --repo org/mm",
        "publish --base s2 --repo org/mm --dry_run true": "the same command without --dry_run",
        "ablation --output ab --dry_run true": "the same command without --dry_run",
    }
    # The service runs until it is stopped, and the last command of the quickstart is a search.
    assert {words.split()[0] for words in chain} >= {*COMMANDS} - {"serve", "quickstart", "import", "fit"} - LATER
    capfd.readouterr()
    for words, follows in chain.items():
        cli.main(words.split())
        seen = capfd.readouterr()
        last = seen.out.rstrip().splitlines()[-1]
        assert f"next: {follows}" in last, f"{words}: {last}"
        leaked = re.search(OF_LIBRARIES, seen.out + seen.err)
        assert leaked is None, f"{words}: {leaked}\n{seen.err[-2000:]}"


# Commands with a test of their own for it.
LATER = {"export-vectors"}
