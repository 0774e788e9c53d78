"""Make a catalogue of a shop's own files."""

from mmfusion.commands import run_command
from mmfusion.commands.import_files import main

if __name__ == "__main__":
    run_command(main)
