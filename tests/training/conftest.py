"""Fixtures of the training tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Run torch on one thread."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def code_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Modules of the standard library with the column `style`; its token store is built on first use."""
    from tests.training.jobs import make_code_dataset

    return make_code_dataset(tmp_path_factory.mktemp("code") / "labelled")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, code_dataset: Path) -> Path:
    """The folder of an uninterrupted run on two ranks, for comparison."""
    from tests.training.jobs import undisturbed_run

    return undisturbed_run(tmp_path_factory.getbasetemp(), code_dataset)
