"""Build an index of an embedded catalogue: with FAISS, or in Milvus."""

from mmfusion.commands import run_command
from mmfusion.commands.index import main

if __name__ == "__main__":
    run_command(main)
