"""Stage 1: fine-tune the encoders on the catalogue and align queries with titles and photos."""

from mmfusion.commands import run_command
from mmfusion.commands.stage1 import main

if __name__ == "__main__":
    run_command(main)
