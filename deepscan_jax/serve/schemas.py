"""The JSON of the service, as OpenAPI describes it. What a verdict is stands in deepscan_jax/verdict.py."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deepscan_jax.verdict import FACES, OUTCOMES, SOUND

Outcome = Literal[OUTCOMES]
Part = Literal[FACES, SOUND]
Probability = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
  model_config = ConfigDict(extra="forbid")


class Thresholds(_Strict):
  """Probabilities at which outcomes change."""

  inconclusive: Probability
  manipulated: Probability
  false_positive_rate: Probability


class Reason(_Strict):
  """Why an outcome is what it is."""

  code: str
  message: str
  remedy: str
  facts: dict[str, float | int | str | None]


class Branch(_Strict):
  """One branch's opinion, and what it did to the verdict."""

  probability: Probability | None
  weight: float
  status: str
  contribution: float | None
  probability_without: Probability | None


class Sighting(_Strict):
  """One face in one frame; the box is x_min, y_min, x_max, y_max in pixels."""

  time_s: float
  box: Annotated[list[float], Field(min_length=4, max_length=4)]
  probability: Probability | None
  reasons: list[str]


class Stretch(_Strict):
  """A stretch of time that reaches the threshold of manipulation."""

  start_s: float
  end_s: float


class Person(_Strict):
  """One person followed through the file."""

  id: int
  deepfake_probability: Probability | None
  frames_seen: int
  frames_judged: int
  quality: dict[str, Any]
  marked: list[Stretch]
  boxes: list[Sighting]


class Faces(_Strict):
  """What is said of all faces together."""

  outcome: Outcome
  deepfake_probability: Probability | None
  reasons: list[str]
  thresholds: Thresholds


class SoundWindow(_Strict):
  """A stretch of the sound."""

  start_s: float
  end_s: float
  probability: Probability


class Sound(_Strict):
  """What was heard."""

  outcome: Outcome
  deepfake_probability: Probability | None
  reasons: list[str]
  thresholds: Thresholds
  windows: list[SoundWindow]
  moments: list[SoundWindow]
  marked: list[Stretch]


class Moment(_Strict):
  """The highest probability among the people seen at a time."""

  time_s: float
  probability: Probability | None


class Model(_Strict):
  """Which model answered."""

  name: str
  version: str
  sha256: str


class File(_Strict):
  """The file; `media` holds what the decoder found in it."""

  name: str
  bytes: int
  sha256: Sha256
  kind: Literal["video", "image", "audio"]
  media: dict[str, Any]


class DetectAnswer(_Strict):
  """A verdict, with where it came from."""

  deepfake_probability: Probability | None = Field(description="Calibrated; null where nothing was judged.")
  is_deepfake: bool | None = Field(description="True from the threshold of manipulation on.")
  confidence: Probability | None = Field(description="Probability of what is_deepfake says.")
  frame_consistency_score: Probability | None = Field(description="1 where all frames agree.")
  recommendation: str
  schema_version: str
  outcome: Outcome
  decided_by: Part | None
  reasons: list[Reason]
  thresholds: Thresholds
  at_prevalence: dict[str, Any] | None
  branches: dict[str, Branch]
  people: list[Person]
  faces: Faces | None
  sound: Sound | None
  timeline: list[Moment]
  stability: dict[str, Any] | None
  model: Model
  file: File
  timings: dict[str, float]
  run: dict[str, Any]
  warnings: list[str]
  model_version: str = Field(description="NAME@VERSION, as in the header X-Model-Version.")
  request_id: str = Field(description="As in the header X-Request-ID.")
  result_id: str = Field(description="What POST /api/v1/feedback names this answer by.")
  cached: bool = Field(description="Whether this file had been judged before.")
  report_html: str | None = Field(description="With explain=true: a page that needs nothing else.")
  evidence: list[dict[str, Any]] | None = Field(
    default=None, description="With explain=true: the judged faces, and where the model looked."
  )


class ModelFacts(_Strict):
  """One loaded model."""

  name: str
  version: str
  sha256: str
  default: bool
  inputs: list[str]
  thresholds: Thresholds
  card: str = Field(description="The model card, Markdown.")


class Models(_Strict):
  """All loaded models."""

  models: list[ModelFacts]


class Feedback(_Strict):
  """What somebody knows of a file that was judged."""

  result_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{22}$")]
  label: Literal["authentic", "manipulated", "unsure"]
  comment: Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*$")] = ""


class FeedbackReceipt(_Strict):
  """That it was kept."""

  feedback_id: str
  result_id: str
  label: Literal["authentic", "manipulated", "unsure"]


class Health(_Strict):
  """That the process lives."""

  status: Literal["ok"]
  version: str


class Readiness(_Strict):
  """Whether files are judged, and by part why not."""

  status: Literal["ready", "not_ready"]
  models: bool
  database: bool
  disk: bool
  draining: bool
  problem: str | None
