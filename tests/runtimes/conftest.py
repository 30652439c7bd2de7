"""The files that the runtimes get to see, made once."""

import pytest
from support.runtime_files import RuntimeFiles


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> RuntimeFiles:
    return RuntimeFiles.write(tmp_path_factory.mktemp("runtimes"))
