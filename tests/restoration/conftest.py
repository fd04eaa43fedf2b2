import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def _quick_collections() -> None:
    """Each stage is let go with a collection of garbage, which looks at all that other tests have left in the process."""
    gc.freeze()
