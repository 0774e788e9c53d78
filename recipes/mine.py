"""Mine hard negatives: train products that a model ranks high for a train query although they are not what it asks."""

from mmfusion.commands import run_command
from mmfusion.commands.mine import main

if __name__ == "__main__":
    run_command(main)
