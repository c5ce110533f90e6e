"""Asks every request for its key, before anything of its body is read, and counts what keys may do."""

import ipaddress
import logging
from typing import Annotated

import anyio
from fastapi import Depends, Request
from fastapi.security import HTTPBearer

from deepscan_jax.serve.context import Context
from deepscan_jax.serve.keys import KeyInfo, WrongKey
from deepscan_jax.serve.limits import Count
from deepscan_jax.serve.problems import Problem

# What needs no key: the page and its parts, health, and the description of the service.
PUBLIC = frozenset({"/", "/healthz", "/readyz", "/api/v1/openapi.json", "/api/v1/docs"})
PUBLIC_BELOW = ("/api/v1/docs/", "/web/")
# WebSockets that browsers open, which can set no header: their first message may hold the key.
KEY_IN_FIRST_MESSAGE = frozenset({"/api/v1/live"})
_DETAILS = {
  "missing_key": "This address needs a key.",
  "wrong_key": "This key is not known here.",
  "expired_key": "This key has expired.",
}
_LONGEST_KEY = 512
_SCHEME = HTTPBearer(auto_error=False, description="A key of `deepscan serve keys create`.")

logger = logging.getLogger(__name__)


def is_public(path: str) -> bool:
  """Whether a path is answered without a key."""
  return path in PUBLIC or path.startswith(PUBLIC_BELOW)


def presented_key(authorization: str | None) -> str | None:
  """The key of an Authorization header; None where there is none, "" where it is none that could be right."""
  if not authorization:
    return None
  scheme, _, key = authorization.partition(" ")
  return key.strip()[:_LONGEST_KEY] if scheme.lower() == "bearer" else None


async def authenticate(context: Context, key: str | None, *, address: str) -> KeyInfo:
  """Returns whose key this is.

  Args:
    context: of the service.
    key: as it was presented; None if none was.
    address: of the client.

  Raises:
    Problem: 401, or 429 where too many wrong keys came from this address.
  """
  limits, most = context.limits, context.settings.failed_auth_per_hour
  who = neighbourhood(address)

  def refuse_more_than_may(count: Count) -> None:
    if not count.allowed:
      context.metrics.rate_limited.labels("failed-auth").inc()
      raise Problem(
        "too_many_failures", "Too many wrong keys came from this address.", retry_after_s=count.reset_s
      )

  refuse_more_than_may(await limits.look("failed-auth", who, limit=most))
  digest = context.keys.digest(key)
  if (known := context.keys.remembered(digest)) is not None:
    return known
  try:
    return await anyio.to_thread.run_sync(context.keys.check, key, digest)
  except WrongKey as error:
    if error.code != "missing_key":
      logger.warning("A key was refused.", extra={"code": error.code, "address": address})
      # Of several at the same moment, each was within the limit when it was looked at.
      refuse_more_than_may(await limits.hit("failed-auth", who, limit=most))
    headers = {"WWW-Authenticate": 'Bearer realm="deepscan"'}
    raise Problem(error.code, _DETAILS[error.code], headers=headers) from None


async def authorize(context: Context, key: KeyInfo, scope: str, *, counted: bool = True) -> Count:
  """Counts a request of a key, and returns what is left.

  Args:
    context: of the service.
    key: of `authenticate`.
    scope: that it has to have.
    counted: whether the request costs work; the others have a larger limit of their own.

  Raises:
    Problem: 403 without the scope, 429 over the limit.
  """
  if scope not in key.scopes:
    raise Problem("wrong_scope", f"This key may not do this: it has no scope {scope!r}.")
  settings = context.settings
  if counted:
    name, limit = "requests", key.requests_per_hour or settings.requests_per_hour
  else:
    name, limit = "reads", settings.reads_per_hour
  count = await context.limits.hit(name, key.id, limit=limit)
  if not count.allowed:
    context.metrics.rate_limited.labels(name).inc()
    raise Problem(
      "rate_limited",
      f"This key has had its {limit} {name} of the last hour.",
      headers=count.headers(),
      retry_after_s=count.reset_s,
    )
  return count


def require(*scopes: str, counted: bool = True):
  """A FastAPI dependency that lets requests pass whose key has one of the scopes, within its limit.

  Args:
    scopes: of keys.SCOPES.
    counted: False for what costs no work, such as asking for a job's state.

  Returns:
    What Depends(...) gives: KeyInfo.
  """

  async def check(request: Request, _: Annotated[object, Depends(_SCHEME)]) -> KeyInfo:
    context: Context = request.app.state.context
    # The gate in front of the app has asked for the key already.
    key: KeyInfo = request.state.key
    scope = next((scope for scope in scopes if scope in key.scopes), scopes[0])
    count = await authorize(context, key, scope, counted=counted)
    request.state.headers.update(count.headers())
    return key

  return check


def neighbourhood(address: str) -> str:
  """An address as failures are counted by it: one of IPv6 stands for its network, which has one owner."""
  try:
    parsed = ipaddress.ip_address(address)
  except ValueError:
    return address
  if parsed.version == 6 and parsed.ipv4_mapped is None:
    return str(ipaddress.ip_network((parsed, 64), strict=False))
  return str(getattr(parsed, "ipv4_mapped", None) or parsed)
