"""Who may ask: API keys with scopes and an end, of which only a keyed hash is kept.

A key is `dfk_<id>_<secret>`: 8 characters by which it is found, and 32 random bytes in base64. What is stored
is the HMAC-SHA256 of the whole key under the service's secret. A slow hash would add nothing, for nobody can
try 256 bits, and would let strangers keep the processor busy. Whatever is presented, a check computes one
HMAC, asks the database once and compares as many digests, so that its time tells nothing. A key that was
right is right for one more second without the database being asked, though not past its end: only who has it
can see that.
"""

import dataclasses
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping

import sqlalchemy as sa

from deepscan_jax.serve import databases
from deepscan_jax.serve.store import KEYS

DETECT, BATCH, METRICS = "detect", "batch", "metrics"
SCOPES = (DETECT, BATCH, METRICS)
PREFIX = "dfk"
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_ID_LENGTH = 8
# An id that no key has: l and o are left out of the alphabet.
_NO_ID = "lololool"
_KEY = re.compile(rf"{PREFIX}_([{_ALPHABET}]{{{_ID_LENGTH}}})_[\w-]{{43}}", re.ASCII)
_NO_DIGEST = bytes(32)
# A key that is revoked by another process is refused after so long.
REMEMBERED_S = 1.0
_MOST_REMEMBERED = 1000


# One row whether there is such a key or not, of nulls then: fetching none is faster.
_BY_ID = sa.select(KEYS).select_from(
  sa.select(sa.literal(1)).subquery().outerjoin(KEYS, KEYS.c.id == sa.bindparam("key_id"))
)


@dataclasses.dataclass(frozen=True)
class KeyInfo:
  """A key, without its secret.

  Attributes:
    id: of the key.
    scopes: what it may do, of SCOPES.
    label: whose it is.
    created, expires, revoked: seconds since 1970; None for never.
    requests_per_hour: None takes the service's.
  """

  id: str
  scopes: frozenset[str]
  label: str = ""
  created: float = 0.0
  expires: float | None = None
  revoked: float | None = None
  requests_per_hour: int | None = None


class WrongKey(Exception):
  """What was presented opens nothing; `code` is missing_key, wrong_key or expired_key."""

  def __init__(self, code: str):
    super().__init__(code)
    self.code = code


