"""Export the query tower of a model to ONNX."""

from pathlib import Path

from mmfusion.onnx import export_query_tower
from mmfusion.retrieval.query_tower import load_query_tower
from mmfusion.training import run_command, take_lock


def main(base: str, output: str = "outputs/onnx", opset: int | None = None) -> None:
    """Writes model.onnx (token ids to vectors), tokenizer.json and query_tower.json, and compares vectors with PyTorch.

    An export whose vectors differ from PyTorch's by more than 1e-4 in a component is refused and leaves nothing.

    Args:
        base: Folder or Hub id of the model, of which only the query tower is loaded.
        output: Folder for the export; one that is there is replaced as a whole.
        opset: Version of the ONNX operators, from 18; default: what PyTorch writes best.
    """
    with take_lock(output, beside=True):
        model, processor = load_query_tower(base)
        description = export_query_tower(model, processor, output, opset=opset)
    size = sum(path.stat().st_size for path in Path(output).iterdir())
    print(
        f"{output}: {size / 1e6:,.1f} MB, opset {description.opset}, {description.dimension} dimensions, queries of up "
        f"to {description.max_length} tokens; largest difference from PyTorch {description.parity:.1e}"
    )


if __name__ == "__main__":
    run_command(main)
