"""Push a folder, pull it again and compare checksums: run as a program against the Hub of the environment.

`python -m hub.round_trip NAME WORK_FOLDER` makes the private repository NAME of the token's user and removes it at
the end. It prints one line of JSON: files and bytes compared, and whether the Xet storage was there to be used.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import sys
from pathlib import Path

from huggingface_hub import HfApi, ModelCard, constants, snapshot_download

CARD = "---\nlicense: apache-2.0\nlibrary_name: mmfusion\ntags: [test]\n---\n# A round trip of mmfusion's tests\n"
CONTENT = {"config.json": 200, "model.safetensors": 300_000, "query/model.safetensors": 70_000, "empty.txt": 0}


def write_folder(folder: Path, *, seed: int) -> None:
    """Files of known sizes, in bytes, and random content; and a card."""
    generator = random.Random(seed)
    for name, size in CONTENT.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(generator.randbytes(size))
    (folder / "README.md").write_text(CARD)


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by its path in it; without what a Hub adds to a repository."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".gitattributes"]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def round_trip(name: str, work: Path) -> dict[str, object]:
    """Push twice (the second time with changes), pull both revisions and compare them with what was pushed."""
    api = HfApi()
    repository = api.create_repo(f"{api.whoami()['name']}/{name}", private=True).repo_id
    try:
        pushed = []
        for seed in (1, 2):
            folder = work / f"pushed-{seed}"
            write_folder(folder, seed=seed)
            pushed.append((folder, api.upload_folder(repo_id=repository, folder_path=folder).oid))
        if ModelCard.load(repository).data.to_dict()["library_name"] != "mmfusion":
            raise ValueError(f"the card of {repository} came back with other metadata")
        compared = 0
        for folder, revision in pushed:
            pulled = snapshot_download(repository, revision=revision, cache_dir=work / "cache")
            there, here = checksums(Path(pulled)), checksums(folder)
            if there != here:
                raise ValueError(f"{repository} at {revision} came back as {there}, not as {here}")
            compared += len(here)
        xet = importlib.util.find_spec("hf_xet") is not None and not constants.HF_HUB_DISABLE_XET
        return {"compared": compared, "bytes": 2 * sum(CONTENT.values()), "xet": xet}
    finally:
        api.delete_repo(repository)


if __name__ == "__main__":
    print(json.dumps(round_trip(sys.argv[1], Path(sys.argv[2]))))
