"""What the process that decodes a stream and the one that reads it say to each other; standard library only.

The decoder (live_decoder.py) writes records: a letter, the payload's length, the payload.

| letter | payload |
|---|---|
| I | JSON: what the stream is; once, before all others |
| F | `FRAME`: seconds, width, height; then packed RGB rows |
| S | `SOUND`: seconds of the first sample; then float32 samples, mono, 16 kHz |
| P | `PROGRESS`: seconds up to which pictures and sound have come (-1: none), frames seen, damaged pieces |
| E | JSON: reason and message of the end; the last record |

Seconds count from the stream's beginning and never jump: where a stream's own clock goes back by JUMP_BACK_S,
or forth by more than JUMP_S, its time goes on from where it was.
"""

import struct
from dataclasses import dataclass

RECORD = struct.Struct("<cI")
FRAME, SOUND, PROGRESS = struct.Struct("<dII"), struct.Struct("<d"), struct.Struct("<ddQQ")
JUMP_BACK_S, JUMP_S = 1.0, 60.0
# Pieces of sound are written at least so often, and are at most four times as long.
SOUND_PIECE_S = 0.25
# Addresses of these kinds can be watched.
SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp")


@dataclass(frozen=True)
class Wanted:
  """What is kept of a stream, and what it may hold.

  Attributes:
    rate_hz: so many frames of each second, evenly spread; 0: none.
    sound: whether to keep the sound.
    longest_side: larger frames are made smaller.
    frame_pixels, streams: a stream with more is refused.
  """

  rate_hz: float
  sound: bool
  longest_side: int = 1920
  frame_pixels: int = 1 << 24
  streams: int = 32
