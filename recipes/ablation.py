"""Train and evaluate every variant of the ablation, from BM25 to the fusion kinds, and compare them in one table."""

from mmfusion.commands import run_command
from mmfusion.commands.ablation import main

if __name__ == "__main__":
    run_command(main)
