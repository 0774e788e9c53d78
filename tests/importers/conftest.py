"""What tests of importers share: the samples beside the checkout, where they are there."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of sample inputs with hand-worked results, which is not part of the repository."""
    for parent in Path(__file__).resolve().parents:
        if (parent / "shared" / "samples").is_dir():
            return parent / "shared" / "samples"
    pytest.skip("shared/samples is not here")
