"""What every router of the service is given."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import sqlalchemy

  from deepscan_jax.serve.engine import Engine
  from deepscan_jax.serve.keys import KeyStore
  from deepscan_jax.serve.limits import Limits
  from deepscan_jax.serve.metrics import Metrics
  from deepscan_jax.serve.settings import Settings
  from deepscan_jax.serve.store import Store
  from deepscan_jax.serve.uploads import UploadFolder


@dataclasses.dataclass
class Phase:
  """Where the process is in its life; `draining` turns True when it was told to end."""

  draining: bool = False


@dataclasses.dataclass
class Later:
  """Who takes files that are judged later; routes_jobs sets it.

  Attributes:
    submit: called with the Upload, and key (KeyInfo), frames, model, explain and webhook by name; it moves or
      copies the file elsewhere before it returns, and gives the answer: 202 with the Location of a job.
    check: called in a thread with key, model and webhook before a file is received; raises what submit would.
  """

  submit: Callable[..., Awaitable] | None = None
  check: Callable[..., None] | None = None


@dataclasses.dataclass(frozen=True)
class Context:
  """The parts of one running service; `request.app.state.context` holds it.

  Attributes:
    settings: as the service was started.
    engine: the models.
    database: where keys, results and jobs are kept.
    store: results, idempotent answers and feedback in it.
    keys, limits: who may ask, and how often.
    uploads: where files are received.
    metrics: what /metrics tells.
    phase: whether the service is ending.
    later: who takes files that are judged later.
  """

  settings: Settings
  engine: Engine
  database: sqlalchemy.Engine
  store: Store
  keys: KeyStore
  limits: Limits
  uploads: UploadFolder
  metrics: Metrics
  phase: Phase = dataclasses.field(default_factory=Phase)
  later: Later = dataclasses.field(default_factory=Later)
