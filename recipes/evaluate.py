"""Evaluate a model (or BM25) on a split: Recall@10, Recall@100 and nDCG@10 over every product of the pool."""

from mmfusion.commands import run_command
from mmfusion.commands.evaluate import main

if __name__ == "__main__":
    run_command(main)
