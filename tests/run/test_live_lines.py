"""A file that grows is read as if from its start, whatever was written to it between two looks."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pipeline.run.records import GrowingLines, append_json_line, read_json_lines


@given(
    st.lists(
        st.one_of(st.binary(max_size=12), st.sampled_from([b'{"a": 1}\n', b'{"b": ', b"2}\n", b"\n", b"replaced", b"cut"]))
    )
)
def test_what_grows_is_read_as_a_whole(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lines.jsonl"
        lines = GrowingLines(path)
        assert lines.read() == []
        for part in parts:
            if part == b"replaced":  # as an editor saves it
                (path.parent / "new").write_bytes(b'{"new": 1}\n' * 3)
                (path.parent / "new").replace(path)
            elif part == b"cut" and path.exists():
                path.write_bytes(b"")
            else:
                with path.open("ab") as file:
                    file.write(part)
            assert lines.read() == read_json_lines(path)


def test_a_reader_that_is_given_rows_may_change_its_list(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"a": 1})
    lines = GrowingLines(path)
    lines.read().append({"mine": 1})
    assert lines.read() == [{"a": 1}]
