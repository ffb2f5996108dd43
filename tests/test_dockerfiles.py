"""What a Dockerfile brings from outside is found however the file is written."""

from pathlib import Path

import pytest

from mrp.compiler.dockerfile import bases_of, downloads_of

PINNED = f"debian@sha256:{'0' * 64}"


def bases(tmp_path: Path, text: str) -> list[str]:
    (tmp_path / "Dockerfile").write_bytes(text.encode())
    return bases_of(tmp_path / "Dockerfile")


@pytest.mark.parametrize(
    "text",
    [
        "FROM evil",
        "from\tevil as x",
        "FROM --platform=linux/amd64 evil",
        "\ufeffFROM evil",
        "FROM\vevil",
        "FROM \\\nevil",
        "FROM \\\r\nevil\r\n",
        "FROM \\\n# a comment\n\nevil",
        "FROM scratch\nRUN true \\\n  # a comment\nFROM evil",
        "FROM scratch\nRUN echo \\\\\nFROM evil",
        "FROM scratch\nRUN true \\\v\nFROM evil",
        "FROM scratch\nCOPY --from=evil a b",
        "FROM scratch\nCOPY\r--from=evil a b",
        "FROM scratch\nCOPY --chown=1 \\\n  --from=evil a b",
        "FROM scratch\nCOPY --chown=--from=scratch --from=evil a b",
        'FROM scratch\nCOPY --chown="a b" --fr"om"=evil a b',
        "FROM scratch\nCOPY --fr\\om='evil' a b",
        "FROM scratch\nRUN --mount=type=bind,from=evil,target=/x true",
        "FROM scratch\nCOPY --from=evil a b\nFROM scratch AS evil",
    ],
)
def test_each_image_is_found(tmp_path: Path, text: str) -> None:
    assert "evil" in bases(tmp_path, text)


@pytest.mark.parametrize("text", ["# escape=`\nRUN echo \\\nFROM evil", "FROM a b", "FROM"])
def test_what_cannot_be_read_is_an_image_without_a_digest(tmp_path: Path, text: str) -> None:
    found = bases(tmp_path, f"FROM {PINNED}\n{text}")
    assert any("@sha256:" not in base for base in found)


def test_stages_comments_and_what_programs_are_told_are_no_images(tmp_path: Path) -> None:
    text = f"""\
# syntax=docker/dockerfile:1
FROM {PINNED} AS build
# FROM evil
RUN tool --from=evil \\
# FROM evil
    --now
FROM build
COPY --from=0 a b
COPY --from=Build c d
"""
    assert bases(tmp_path, text) == [PINNED]


@pytest.mark.parametrize("source", ["https://x.org/a", '["HTTP://x.org/a", "/"]', "--chown=1 git@x.org:a", "$FILE"])
def test_downloads_are_found(tmp_path: Path, source: str) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM scratch\nADD a b\nADD \\\n {source} /\n")
    assert len(downloads_of(tmp_path / "Dockerfile")) == 1
