from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

try:
    from hypothesis import settings
except ImportError:  # the base install does without
    pass
else:
    # The same examples in every run: what fails here fails for everybody.  Busy machines are slow, so no deadline.
    settings.register_profile("ovenbird", derandomize=True, deadline=None, max_examples=60, database=None)
    settings.load_profile("ovenbird")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or fills the user's cache; one is shared by the whole run, so that compiling is paid once."""
    monkeypatch.setenv("OVENBIRD_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    yield


@pytest.fixture
def _ctrl_c() -> Iterator[None]:
    """As in a terminal; shells start jobs in the background without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def nestling() -> Path:
    return ROOT / "models" / "nestling"
