"""The interval log: what any HdrHistogram reader sees, and what damage looks like."""

from __future__ import annotations

import random

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader
from hypothesis import given
from hypothesis import strategies as st

from survive.errors import RecordError
from survive.record import hlog
from survive.record.hdr import BUCKETS, HIGHEST_US, fold, highest_of, index_of, lowest_of
from survive.record.hlog import HlogWriter, decode, encode, read_hlog
from survive.record.samples import Counts

values = st.lists(st.integers(min_value=0, max_value=HIGHEST_US), min_size=1, max_size=60)


def library(raw):
    histogram = HdrHistogram(1, HIGHEST_US, 3)
    for value in raw:
        histogram.record_value(max(1, value))
    return histogram


@given(values)
def test_a_set_is_encoded_as_the_library_does(raw):
    counts = Counts(*fold(raw))
    assert encode(counts) == library(raw).encode()
    assert decode(encode(counts)) == counts


@given(st.integers(min_value=1, max_value=HIGHEST_US))
def test_buckets_are_the_librarys(value):
    histogram = HdrHistogram(1, HIGHEST_US, 3)
    assert histogram.counts_len == BUCKETS
    index = index_of(value)
    assert index == histogram.get_counts_array_index(value)
    assert lowest_of(index) <= value <= highest_of(index)
    assert highest_of(index) == histogram.get_highest_equivalent_value(value)


def written(path, sets):
    log = HlogWriter(path)
    for start_us, end_us, tag, counts in sets:
        log.write(start_us, end_us, tag, counts)
    log.close()
    return path


def some_sets(n=40):
    rng = random.Random(3)
    return [
        (
            second * 1_000_000 + 250_000,
            second * 1_000_000 + 1_000_000,
            f"chat:latency:ok:-1:inference-{second % 3}:",
            Counts(*fold(int(rng.lognormvariate(11, 2)) for _ in range(rng.randrange(1, 50)))),
        )
        for second in range(n)
    ]


def test_another_hdr_reader_sees_every_line_tag_and_count(tmp_path):
    sets = some_sets()
    reader = HistogramLogReader(
        str(written(tmp_path / "x.hlog", sets)), HdrHistogram(1, HIGHEST_US, 3)
    )
    seen = 0
    for start_us, end_us, tag, counts in sets:
        found = reader.get_next_interval_histogram()
        assert found.get_tag() == tag
        assert found.get_start_time_stamp() == pytest.approx(start_us / 1000)
        assert found.get_end_time_stamp() == pytest.approx(end_us / 1000)
        assert found.get_total_count() == sum(counts.counts)
        for index, count in zip(counts.indices, counts.counts, strict=True):
            assert found.get_count_at_index(index) == count
        assert found.get_max_value() == highest_of(counts.indices[-1])
        seen += 1
    assert seen == 40
    assert reader.get_next_interval_histogram() is None
    reader.close()


def test_our_own_reader_gives_back_what_was_written(tmp_path):
    sets = some_sets()
    assert list(read_hlog(written(tmp_path / "x.hlog", sets))) == sets


def test_the_interval_maximum_keeps_its_decimals(tmp_path):
    path = written(tmp_path / "x.hlog", [(0, 1_000_000, "a", Counts(*fold([1234])))])
    assert ",1.234," in path.read_text()


def test_an_empty_set_is_no_line(tmp_path):
    assert list(read_hlog(written(tmp_path / "x.hlog", [(0, 1, "a", Counts([], []))]))) == []


@pytest.mark.parametrize(
    "bad",
    [Counts([5, 5], [1, 1]), Counts([5, 4], [1, 1]), Counts([5], [0]), Counts([BUCKETS], [1])],
)
def test_counts_that_are_no_histogram_are_refused(bad):
    with pytest.raises(ValueError, match="cannot be written"):
        encode(bad)


def test_a_log_that_was_never_closed_is_cut_short_but_can_be_read(tmp_path):
    path = written(tmp_path / "x.hlog", some_sets(5))
    whole = path.read_bytes()
    path.write_bytes(whole[: whole.rindex(b"#[Complete")])
    with pytest.raises(RecordError, match="cut short"):
        list(read_hlog(path))
    assert len(list(read_hlog(path, whole=False))) == 5
    path.write_bytes(path.read_bytes()[:-7])
    assert len(list(read_hlog(path, whole=False))) == 4


def test_a_log_with_a_lost_line_is_cut_short(tmp_path):
    path = written(tmp_path / "x.hlog", some_sets(5))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4] + lines[5:]))
    with pytest.raises(RecordError, match="cut short"):
        list(read_hlog(path))


def test_every_flipped_byte_of_a_payload_is_noticed(tmp_path):
    path = written(tmp_path / "x.hlog", some_sets(1))
    whole = path.read_bytes()
    start = whole.index(b"HISTF")
    for at in range(start, start + 60):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(RecordError, match=r"x\.hlog:4"):
            list(read_hlog(path))


def test_a_payload_that_inflates_without_end_is_refused():
    import base64
    import struct
    import zlib

    squeezed = zlib.compress(bytes(10_000_000))
    bomb = base64.b64encode(struct.pack(">II", 0x1C849314, len(squeezed)) + squeezed)
    with pytest.raises(ValueError, match="whole"):
        decode(bomb)
    assert hlog.BUCKETS * 9 < 10_000_000
