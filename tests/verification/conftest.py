"""The files of ``support.runtime_files``, made once for the tests of this folder."""

import pytest
from support.runtime_files import RuntimeFiles


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> RuntimeFiles:
    return RuntimeFiles.write(tmp_path_factory.mktemp("verification"))
