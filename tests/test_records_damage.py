"""Damaged record files are refused by name with a reason; appending costs what is new; nothing is left behind."""

import os
import random
from pathlib import Path

import pandas as pd
import psutil
import pytest
from pandas.testing import assert_frame_equal

from mnnvl_lab import records
from mnnvl_lab.errors import RecordError
from mnnvl_lab.records import journal
from mnnvl_lab.records.files import from_bytes, naming, tables_in, to_bytes
from tests.test_records import origin, samples, table

DATA = Path(__file__).parents[1] / "data"


def mutations(content: bytes, count: int, seed: int):
    """One byte changed, a byte left out, one too many, or the end cut off."""
    chance = random.Random(seed)
    for _ in range(count):
        place, byte = chance.randrange(len(content)), bytes([chance.randrange(256)])
        kind = chance.choice(["flip", "flip", "flip", "flip", "drop", "insert", "cut"])
        if kind == "flip":
            changed = bytes([content[place] ^ (1 << chance.randrange(8))])
            yield content[:place] + changed + content[place + 1 :]
        elif kind == "cut":
            yield content[:place]
        else:
            yield content[:place] + (byte if kind == "insert" else b"") + content[place + (kind == "drop") :]


def outcome(content: bytes):
    """The table, or None if it was refused in words."""
    try:
        with naming("x.parquet", content):
            found = tables_in(content)
    except RecordError as error:
        return _said(str(error))
    return records.join(found, by=("clock",)) if found else None


def _said(message: str) -> None:
    assert message.startswith("x.parquet: ")
    assert len(message) > 20


class TestDamage:
    @pytest.mark.timeout(400)
    @pytest.mark.parametrize("seed", range(5))
    def test_of_600_mutations_none_changes_rows_or_provenance_unseen(self, seed):
        """3,000 over the five seeds."""
        sound = records.new_table(samples(iterations=2, ranks=2), origin())
        content = to_bytes(sound)
        refused = 0
        for changed in mutations(content, 600, seed):
            found = outcome(changed)
            if found is None:
                refused += 1
                continue
            assert_frame_equal(found, sound)
            assert records.provenance_of(found) == records.provenance_of(sound)
        assert refused > 300  # a mutation may fall on what no one reads, such as the name of the writing program

    def test_of_a_journal_only_the_end_may_be_missing(self):
        points = [records.new_table(samples(iterations=2, ranks=2, tokens=n), origin()) for n in (1, 2, 4)]
        content = journal.MAGIC + b"".join(journal.frame(to_bytes(point)) for point in points)
        whole = records.join(points)
        for changed in mutations(content, 300, seed=9):
            found = outcome(changed)
            if found is not None:
                assert_frame_equal(found, whole.head(len(found)))
                assert len(found) % len(points[0]) == 0
                assert len(found) == len(whole) or len(changed) < len(content) or content.startswith(changed)

    def test_provenance_that_was_changed_with_care_is_found_out(self, tmp_path):
        path = records.save(table(), tmp_path / "record.parquet")
        forged = pd.read_parquet(path)
        forged.attrs["mnnvl_lab"]["device"] = "9-core Test Processor"
        forged.to_parquet(path, index=False)
        with pytest.raises(RecordError, match=r"record\.parquet: .*damaged"):
            records.load(path)

    def test_a_digest_that_was_taken_out_is_missed(self, tmp_path):
        bare = pd.DataFrame(table())
        bare.attrs = {"mnnvl_lab": origin()}
        bare.to_parquet(tmp_path / "bare.parquet")
        with pytest.raises(RecordError, match=r"bare\.parquet: damaged: .* digest differs"):
            records.load(tmp_path / "bare.parquet")

    def test_older_files_are_accepted_and_said_to_be_unprotected(self, tmp_path):
        old = records.load(DATA / "h100x2_nvlink_ep2_again.parquet")
        assert "no digest" in records.protection_of(old)
        new = records.load(records.save(old, tmp_path / "new.parquet"))
        assert "digest verified" in records.protection_of(new)
        assert_frame_equal(new, old)

    def test_old_and_new_records_join(self):
        old, new = table(provenance=origin(schema=1)), table(tokens=32)
        joined = records.join([old, new])
        assert records.provenance_of(joined)["schema"] == records.SCHEMA
        assert from_bytes(to_bytes(joined)).equals(joined)

    def test_a_record_without_rows_is_refused(self, tmp_path):
        with pytest.raises(RecordError, match="no rows"):
            records.save(table().head(0), tmp_path / "empty.parquet")


