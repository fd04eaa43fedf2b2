"""Shards and records: what lets work be stopped, continued and split."""

import pytest

from data.prepare.jobs.records import Records, Shard


def line(path, modified_ns=1, **more):
    return {"path": path, "bytes": 3, "modified_ns": modified_ns, **more}


def test_shards_share_the_files_out():
    paths = list("abcdefg")
    parts = [Shard.parse(f"{index}/3").own(paths) for index in (1, 2, 3)]
    assert parts == [["a", "d", "g"], ["b", "e"], ["c", "f"]]


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "1/3/5"])
def test_shards_that_are_none(text):
    with pytest.raises(ValueError, match=f"shard={text}: give part i of n as i/n with i from 1 to n"):
        Shard.parse(text)


def slurm(task, first, last, count):
    values = {"ID": task, "MIN": first, "MAX": last, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def test_shards_of_a_slurm_array():
    assert Shard.parse("", {}) == Shard(1, 1)
    assert [Shard.parse("", slurm(task, 0, 3, 4)).index for task in range(4)] == [1, 2, 3, 4]
    assert Shard.parse("", slurm(14, 10, 18, 5)) == Shard(3, 5)  # --array=10-18:2
    assert Shard.parse("", slurm(7, 7, 7, 1)) == Shard(1, 1)
    assert Shard.parse("2/9", slurm(0, 0, 3, 4)) == Shard(2, 9)
    with pytest.raises(ValueError, match="the SLURM array has 3 tasks from 1 to 6 with gaps"):
        Shard.parse("", slurm(3, 1, 6, 3))  # --array=1,3,6


def test_all_shards_are_read_and_a_line_that_was_cut_off_is_not(tmp_path):
    first, second = (Records(tmp_path / "r", Shard(index, 2), {"size": 1}) for index in (1, 2))
    first.append(line("a", figure=1))
    second.append(line("b", figure=2))
    second.file.write('{"path": "c", "by')
    second.file.flush()
    assert {path: record["figure"] for path, record in first.read().items()} == {"a": 1, "b": 2}
    second.close()
    again = Records(tmp_path / "r", Shard(2, 2), {"size": 1})
    again.append(line("d", figure=4))
    assert list(again.read()) == ["a", "b", "d"]
    assert (tmp_path / "r" / "2-of-2.jsonl").read_text().count("\n") == 3


def test_the_later_record_of_a_file_counts(tmp_path):
    one, other = (Records(tmp_path / "r", Shard(1, count), {}) for count in (1, 2))  # read in this order, 1-of-1 first
    other.append(line("a", modified_ns=9, figure="first"))
    one.append(line("a", modified_ns=5, figure="later"))  # replaced by a file with an older date
    one.append(line("b", error="?"))
    other.append(line("b", figure="mended"))
    assert {path: record["figure"] for path, record in other.read().items()} == {"a": "later", "b": "mended"}


def test_settings_must_be_the_same(tmp_path):
    Records(tmp_path / "out" / ".r", Shard(1, 2), {"size": 512, "border": "grey"}).close()
    with pytest.raises(ValueError, match=r"out was begun with size=512 \(now 256\): give these values again, or another out="):
        Records(tmp_path / "out" / ".r", Shard(2, 2), {"size": 256, "border": "grey"})


def test_two_processes_do_not_share_a_shard(tmp_path):
    held = Records(tmp_path / "out" / ".r", Shard(1, 2), {})
    with pytest.raises(ValueError, match=r"another process works on shard 1/2 in .*out"):
        Records(tmp_path / "out" / ".r", Shard(1, 2), {})
    held.close()
    Records(tmp_path / "out" / ".r", Shard(1, 2), {}).close()
