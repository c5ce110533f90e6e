"""How often somebody may ask: moving windows, in this process or in Redis for several.

Where Redis does not answer, this process counts by itself and asks Redis again after some seconds: a replica
then lets through as many as it would alone, and nobody is locked out.
"""

import collections
import dataclasses
import logging
import time
from collections.abc import Callable

import anyio
from limits import RateLimitItemPerSecond
from limits.storage import storage_from_string
from limits.strategies import MovingWindowRateLimiter

HOUR_S = 3600
_AGAIN_S = 10.0
_REDIS_WAIT_S = 0.5
_SWEEP_S = 60.0

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Count:
  """What a limit says.

  Attributes:
    name: of the limit.
    allowed: whether this one may pass.
    limit: how many may pass in `window_s` seconds.
    remaining: how many still may.
    reset_s: seconds until one of those that count is forgotten.
  """

  name: str
  allowed: bool
  limit: int
  remaining: int
  reset_s: float
  window_s: int = HOUR_S

  def headers(self) -> dict[str, str]:
    """RateLimit and RateLimit-Policy (draft-ietf-httpapi-ratelimit-headers-09)."""
    return {
      "RateLimit-Policy": f'"{self.name}";q={self.limit};w={self.window_s}',
      "RateLimit": f'"{self.name}";r={self.remaining};t={max(0, round(self.reset_s))}',
    }


class Windows:
  """Moving windows in memory. Those in which nothing counts any more are forgotten.

  Args:
    clock: in seconds.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock, self._swept_s = clock, clock()
    # Times of what counts, and the length of the window.
    self._seen: dict[tuple[str, str], tuple[collections.deque[float], float]] = {}

  def __len__(self) -> int:
    return len(self._seen)

  def ask(self, name: str, who: str, *, limit: int, window_s: float, count: bool) -> tuple[bool, int, float]:
    """Whether one more passes, how many remain and seconds until one is forgotten; counts it or not."""
    now = self._clock()
    if now - self._swept_s > _SWEEP_S:
      self._swept_s = now
      self._seen = {key: (times, s) for key, (times, s) in self._seen.items() if times[-1] > now - s}
    times, _ = self._seen.get((name, who), (collections.deque(), window_s))
    while times and times[0] <= now - window_s:
      times.popleft()
    allowed = len(times) < limit
    if allowed and count:
      times.append(now)
      self._seen[name, who] = times, window_s
    return allowed, max(0, limit - len(times)), times[0] + window_s - now if times else 0.0


class Limits:
  """Counts requests.

  Args:
    redis_url: of the Redis that counts for all replicas; None counts here.
    on_fallback: called whenever Redis did not answer.

  Raises:
    ValueError: the URL is not one of Redis, or its package is not installed.
  """

  def __init__(self, redis_url: str | None = None, *, on_fallback: Callable[[], None] = lambda: None):
    self._here = Windows()
    self._shared, self._shared_again_s, self._on_fallback = None, 0.0, on_fallback
    if not redis_url:
      return
    if not redis_url.startswith(("redis://", "rediss://", "redis+unix://", "redis+cluster://")):
      raise ValueError("REDIS_URL must begin with redis:// or rediss://; correct it or leave it out.")
    try:
      waits = {"socket_timeout": _REDIS_WAIT_S, "socket_connect_timeout": _REDIS_WAIT_S}
      self._shared = MovingWindowRateLimiter(storage_from_string(redis_url, **waits))
    except Exception as error:
      # The message may hold the URL, and the URL a password.
      raise ValueError(
        f"REDIS_URL cannot be used ({type(error).__name__}); check it, and `pip install redis`."
      ) from error

  async def hit(self, name: str, who: str, *, limit: int, window_s: int = HOUR_S) -> Count:
    """Counts one, unless the limit is reached.

    Args:
      name: of the limit.
      who: whose.
      limit: how many may pass in window_s seconds.
    """
    return await self._ask(name, who, limit, window_s, count=True)

  async def look(self, name: str, who: str, *, limit: int, window_s: int = HOUR_S) -> Count:
    """Counts nothing; `allowed` says whether one more would pass."""
    return await self._ask(name, who, limit, window_s, count=False)

  async def _ask(self, name: str, who: str, limit: int, window_s: int, *, count: bool) -> Count:
    if self._shared is not None and time.monotonic() >= self._shared_again_s:
      try:
        said = await anyio.to_thread.run_sync(self._ask_redis, name, who, limit, window_s, count)
        return Count(name, said[0], limit, *said[1:], window_s=window_s)
      except Exception as error:  # whatever it is, a request does not fail for it
        self._shared_again_s = time.monotonic() + _AGAIN_S
        self._on_fallback()
        logger.warning("Redis does not answer (%s); this process counts by itself.", type(error).__name__)
    allowed, remaining, reset_s = self._here.ask(name, who, limit=limit, window_s=window_s, count=count)
    return Count(name, allowed, limit, remaining, reset_s, window_s)

  def _ask_redis(
    self, name: str, who: str, limit: int, window_s: int, count: bool
  ) -> tuple[bool, int, float]:
    item = RateLimitItemPerSecond(limit, window_s, namespace=f"deepscan/{name}")
    hit = self._shared.hit(item, who) if count else None
    reset, remaining = self._shared.get_window_stats(item, who)
    remaining = max(0, remaining)
    reset_s = max(0.0, reset - time.time()) if remaining < limit else 0.0
    return remaining > 0 if hit is None else hit, remaining, reset_s
