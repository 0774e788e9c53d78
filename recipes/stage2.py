"""Stage 2: train a fusion network on top of aligned encoders."""

from mmfusion.commands import run_command
from mmfusion.commands.stage2 import main

if __name__ == "__main__":
    run_command(main)
