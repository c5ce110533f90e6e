"""Named parts of the 468-point face mesh, as indices into its landmarks.

Every outline is a tuple of mesh indices in drawing order: joining them one after the other, and the last to
the first, gives a closed polygon. Left and right are the person's own, so the right eye is on the left of an
unmirrored picture. The numbering is that of the mesh model itself (Kartynnik et al. 2019, "Real-time Facial
Surface Geometry from Monocular Video on Mobile GPUs", arXiv:1907.06724).
"""

import numpy as np

# fmt: off
FACE_OVAL = (
  10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
  152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
RIGHT_EYEBROW = (46, 53, 52, 65, 55, 107, 66, 105, 63, 70)
LEFT_EYEBROW = (276, 283, 282, 295, 285, 336, 296, 334, 293, 300)
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
NOSE = (
  168, 193, 122, 196, 236, 198, 209, 49, 48, 64, 98, 97, 2,
  326, 327, 294, 278, 279, 429, 420, 456, 419, 351, 417,
)
MIDLINE = (
  0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 94, 151, 152, 164, 168,
  175, 195, 197, 199, 200,
)
# fmt: on

RIGHT_EYE_OUTER_CORNER = 33
LEFT_EYE_OUTER_CORNER = 263
N_LANDMARKS = 468

_RIGHT = [i for i in range(248) if i not in MIDLINE]
# Of each point, the one that lies in its place in a mirrored picture. The mesh counts the right half and the
# midline first, then the left half in the order of the right one. Checked with 119 faces and their mirror
# images, all given to the mesh: this is the point that is nearest on average, both ways.
MIRRORED = np.arange(N_LANDMARKS)
MIRRORED[_RIGHT] = np.arange(248, N_LANDMARKS)
MIRRORED[248:] = _RIGHT
MIRRORED.flags.writeable = False
