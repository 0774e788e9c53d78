"""Search an index by words, by a photo, or by both."""

from mmfusion.commands import run_command
from mmfusion.commands.search import main

if __name__ == "__main__":
    run_command(main)
