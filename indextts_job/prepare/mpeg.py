"""MP3 files whose length stands nowhere: recordings of streams, and files that were cut.

libsndfile takes the length from the Xing or Info frame at the beginning. Without one it estimates it from the bit rate
of the first frame, and reads no more than that: of a file with a variable rate, half may be lost without a word. The
frames tell their lengths themselves, so they are counted, and a frame with the number is put in front.
Layout of headers: ISO/IEC 11172-3 and 13818-3, layer III.
"""

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
"""Bytes in front of the first frame that are searched, behind a tag."""
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


def with_length(content: bytes) -> bytes:
    """An MP3 file with the number of its frames in front; one that has it already, as it is.

    Raises:
        ValueError: There is something else between its frames.
    """
    first = _first(content)
    if first is None or _has_length(content, first):
        return content
    sizes = [header.size for header in _frames(content, first)]
    _demand_end(content, first + sum(sizes), max(sizes))
    wide, count = _Header.at(content, first).with_space(), len(sizes)
    told = bytes(wide.side_bytes) + b"Info" + (1).to_bytes(4, "big") + count.to_bytes(4, "big")
    return (wide.bits.to_bytes(4, "big") + told).ljust(wide.size, b"\0") + content[first:]


def _demand_end(content: bytes, end: int, frame_bytes: int) -> None:
    """Refuse what follows the last frame of a row, unless it is a tag, nothing, or a frame that was cut off."""
    rest = content[end:]
    if len(rest) > frame_bytes and not rest.startswith((b"TAG", b"APETAGEX", b"LYRICSBEGIN")) and any(rest):
        raise ValueError(f"its length is not known: behind byte {end} of {len(content)} there are no frames")


def _has_length(content: bytes, first: int) -> bool:
    behind = first + 4 + _Header.at(content, first).side_bytes
    return content[behind : behind + 4] in (b"Xing", b"Info") or content[first + 36 : first + 40] == b"VBRI"


def _first(content: bytes) -> int | None:
    """Place of the first frame, behind which another one begins; None where there is none."""
    begin = _behind_tag(content)
    places = range(begin, min(begin + _MOST_JUNK, len(content)))
    return next((place for place in places if len(list(islice(_frames(content, place), 2))) == 2), None)


def _behind_tag(content: bytes) -> int:
    if content[:3] != b"ID3":
        return 0
    # Seven bits of each byte.
    return 10 + sum(byte << shift for byte, shift in zip(content[6:10], (21, 14, 7, 0), strict=False))


def _frames(content: bytes, place: int) -> Iterator[_Header]:
    """All whole frames, one behind the other."""
    header = _Header.at(content, place)
    while header.is_one and place + header.size <= len(content):
        yield header
        place += header.size
        header = _Header.at(content, place)
