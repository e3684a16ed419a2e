"""A folder written whole or not at all says what really went wrong."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from lightning_core import files
from lightning_core.training import weights


def test_an_error_after_the_rename_is_the_one_that_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, "the disk does not answer")

    monkeypatch.setattr(files, "fsync", failing)
    with pytest.raises(OSError, match="does not answer"), weights.whole_folder(tmp_path / "folder") as beside:
        (beside / "file").write_text("whole")
