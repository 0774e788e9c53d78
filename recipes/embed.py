"""Embed the products of a catalogue into shards that an index, or any other engine, is built from."""

from mmfusion.commands import run_command
from mmfusion.commands.embed import main

if __name__ == "__main__":
    run_command(main)
