"""Finds pictures that are (nearly) copies of each other by a 256-bit difference hash.

The hash holds the signs of the horizontal gradients of a picture shrunk to 17 x 16 (Krawetz 2013). It
survives another size, quality or light, and no mirroring, turning or cropping.
"""

import cv2
import numpy as np

HASH_BITS = 256
HASH_BYTES = HASH_BITS // 8
# Two pictures are copies of each other when at most this many of the bits of their hashes differ.
COPY_BITS = 24


def difference_hash(picture: np.ndarray) -> np.ndarray:
  """Returns the hash of a grey picture, uint8 [HASH_BYTES].

  Args:
    picture: uint8 [height, width].
  """
  small = cv2.resize(picture, (17, 16), interpolation=cv2.INTER_AREA)
  return np.packbits(small[:, 1:] > small[:, :-1])


def copies_of(picture: np.ndarray, others: np.ndarray) -> np.ndarray:
  """Which of the others are copies of a picture, bool [...].

  Args:
    picture: a hash, uint8 [HASH_BYTES], or an array of hashes that fits the others by broadcasting.
    others: hashes, uint8 [..., HASH_BYTES].
  """
  return np.bitwise_count(others ^ picture).sum(axis=-1) <= COPY_BITS