class TestAsides:
    """Tables of other columns, such as a memory ledger: the same care."""

    def made(self):
        aside = pd.DataFrame(
            {"step": ["open", None], "bytes": [1, 2], "share": [0.5, float("nan")], "limit": [None, 3]}
        )
        aside.attrs = {"mnnvl_lab": origin()}
        return aside

    def test_they_come_back_and_are_protected(self, tmp_path):
        loaded = records.load_auxiliary(
            records.save_auxiliary(self.made(), tmp_path / "x.parquet", kind="memory"), kind="memory"
        )
        assert loaded["bytes"].tolist() == [1, 2]
        assert "digest verified" in records.protection_of(loaded)
        again = records.save_auxiliary(loaded, tmp_path / "y.parquet", kind="memory")
        assert_frame_equal(records.load_auxiliary(again, kind="memory"), loaded)

    def test_damaged_ones_are_refused_by_name(self, tmp_path):
        path = records.save_auxiliary(self.made(), tmp_path / "x.parquet", kind="memory")
        sound, content = records.load_auxiliary(path, kind="memory"), path.read_bytes()
        refused = 0
        for changed in mutations(content, 150, seed=3):
            path.write_bytes(changed)
            try:
                found = records.load_auxiliary(path, kind="memory")
            except RecordError as error:
                refused += str(path) in str(error)
            else:
                assert_frame_equal(found, sound)
                assert records.provenance_of(found) == records.provenance_of(sound)
        assert refused > 75

    def test_every_recorded_one_still_loads(self):
        for path in DATA.glob("*.parquet"):
            kind = path.stem.rsplit("_", 1)[1]
            if kind in ("memory", "growth", "links", "knobs"):
                assert "no digest" in records.protection_of(records.load_auxiliary(path, kind=kind))


class TestAppending:
    @pytest.mark.timeout(300)
    def test_a_late_point_costs_as_many_bytes_as_the_first(self, tmp_path):
        path, process, written = tmp_path / "sweep.parquet", psutil.Process(), []
        with records.Appender(path, origin()) as out:
            for tokens in range(60):
                rows = samples(iterations=2, ranks=2, tokens=tokens)
                before = process.io_counters().write_chars
                out.add(rows)
                written.append(process.io_counters().write_chars - before)
            assert max(written) < 1.1 * min(written[:10])
            assert os.listdir(tmp_path) == ["sweep.parquet"]
        assert len(records.load(path)) == 60 * 4
        assert path.read_bytes()[:4] == b"PAR1"

    def test_the_file_is_loadable_after_every_byte_that_is_written(self, tmp_path):
        """Wherever a kill cuts the last segment, the points before it are there."""
        path = tmp_path / "sweep.parquet"
        out = records.Appender(path, origin())
        sizes = []
        for tokens in (1, 2):
            out.add(samples(iterations=2, ranks=2, tokens=tokens))
            sizes.append(path.stat().st_size)
        content = path.read_bytes()
        out.close()
        for cut in {*range(sizes[0], sizes[1], 997), sizes[0] + 1, sizes[0] + 43, sizes[0] + 44, sizes[1] - 1}:
            torn = tmp_path / "torn.parquet"
            torn.write_bytes(content[:cut])
            assert records.load(torn)["tokens"].unique().tolist() == [1]
            assert len(records.done_points(torn)) == 1
        with records.Appender(torn, origin(), resume=True) as again:
            again.add(samples(iterations=2, ranks=2, tokens=2))
        assert records.load(torn).equals(records.load(path))

    @pytest.mark.parametrize("content", [b"", journal.MAGIC[:7], journal.MAGIC, journal.MAGIC + b"half a header"])
    def test_a_sweep_that_was_killed_before_its_first_point_is_no_hindrance(self, tmp_path, content):
        path = tmp_path / "sweep.parquet"
        path.write_bytes(content)
        assert records.done_points(path) == set()
        with pytest.raises(RecordError, match="holds no point yet"):
            records.load(path)
        with records.Appender(path, origin()) as out:
            out.add(samples())
        assert len(records.load(path)) == 32

    def test_nothing_is_left_of_a_sweep_without_points(self, tmp_path):
        records.Appender(tmp_path / "sweep.parquet", origin()).close()
        assert os.listdir(tmp_path) == []

    def test_resuming_with_nothing_due_changes_no_byte(self, tmp_path):
        path = records.save(table(), tmp_path / "sweep.parquet")
        before = path.read_bytes()
        with records.Appender(path, origin(), resume=True) as out:
            assert len(out.done) == 1
        assert path.read_bytes() == before

    def test_a_full_disk_keeps_the_points_before(self, tmp_path, monkeypatch):
        path = tmp_path / "sweep.parquet"
        out = records.Appender(path, origin())
        out.add(samples())
        real = os.pwrite

        def full(file, data, offset):
            real(file, data[:100], offset)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(RecordError, match=r"sweep\.parquet: cannot be written \(No space left on device\)"):
            out.add(samples(tokens=32))
        monkeypatch.undo()
        assert records.load(path)["tokens"].unique().tolist() == [16]
        out.add(samples(tokens=64))
        out.close()
        assert records.load(path)["tokens"].unique().tolist() == [16, 64]

    def test_what_cannot_be_written_is_refused_by_name(self, tmp_path):
        with pytest.raises(RecordError, match="cannot be written"):
            records.Appender(tmp_path, origin())
        (tmp_path / "file").touch()
        with pytest.raises(RecordError, match="cannot be written"):
            records.Appender(tmp_path / "file" / "sweep.parquet", origin())

    def test_another_fabric_is_refused_and_the_file_stays(self, tmp_path):
        path = tmp_path / "sweep.parquet"
        with records.Appender(path, origin()) as out:
            out.add(samples())
            with pytest.raises(RecordError, match="fabric differs"):
                out.add(samples(fabric="nvlink"))
        assert len(records.load(path)) == 32
