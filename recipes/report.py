"""Write one HTML page to look at: the ablation, its slices, and what two models find for chosen queries."""

from mmfusion.commands import run_command
from mmfusion.commands.report import main

if __name__ == "__main__":
    run_command(main)
