"""Serve an index over HTTP: search by text, look up products, watch health and metrics."""

from mmfusion.commands import run_command
from mmfusion.commands.serve import main

if __name__ == "__main__":
    run_command(main)
