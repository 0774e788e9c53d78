"""Export the query tower of a model to ONNX."""

from mmfusion.commands import run_command
from mmfusion.commands.export import main

if __name__ == "__main__":
    run_command(main)
