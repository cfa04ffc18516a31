"""Frames: split, merged, truncated, bit-flipped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkrunner import channel

HEADERS = st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.booleans(), max_size=4)
MESSAGES = st.lists(st.tuples(HEADERS, st.binary(max_size=200)), max_size=5)


@given(MESSAGES, st.lists(st.integers(1, 50), min_size=1))
def test_messages_arrive_whole_however_the_stream_is_cut(messages, cuts):
    stream = b"".join(channel.pack(header, body) for header, body in messages)
    inbox, got, at = channel.Inbox(), [], 0
    for i in range(len(stream) + 1):
        size = cuts[i % len(cuts)]
        inbox.feed(stream[at : at + size])
        got += list(inbox)
        at += size
        if at >= len(stream):
            break
    assert got == messages


@given(HEADERS, st.binary(max_size=200))
def test_half_a_frame_is_as_good_as_none(header, body):
    frame = channel.pack(header, body)
    for cut in range(len(frame)):
        assert channel.unpack(frame[:cut]) is None
    assert channel.unpack(frame) == (header, body)


@given(HEADERS, st.binary(max_size=50), st.integers(0, 17), st.binary(min_size=1, max_size=1))
def test_damaged_sizes_are_never_taken_for_a_message(header, body, at, byte):
    frame = bytearray(channel.pack(header, body))
    if frame[at : at + 1].lower() == byte.lower():
        return
    frame[at : at + 1] = byte
    try:
        assert channel.unpack(bytes(frame)) in (None, (header, body))
    except channel.Garbled:
        pass


@pytest.mark.parametrize("head", [b"[1]", b"{", b"", b"\xff", b"7"])
def test_a_header_that_is_no_object_is_refused(head):
    with pytest.raises(channel.Garbled):
        channel.unpack(channel.pack_raw(head, b""))


def test_a_stream_that_is_not_ours_is_refused():
    inbox = channel.Inbox()
    inbox.feed(b"HTTP/1.1 200 OK\r\n\r\n")
    with pytest.raises(channel.Garbled, match="expected the sizes"):
        list(inbox)
