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


@given(HEADERS, st.binary(min_size=1, max_size=50), st.data())
def test_a_flipped_bit_is_noticed(header, body, data):
    frame = bytearray(channel.pack(header, body))
    bit = data.draw(st.integers(64, len(frame) * 8 - 1))
    frame[bit // 8] ^= 1 << bit % 8
    assert channel.unpack(bytes(frame)) is None


def test_a_stream_that_is_not_ours_is_refused():
    inbox = channel.Inbox()
    inbox.feed(b"HTTP/1.1 200 OK\r\n\r\n")
    with pytest.raises(channel.Garbled, match="bytes"):
        list(inbox)