class KeyStore:
  """The keys of one service.

  Args:
    database: of store.open_database.
    secret_key: what keys are hashed with; with another one, no key is right any more.
    static: keys from the environment, by id: the key and its scopes.
    clock: seconds since 1970.
  """

  def __init__(
    self,
    database: sa.Engine,
    secret_key: str,
    *,
    static: Mapping[str, tuple[str, Iterable[str]]] | None = None,
    clock: Callable[[], float] = time.time,
  ):
    self._database, self._secret, self._clock = database, secret_key.encode(), clock
    # By digest, whose key, and until when that may be said without looking.
    self._remembered: dict[bytes, tuple[KeyInfo, float]] = {}
    self._static = {
      key_id: (self._digest(key), KeyInfo(key_id, frozenset(scopes), label="from the environment"))
      for key_id, (key, scopes) in (static or {}).items()
    }

  def digest(self, presented: str | None) -> bytes:
    """What `remembered` and `check` know a key by."""
    return self._digest(presented or "")

  def remembered(self, digest: bytes) -> KeyInfo | None:
    """Whose key this is, where that was found out just now; needs no thread."""
    info, until_s = self._remembered.get(digest, (None, 0.0))
    now_s = self._clock()
    # A clock that was put back forgets too.
    if info is None or not until_s - REMEMBERED_S <= now_s < until_s:
      return None
    return info if info.expires is None or info.expires > now_s else None

  def check(self, presented: str | None, digest: bytes | None = None) -> KeyInfo:
    """Returns whose key this is.

    Args:
      presented: the key.
      digest: of it, where that is known.

    Raises:
      WrongKey: it is missing, wrong, revoked or expired.
    """
    digest = self.digest(presented) if digest is None else digest
    match = _KEY.fullmatch(presented or "")
    row = self._row(match[1] if match else _NO_ID)
    # Made of nulls too, and of what is not right: the work is the same.
    info = _info(row)
    found = info if hmac.compare_digest(digest, row.digest or _NO_DIGEST) else None
    for known, whose in self._static.values():
      # No break: every key costs the same.
      if hmac.compare_digest(digest, known):
        found = whose
    if found is None or found.revoked is not None:
      raise WrongKey("wrong_key" if presented else "missing_key")
    if found.expires is not None and found.expires <= self._clock():
      raise WrongKey("expired_key")
    if len(self._remembered) >= _MOST_REMEMBERED:
      self._remembered = {}
    self._remembered[digest] = found, self._clock() + REMEMBERED_S
    return found

  def create(
    self,
    *,
    label: str,
    scopes: Iterable[str],
    expires_s: float | None = None,
    requests_per_hour: int | None = None,
  ) -> tuple[str, KeyInfo]:
    """Makes a key; returns it, which nobody can do again, and its facts.

    Args:
      label: whose it is.
      scopes: of SCOPES, at least one.
      expires_s: how long it holds, in seconds from now; None for ever.
      requests_per_hour: None takes the service's.

    Raises:
      ValueError: a scope that there is not, or a limit or time that is not positive.
    """
    scopes = frozenset(scopes)
    if not scopes or scopes - set(SCOPES):
      raise ValueError(f"Scopes are {', '.join(SCOPES)}; got {', '.join(sorted(scopes)) or 'none'}.")
    if requests_per_hour is not None and requests_per_hour < 1:
      raise ValueError(f"Requests an hour must be 1 or more, got {requests_per_hour}.")
    if expires_s is not None and expires_s <= 0:
      raise ValueError("A key must hold for some time; leave the end out for one that holds for ever.")
    if len(label) > 200:
      raise ValueError(f"A label has 200 characters at most, got {len(label)}.")
    now = self._clock()
    key_id = "".join(secrets.choice(_ALPHABET) for _ in range(_ID_LENGTH))
    key = f"{PREFIX}_{key_id}_{secrets.token_urlsafe(32)}"
    info = KeyInfo(
      key_id,
      scopes,
      label,
      created=now,
      expires=None if expires_s is None else now + expires_s,
      requests_per_hour=requests_per_hour,
    )
    row = dataclasses.asdict(info) | {"scopes": ",".join(sorted(scopes)), "digest": self._digest(key)}
    with databases.writing(self._database) as connection:
      connection.execute(sa.insert(KEYS), row)
    return key, info

  def all(self) -> list[KeyInfo]:
    """All keys of the database, the oldest first."""
    with self._database.connect() as connection:
      return [_info(row) for row in connection.execute(sa.select(KEYS).order_by(KEYS.c.created, KEYS.c.id))]

  def revoke(self, key_id: str) -> None:
    """Ends a key at once.

    Raises:
      ValueError: there is none of this id, or it was revoked before.
    """
    with databases.writing(self._database) as connection:
      changed = connection.execute(
        sa.update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked.is_(None)).values(revoked=self._clock())
      )
      if not changed.rowcount:
        raise ValueError(f"There is no key {key_id} that could be revoked; `keys list` shows all.")
    self._remembered = {}

  def _digest(self, key: str) -> bytes:
    return hmac.digest(self._secret, key.encode(errors="surrogateescape"), "sha256")

  def _row(self, key_id: str):
    with self._database.connect() as connection:
      return connection.execute(_BY_ID, {"key_id": key_id}).one()


def _info(row) -> KeyInfo:
  facts = {field.name: getattr(row, field.name) for field in dataclasses.fields(KeyInfo)}
  return KeyInfo(**facts | {"scopes": frozenset((row.scopes or "").split(","))})
