"""Lightning's checkpoints, free of the folders of the machine that wrote them."""

from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

_PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")


class MovableCheckpoint(ModelCheckpoint):
    """A `ModelCheckpoint` that knows its files by name.

    Lightning writes absolute paths into a checkpoint, and forgets which files are its own once it is resumed in another
    folder. A checkpoint that goes to the Hub should tell nobody where it was written, and go on where it is put.
    """

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        names = {name: Path(state[name]).name for name in _PATHS}
        kept = {Path(path).name: score for path, score in state["best_k_models"].items()}
        return {**state, **names, "best_k_models": kept, "dirpath": ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        paths = {name: self._here(state_dict[name]) for name in _PATHS}
        kept = {self._here(name): score for name, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": self.dirpath})

    def _here(self, name: str) -> str:
        # Of a name that was given a folder, by whoever wrote the file, only the last part is used.
        return str(Path(self.dirpath or "") / Path(name).name) if name else ""
