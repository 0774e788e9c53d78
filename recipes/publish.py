"""Publish a model on the Hub."""

from mmfusion.commands import run_command
from mmfusion.commands.publish import main

if __name__ == "__main__":
    run_command(main)
