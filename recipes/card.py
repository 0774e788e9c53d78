"""Write the card of a model from result files, or show the metrics of one."""

from mmfusion.commands import run_command
from mmfusion.commands.card import main

if __name__ == "__main__":
    run_command(main)
