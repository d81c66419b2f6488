"""Files appear whole or not at all."""

import pytest

from data_scripts.whole_files import write_json, written_whole


def test_a_written_file_is_there_alone_and_its_folder_is_made(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"gap": 7.5, "street": "Straße"}, ensure_ascii=False)
    assert (tmp_path / "new" / "a.json").read_text("utf-8") == '{\n "gap": 7.5,\n "street": "Straße"\n}\n'
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_an_error_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), written_whole(path) as aside:
        aside.write_text("half of the n")
        raise OSError("disk full")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
