"""Idempotency-Key: a request that is sent again gets the answer of the first.

After draft-ietf-httpapi-idempotency-key-header-07.
"""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated

import anyio
from fastapi import Header
from starlette.responses import Response

from deepscan_jax.serve.keys import KeyInfo
from deepscan_jax.serve.problems import Problem
from deepscan_jax.serve.store import InProgress, KeyReused, Store, StoredAnswer, new_id

# A parameter of routes.
IdempotencyKey = Annotated[
  str | None,
  Header(
    alias="Idempotency-Key",
    pattern=r"^[A-Za-z0-9_.:-]{1,128}$",
    description="Name the request yourself; sent again within 24 hours, it gets the same answer.",
  ),
]
REPLAYED = "Idempotency-Replayed"
_KEPT_HEADERS = ("content-type", "x-model-version", "location")


def fingerprint(*parts: object) -> str:
  """SHA-256, in hexadecimal digits, of what makes a request this one."""
  return hashlib.sha256("\0".join(map(repr, parts)).encode()).hexdigest()


async def once(
  store: Store,
  key: KeyInfo,
  idempotency_key: str | None,
  request: str,
  answer: Callable[[], Awaitable[Response]],
) -> Response:
  """Answers a request, or gives the answer that it got before.

  What failed here, or was sent away, can be tried again under the same Idempotency-Key; a refusal of the
  request stays one.

  Args:
    store: of the service.
    key: of whoever asks.
    idempotency_key: None asks for nothing.
    request: its `fingerprint`.
    answer: makes the answer.

  Raises:
    Problem: 422 for another request under this Idempotency-Key, 409 while the first is under way.
  """
  if idempotency_key is None:
    return await answer()
  owner = new_id()
  try:
    known = await anyio.to_thread.run_sync(
      lambda: store.begin_answer(key.id, idempotency_key, request, owner=owner)
    )
  except KeyReused:
    raise Problem("key_reused", "This Idempotency-Key came with another request before.") from None
  except InProgress:
    raise Problem(
      "in_progress", "The first request with this Idempotency-Key is under way.", retry_after_s=1
    ) from None
  if known is not None:
    return Response(known.body, known.status, {**known.headers, REPLAYED: "true"})
  kept, refusal = False, None
  try:
    try:
      response = await answer()
    except Problem as problem:
      refusal, response = problem, problem.response()
    if response.status_code < 500 and response.status_code != 429:
      headers = {name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers}
      stored = StoredAnswer(response.status_code, headers, bytes(response.body))
      await anyio.to_thread.run_sync(lambda: store.end_answer(key.id, idempotency_key, stored, owner=owner))
      kept = True
    if refusal is not None:
      raise refusal  # for the log and the metrics, too
    return response
  finally:
    if not kept:
      with anyio.CancelScope(shield=True):
        await anyio.to_thread.run_sync(lambda: store.drop_answer(key.id, idempotency_key, owner=owner))
