"""What a model takes where it is shipped, against the archives that zip makes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import onnx
import pytest

from autoq.runtime.shipped import shipped_bytes, shipped_files, zipped_bytes
from tests.small_job import small_model


def archived(path: Path, *files: Path) -> int:
    """The compressed sizes of the entries, as Python's zip archive states them."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for file in files:
            archive.write(file, file.name)
    with zipfile.ZipFile(path) as archive:
        return sum(entry.compress_size for entry in archive.infolist())


def test_zipped_is_what_zip_makes_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(small_model().SerializeToString() + bytes(3_000_000))  # unknown bytes, and more than one piece
    assert shipped_files(path) == (path,)
    assert zipped_bytes(path) == archived(tmp_path / "m.zip", path)
    assert shipped_bytes(path) == path.stat().st_size


def test_external_data_is_shipped_too(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save_model(small_model(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    files = (path, tmp_path / "weights.bin")
    assert shipped_files(path) == files
    assert zipped_bytes(path) == archived(tmp_path / "m.zip", *files)
    assert shipped_bytes(path) == sum(file.stat().st_size for file in files) > path.stat().st_size


def test_a_file_that_is_no_onnx_is_itself(tmp_path: Path) -> None:
    path = tmp_path / "m.tflite"
    path.write_bytes(b"TFL3" * 1000)
    assert shipped_files(path) == (path,) and 0 < zipped_bytes(path) < 100 < shipped_bytes(path)
    with pytest.raises(FileNotFoundError):
        zipped_bytes(tmp_path / "absent.onnx")
