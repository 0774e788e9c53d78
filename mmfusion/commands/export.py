"""Export the query tower of a model to ONNX."""

from dataclasses import dataclass
from pathlib import Path

from mmfusion.onnx import export_query_tower
from mmfusion.retrieval.query_tower import check_trained, load_query_tower
from mmfusion.training.output_lock import take_lock


@dataclass
class Config:
    """Settings of `mmfusion export`.

    Attributes:
        base: Folder or Hub id of the model, of which only the query tower is loaded.
        output: Folder for the export; one that is there is replaced as a whole.
        opset: Version of the ONNX operators, from 18; default: what PyTorch writes best.
    """

    base: str = "outputs/stage2"
    output: str = "outputs/onnx"
    opset: int | None = None


def main(config: Config) -> None:
    """Writes model.onnx (token ids to vectors), tokenizer.json and query_tower.json, and compares vectors with PyTorch.

    An export whose vectors differ from PyTorch's by more than 1e-4 in a component is an error and leaves nothing.
    """
    with take_lock(config.output, beside=True):
        model, processor = load_query_tower(config.base)
        check_trained(model, config.base)
        description = export_query_tower(model, processor, config.output, opset=config.opset)
    size = sum(path.stat().st_size for path in Path(config.output).iterdir())
    print(
        f"{config.output}: {size / 1e6:,.1f} MB, opset {description.opset}, {description.dimension} dimensions, "
        f"queries of up to {description.max_length} tokens; largest difference from PyTorch {description.parity:.1e}; "
        f"next: mmfusion serve --onnx {config.output}"
    )
