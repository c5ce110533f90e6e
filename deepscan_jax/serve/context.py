"""What every router of the service is given."""

from __future__ import annotations

import dataclasses
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
