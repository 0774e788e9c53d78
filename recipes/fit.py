"""From a shop's own files to a trained, searchable catalogue, in one command that goes on where it was stopped."""

from mmfusion.commands import run_command
from mmfusion.commands.fit import main

if __name__ == "__main__":
    run_command(main)
