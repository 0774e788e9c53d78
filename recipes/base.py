"""Assemble a base model from a pretrained text encoder and a pretrained vision encoder."""

from mmfusion.commands import run_command
from mmfusion.commands.base import main

if __name__ == "__main__":
    run_command(main)
