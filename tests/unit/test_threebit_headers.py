"""Getting ONNX Runtime's header: the first source that has the right bytes, and nothing else, is used."""

from __future__ import annotations

import gzip
import hashlib
import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit import cache
from edgekit.errors import DownloadError, FileFormatError
from edgekit.files import cache_dir
from edgekit.threebit import headers
from edgekit.threebit.headers import HEADER, Source, download, header_folder, header_in_use, in_deb, in_tar

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


def test_an_archive_of_another_hash_is_not_even_read(tmp_path: Path) -> None:
    right = source(tmp_path / "right.tgz", tar("gz"), "tar")

    def never(_: bytes) -> bytes:
        raise AssertionError

    refused = Source(right.url, never, "0" * 64)
    with pytest.raises(DownloadError, match=f"expected {'0' * 64}"):
        download((refused,))
    pinned = Source(right.url, in_tar, hashlib.sha256(tar("gz")).hexdigest())
    assert download((refused, pinned)) == TEXT


def test_sources_without_encryption_have_a_hash() -> None:
    assert all(each.url.startswith("https://") or len(each.sha256) == 64 for each in headers.SOURCES)


# -- servers that do not answer well


@pytest.fixture
def answering() -> Iterator[Callable[[bytes], str]]:
    """Starts a server that answers one request with these bytes; yields its address."""
    with ExitStack() as stack:

        def start(reply: bytes) -> str:
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            server.settimeout(30)

            def answer() -> None:
                connection, _ = server.accept()
                with connection:
                    connection.recv(1 << 16)
                    connection.sendall(reply)

            thread = threading.Thread(target=answer, daemon=True)
            thread.start()
            stack.callback(thread.join, 30)
            return f"http://127.0.0.1:{server.getsockname()[1]}/header.tgz"

        yield start


@pytest.mark.parametrize(
    "reply",
    [
        b"nonsense\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70000 + b"\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: ftp:nothing\r\n\r\n",
    ],
    ids=["no HTTP", "nothing", "cut chunk", "cut body", "long header", "not found", "odd redirection"],
)
def test_a_server_that_answers_badly_leads_to_the_next(
    reply: bytes, answering: Callable[[bytes], str], tmp_path: Path
) -> None:
    bad = Source(answering(reply), in_tar)
    assert download((bad, source(tmp_path / "right.tgz", tar("gz"), "tar"))) == TEXT


# -- archives made to hurt


def header(kind: bytes, size: int, name: str = "x") -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


HURTING = {
    "large extended header": header(tarfile.XHDTYPE, (1 << 20) + 1) + bytes(3 << 20),
    "large global header": header(tarfile.XGLTYPE, 1 << 40),
    "large long name": header(tarfile.GNUTYPE_LONGNAME, 1 << 30) + bytes(1 << 20),
    "many extended headers": header(tarfile.XHDTYPE, 0) * 20_000,
    "many long names": (header(tarfile.GNUTYPE_LONGNAME, 512) + b"a" * 512) * 20_000,
    "sparse number": header(tarfile.XHDTYPE, 512) + b"21 GNU.sparse.size=x\n".ljust(512, b"\0") + header(b"0", 0),
    "much before it": header(b"0", 65 << 20) + bytes(65 << 20) + header(b"0", 0, HEADER),
    "large header": header(b"0", 5 << 20, HEADER) + bytes(5 << 20),
    "sparse header": header(tarfile.GNUTYPE_SPARSE, 1 << 40, HEADER),
}


@pytest.mark.parametrize("kind", HURTING)
def test_archives_made_to_hurt_lead_to_the_next(kind: str, tmp_path: Path) -> None:
    hurting = source(tmp_path / "hurting.tgz", gzip.compress(HURTING[kind], 1), "tar")
    assert download((hurting, source(tmp_path / "right.tgz", tar("gz"), "tar"))) == TEXT
    with pytest.raises(DownloadError, match=r"hurting\.tgz: ."):
        download((hurting,))


# -- in use


def test_a_header_in_use_is_not_removed(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "SOURCES", (source(tmp_path / "right.tgz", tar("gz"), "tar"),))
    with header_in_use() as folder:
        (entry,) = cache.entries(cache_dir())
        assert entry.path == folder
        assert not cache.remove(cache_dir(), entry)
        assert (folder / HEADER).read_bytes() == TEXT
    assert cache.remove(cache_dir(), entry)
    with header_in_use() as folder:
        assert (folder / HEADER).read_bytes() == TEXT
