"""MP3 files whose length stands nowhere, or wrongly: recordings of streams, files that were cut, or put together.

libsndfile takes the length from the Xing or Info frame at the beginning. Without one it estimates it from the bit rate
of the first frame, and it reads no more than that: of a file with a variable rate, half may be lost without a word. The
frames tell their sizes themselves, so they are counted, and a frame with the number is put in front of them.
Layout of headers: ISO/IEC 11172-3 and 13818-3, layer III; of tags: id3.org, and the descriptions of APEv2 and Lyrics3.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Self

_KBIT = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 0),  # MPEG-1
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),  # MPEG-2
    0: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, 0),  # MPEG-2.5
}
_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
_MPEG_1, _LAYER_III, _MONO = 3, 1, 3
_SIDE_BYTES = {(True, True): 17, (True, False): 32, (False, True): 9, (False, False): 17}
"""By whether it is MPEG-1 and mono."""
_MOST_JUNK = 4096
"""Bytes in front of the first frame that are searched, behind tags: a recording may begin inside of a frame."""
_IN_A_ROW = 3
"""Frames that have to follow one another: single headers occur in any data."""
_COUNT_FLAG = 1
_ZEROS = re.compile(rb"\0+")
_WIDE_BITRATE = 9
"""Index of a rate whose frames hold the number: 128 or 80 kbit/s."""


@dataclass(frozen=True, slots=True)
class _Header:
    """The 32 bits that begin a frame."""

    bits: int

    @classmethod
    def at(cls, content: bytes, place: int) -> Self:
        """The bits at a place; fewer behind the end, which are no header."""
        return cls(int.from_bytes(content[place : place + 4], "big"))

    @property
    def is_one(self) -> bool:
        """Whether the bits are a header of layer III."""
        whole = self.bits >> 21 == 0x7FF and self._version in _HZ and self._sampling < 3
        return whole and self._layer == _LAYER_III and self._kbit > 0

    @property
    def _version(self) -> int:
        return self.bits >> 19 & 3

    @property
    def _layer(self) -> int:
        return self.bits >> 17 & 3

    @property
    def _kbit(self) -> int:
        return _KBIT[self._version][self.bits >> 12 & 15]

    @property
    def _sampling(self) -> int:
        return self.bits >> 10 & 3

    @property
    def _padding(self) -> int:
        return self.bits >> 9 & 1

    @property
    def size(self) -> int:
        """Bytes of the whole frame."""
        samples = 1152 if self._version == _MPEG_1 else 576
        return samples // 8 * 1000 * self._kbit // _HZ[self._version][self._sampling] + self._padding

    @property
    def side_bytes(self) -> int:
        """Bytes behind the header that describe the frame; the number of frames stands behind them."""
        mono = self.bits >> 6 & 3 == _MONO
        return _SIDE_BYTES[self._version == _MPEG_1, mono]

    def with_space(self) -> Self:
        """The header of a frame that is large enough to hold the number, without padding."""
        return type(self)(self.bits & ~0xF200 | _WIDE_BITRATE << 12)


@dataclass(frozen=True, slots=True)
class _Row:
    """The frames of a file."""

    places: list[tuple[int, int]]
    """Begin and end of each."""
    rest: int
    """Where they end; behind it there is nothing, padding, or a part of a frame, unless something else stands there."""


def with_length(content: bytes) -> bytes:
    """An MP3 file with the number of its frames in front of them; one that has it already, as it is.

    Raises:
        ValueError: There are no frames, or something else stands between them.
    """
    first = _first(content)
    if first is None:
        raise ValueError("no frames of MPEG layer III were found")
    row = _row(content, first)
    told = _told(content, row.places[0])
    frames = [(begin, end) for begin, end in row.places if not _is_about(content, begin)]
    # More frames than are there: the file was cut off, which shows when it is decoded.
    if told is not None and told >= len(frames):
        return content
    _demand_end(content, row)
    wide = _Header.at(content, first).with_space()
    about = bytes(wide.side_bytes) + b"Info" + _COUNT_FLAG.to_bytes(4, "big") + len(frames).to_bytes(4, "big")
    begin = (wide.bits.to_bytes(4, "big") + about).ljust(wide.size, b"\0")
    return b"".join([begin, *(content[begin:end] for begin, end in frames)])


def _demand_end(content: bytes, row: _Row) -> None:
    """Refuse what stands behind the frames and is no part of one, and no padding."""
    rest = content[row.rest :]
    most = max(end - begin for begin, end in row.places)
    if len(rest.strip(b"\0\xff")) > most:
        raise ValueError(f"behind byte {row.rest} of {len(content)} there are no frames")


def _told(content: bytes, frame: tuple[int, int]) -> int | None:
    """The number that a Xing or Info frame tells; None if the frame is none, or tells nothing."""
    behind = frame[0] + 4 + _Header.at(content, frame[0]).side_bytes
    if content[behind : behind + 4] not in (b"Xing", b"Info"):
        return None
    flags, count = (int.from_bytes(content[at : at + 4], "big") for at in (behind + 4, behind + 8))
    return count if flags & _COUNT_FLAG and count else None


def _is_about(content: bytes, begin: int) -> bool:
    """Whether a frame tells about the file, and holds no sound."""
    behind = begin + 4 + _Header.at(content, begin).side_bytes
    return content[behind : behind + 4] in (b"Xing", b"Info") or content[begin + 36 : begin + 40] == b"VBRI"


def _first(content: bytes) -> int | None:
    """Place of the first frame; None where there is none."""
    begin = _behind_tags(content, 0)
    places = range(begin, min(begin + _MOST_JUNK, len(content)))
    return next((place for place in places if len(list(islice(_frames(content, place), _IN_A_ROW))) == _IN_A_ROW), None)


def _row(content: bytes, place: int) -> _Row:
    """All whole frames from a place on, also those behind tags."""
    places: list[tuple[int, int]] = []
    while found := list(_frames(content, place)):
        places += found
        place = _behind_tags(content, found[-1][1])
    return _Row(places, place)


def _frames(content: bytes, place: int) -> Iterator[tuple[int, int]]:
    """Begin and end of whole frames, one directly behind the other."""
    header = _Header.at(content, place)
    while header.is_one and place + header.size <= len(content):
        yield place, place + header.size
        place += header.size
        header = _Header.at(content, place)


def _behind_tags(content: bytes, place: int) -> int:
    """The place behind all tags that begin at a place."""
    while size := _tag_bytes(content, place):
        place += size
    return place


def _tag_bytes(content: bytes, place: int) -> int:
    """Size of the tag, or of the padding, that begins at a place; 0 if there is none."""
    if padding := _ZEROS.match(content, place):
        return len(padding[0])
    if content.startswith(b"TAG+", place):
        return 227
    if content.startswith(b"TAG", place):
        return 128
    return _id3_bytes(content, place) or _ape_bytes(content, place) or _lyrics_bytes(content, place)


def _id3_bytes(content: bytes, place: int) -> int:
    if not content.startswith(b"ID3", place) or len(content) <= place + 10:
        return 0
    # Seven bits of each byte. A footer repeats the header.
    size = sum(byte << shift for byte, shift in zip(content[place + 6 : place + 10], (21, 14, 7, 0), strict=True))
    return 10 + size + (10 if content[place + 5] & 0x10 else 0)


def _ape_bytes(content: bytes, place: int) -> int:
    # The size counts items and footer. The flags tell whether this is the header in front of them.
    if not content.startswith(b"APETAGEX", place):
        return 0
    size, flags = (int.from_bytes(content[at : at + 4], "little") for at in (place + 12, place + 20))
    return 32 + (size if flags & 1 << 29 else 0)


def _lyrics_bytes(content: bytes, place: int) -> int:
    if not content.startswith(b"LYRICSBEGIN", place):
        return 0
    ends = (content.find(mark, place) for mark in (b"LYRICS200", b"LYRICSEND"))
    return min((end - place + 9 for end in ends if end > 0), default=0)
