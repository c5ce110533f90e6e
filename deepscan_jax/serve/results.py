"""What was said of a file before, said again: by the detect routes and by jobs, of files of either.

An answer depends on the file's bytes, the model, and what was asked; whose requests it may answer is the
store's business (`shared_with`). What a file is called is put in anew.
"""

import dataclasses

from deepscan_jax import report
from deepscan_jax.serve.context import Context
from deepscan_jax.serve.evidence import evidence_json
from deepscan_jax.serve.idempotency import fingerprint
from deepscan_jax.serve.uploads import TYPES
from deepscan_jax.verdict import Verdict
from deepscan_jax.version import __version__

# What an answer has besides the verdict where it was asked for.
EXPLANATION = ("report_html", "evidence")


@dataclasses.dataclass(frozen=True)
class Question:
  """What is asked of a file.

  Attributes:
    name: of the file, as who asks knows it.
    extension: without its dot; decoders go by it too.
    frames: of a video that are looked at.
    explain: whether the report and the judged faces belong to the answer.
    key_id: of who asks.
  """

  name: str
  extension: str
  frames: int
  explain: bool
  key_id: str

  @property
  def settings(self) -> str:
    """What an answer depends on besides the file and the model."""
    kinds = TYPES.get(self.extension, (("video",), "", ""))[0]
    frames = self.frames if "video" in kinds else 0
    # The report shows the name.
    name = fingerprint(self.name)[:32] if self.explain else ""
    return f"{__version__}/{self.extension[:20]}/{frames}/{name}"


class Results:
  """Answers that are kept, and can be told again.

  Args:
    context: of the service.
  """

  def __init__(self, context: Context):
    self._store, self._settings = context.store, context.settings
    self._cached = context.metrics.cached

  @property
  def are_kept(self) -> bool:
    """Whether looking for one makes sense."""
    return bool(self._settings.results_kept_h)

  def find(self, question: Question, *, sha256: str, model: str) -> tuple[str, dict] | None:
    """The id of the answer and the answer that the same file got before; None where it got none.

    Args:
      question: what is asked.
      sha256: of the file.
      model: sha256 of the model.
    """
    found = self._store.find_result(
      sha256=sha256, model=model, settings=question.settings, shared_with=self._shared_with(question)
    )
    if found is None:
      return None
    result_id, answer = found
    answer["file"]["name"] = answer["run"]["path"] = question.name
    self._cached.labels(answer["file"]["kind"]).inc()
    return result_id, answer

  def add(self, question: Question, verdict: Verdict) -> tuple[str, dict]:
    """The id under which a verdict is kept, and the answer that it makes."""
    answer = answer_of(verdict, question.name, question.explain)
    result_id = self._store.add_result(
      answer,
      key_id=question.key_id,
      sha256=verdict.file["sha256"],
      model=verdict.model["sha256"],
      settings=question.settings,
      shared_with=self._shared_with(question),
    )
    return result_id, answer

  def _shared_with(self, question: Question) -> str:
    return "" if self._settings.shared_results else question.key_id


def answer_of(verdict: Verdict, name: str, explain: bool) -> dict:
  """The JSON of a verdict without request_id, result_id and cached.

  Args:
    verdict: of a received file.
    name: of the file, as the client called it; it replaces the random one.
    explain: whether to add the report, and the judged faces with their region maps.
  """
  verdict = dataclasses.replace(
    verdict,
    file={**verdict.file, "name": name},
    # Folders of this machine are nobody's business.
    run={**verdict.run, "path": name, "model_path": None},
  )
  return {
    **report.to_json(verdict),
    "model_version": f"{verdict.model['name']}@{verdict.model['version']}",
    "report_html": report.render_html(verdict) if explain else None,
    "evidence": evidence_json(verdict) if explain else None,
  }
