"""A file is either the old one or the whole new one."""

import pytest

from boltztilt.files import atomic_path, check_writable, read_arrays


def test_successful_write_replaces_the_file(tmp_path):
    path = tmp_path / "out.npz"
    path.write_text("old")
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".npz"
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_interrupted_write_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "out.npz"
    path.write_text("old")

    def interrupted_write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_free_name_is_writable(tmp_path):
    assert check_writable(str(tmp_path / "new.dcd")) == tmp_path / "new.dcd"


def test_existing_file_needs_overwrite(tmp_path):
    path = tmp_path / "old.dcd"
    path.touch()
    with pytest.raises(FileExistsError, match="--force"):
        check_writable(path)
    assert check_writable(path, overwrite=True) == path


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        check_writable(tmp_path / "nowhere" / "new.dcd")


def test_folder_is_no_file_name(tmp_path):
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        check_writable(tmp_path, overwrite=True)


def test_what_cannot_be_written_is_named(tmp_path):
    """As on a full disk, where the system names no file."""
    with (
        pytest.raises(OSError, match=r"cannot write .*out\.npz: No space left"),
        atomic_path(tmp_path / "out.npz"),
    ):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_trajectory_is_no_archive_of_samples(tmp_path):
    (tmp_path / "out.dcd").write_bytes(b"CORD")
    with pytest.raises(ValueError, match=r"out\.dcd is not an \.npz file of samples: give the"):
        read_arrays(tmp_path / "out.dcd", ())
