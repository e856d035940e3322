"""A file is either whole or noticed."""

import io
import os
import pickle
import random

import pytest
import torch

from eva_utils.utils import verified


def test_any_flipped_bit_and_any_truncation_is_noticed(tmp_path):
    path = tmp_path / "state.pt"
    verified.save_verified(path, {"weight": torch.randn(50), "epoch": 3})
    content = path.read_bytes()
    rng = random.Random(0)
    damaged = [content[:length] for length in (0, 1, 70, len(content) // 2, len(content) - 1)]
    damaged += [content[:-64], content + b"x"]
    for position in [*rng.sample(range(len(content)), 300), len(content) - 1, len(content) - 70]:
        flipped = bytearray(content)
        flipped[position] ^= 1 << rng.randrange(8)
        damaged.append(bytes(flipped))
    accepted = 0
    for version in damaged:
        path.write_bytes(version)
        with pytest.raises(verified.DamagedFileError, match="is damaged or was not saved by this package"):
            verified.load_verified(path)
        try:
            torch.load(io.BytesIO(version), weights_only=True)
            accepted += 1
        except Exception:
            pass
    assert accepted > 50  # torch.load alone would have taken these
    path.write_bytes(content)
    assert verified.load_verified(path)["epoch"] == 3


def test_a_failed_save_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    verified.save_verified(path, {"epoch": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(verified.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        verified.save_verified(path, {"epoch": 2})
    assert verified.load_verified(path) == {"epoch": 1} and [item.name for item in tmp_path.iterdir()] == ["state.pt"]


def test_what_the_disk_gives_back_otherwise_is_not_kept(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    verified.write_atomic(path, b"the first")

    def worn(descriptor):
        os.lseek(descriptor, -1, os.SEEK_END)
        os.write(descriptor, b"?")

    monkeypatch.setattr(verified.os, "fsync", worn)
    with pytest.raises(
        OSError, match=r"state\.pt was not written correctly: the disk returned other bytes; state\.pt is"
    ):
        verified.write_atomic(path, b"the second")
    assert [(item.name, item.read_bytes()) for item in tmp_path.iterdir()] == [("state.pt", b"the first")]


def test_only_tensors_and_plain_values_are_saved(tmp_path):
    with pytest.raises(TypeError, match=r"state\.pt would hold more than tensors and plain values: .*Fraction"):
        from fractions import Fraction

        verified.save_verified(tmp_path / "state.pt", {"rate": Fraction(1, 3)})
    assert not list(tmp_path.iterdir())


class RunsCode:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_would_run_code_is_refused_though_its_checksum_fits(tmp_path, monkeypatch):
    path, trace = tmp_path / "state.pt", tmp_path / "trace"
    monkeypatch.setattr(verified, "check_savable", lambda name, value: None)  # which would not save it
    verified.save_verified(path, {"epoch": RunsCode(trace)})
    assert verified.is_whole(path.read_bytes())
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        verified.load_verified(path)
    assert not trace.exists()
    torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert trace.exists()
