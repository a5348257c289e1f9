"""Getting ONNX Runtime's header: the first source that has the right bytes, and nothing else, is used."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.errors import DownloadError, FileFormatError
from edgekit.threebit import headers
from edgekit.threebit.headers import HEADER, Source, download, header_folder, in_deb, in_tar

TEXT = b"#define ORT_API_VERSION 21\n"


@pytest.fixture(autouse=True)
def _own_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "SHA256", hashlib.sha256(TEXT).hexdigest())


def tar(mode: str, text: bytes = TEXT, name: str = f"top/include/{HEADER}") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{mode}") as archive:  # type: ignore[call-overload]
        for path, data in (("top/other.h", b"x" * 5), (name, text)):
            info = tarfile.TarInfo(path)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def deb(data: bytes) -> bytes:
    parts = [b"!<arch>\n"]
    for name, content in (("debian-binary", b"2.0\n"), ("odd", b"123"), ("data.tar.xz", data)):
        parts += [f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode(), content]
        parts.append(b"\n" * (len(content) % 2))
    return b"".join(parts)


def source(path: Path, data: bytes, kind: str) -> Source:
    path.write_bytes(data)
    return Source(path.as_uri(), in_tar if kind == "tar" else in_deb)


def test_the_first_source_that_has_it(tmp_path: Path) -> None:
    sources = (
        Source((tmp_path / "nothing").as_uri(), in_tar),
        source(tmp_path / "changed.tgz", tar("gz", b"#define ORT_API_VERSION 22\n"), "tar"),
        source(tmp_path / "other.tgz", tar("gz", name="top/another.h"), "tar"),
        source(tmp_path / "cut.tgz", tar("gz")[:60], "tar"),
        source(tmp_path / "right.deb", deb(tar("xz")), "deb"),
    )
    assert download(sources) == TEXT
    with pytest.raises(DownloadError) as refused:
        download(sources[:4])
    for name in ("nothing", "changed.tgz", "other.tgz", "cut.tgz"):
        assert name in str(refused.value)


def test_it_is_downloaded_once(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = source(tmp_path / "right.tgz", tar("gz"), "tar")
    monkeypatch.setattr(headers, "SOURCES", (archive,))
    with pytest.raises(DownloadError, match="offline"):
        header_folder(offline=True)
    folder = header_folder()
    assert own_cache in folder.parents
    (tmp_path / "right.tgz").unlink()
    assert header_folder(offline=True) == folder
    (folder / HEADER).write_bytes(b"changed")
    with pytest.raises(DownloadError):
        header_folder()


@pytest.mark.parametrize("data", [b"", b"!<arch>\n", b"!<arch>\n" + b"x" * 60, deb(b"")[:70]])
def test_what_is_no_package(data: bytes) -> None:
    with pytest.raises(FileFormatError):
        in_deb(data)


@given(st.binary(max_size=300), st.integers(0, 400))
def test_damaged_packages_end_in_an_error(noise: bytes, at: int) -> None:
    whole = deb(tar("xz"))
    damaged = whole[:at] + noise + whole[at + len(noise) :]
    try:
        assert download_one(damaged) == TEXT
    except DownloadError:
        return


def download_one(data: bytes) -> bytes:
    return download((Source("data:;base64,", lambda _: in_deb(data)),))
