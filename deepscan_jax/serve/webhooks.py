"""Tells a job's owner that it has ended, by an HTTP request to an address that the owner gave.

The address comes from a client, so it may point at what only this server can reach. Unless the operator lists
a host, its address has to be https, and every address that the host's name stands for has to be a public one;
the request then goes to one of those that were looked at, whatever the name stands for a moment later.
Redirects are not followed, the answer's body is not read, and proxies of the environment are not used.

The request is signed:

    X-Deepscan-Signature: t=1732830000,v1=5257a869e7...

v1 is the HMAC-SHA256, in hexadecimal digits, of `t`, a full stop and the body, under the secret that the
answer to the job's request has told. Who compares it, and refuses a `t` that is long
ago, knows that it was us, now.
X-Deepscan-Delivery is the job's id, the same however often it is told.
"""

import dataclasses
import hmac
import http.client
import ipaddress
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from deepscan_jax.version import __version__

SIGNATURE = "X-Deepscan-Signature"
# Seconds after each failure in turn; then it is given up.
PAUSES_S = (10.0, 60.0, 300.0, 900.0, 3600.0, 3600.0, 3600.0)
LONGEST_URL = 2000
_TIMEOUT_S = 10.0
# A receiver that sends its answer byte by byte.
_WHOLE_S = 30.0
# Public by their form, but they may lead to any address behind a gateway.
_GATEWAYS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


class RefusedError(ValueError):
  """An address that no webhook may call; the message says why."""


class UndeliveredError(Exception):
  """A webhook could not be delivered; `for_good` where it need not be tried again."""

  def __init__(self, message: str, *, for_good: bool = False):
    super().__init__(message)
    self.for_good = for_good


@dataclasses.dataclass(frozen=True)
class Target:
  """An address taken apart: whether it is https, host, port, and what comes behind."""

  tls: bool
  host: str
  port: int
  path: str


def target(url: str, *, allowed: Sequence[str] = ()) -> Target:
  """Takes an address apart, and sees whether it may be called as far as its text tells.

  Args:
    url: as a client gave it.
    allowed: "host" or "host:port" of what may be called without https and at addresses that are not public.

  Raises:
    RefusedError: it may not.
  """
  if len(url) > LONGEST_URL or not re.fullmatch(r"[!-~]+", url):
    raise RefusedError(f"A webhook is an https address of at most {LONGEST_URL} characters of ASCII.")
  try:
    parts = urlsplit(url)
    port = parts.port
  except ValueError as error:
    raise RefusedError("The webhook is no address.") from error
  host = (parts.hostname or "").rstrip(".")
  if parts.scheme not in ("http", "https") or not host:
    raise RefusedError("A webhook is an address such as https://example.org/hook.")
  if parts.username is not None or parts.password is not None or parts.fragment or "\\" in url:
    raise RefusedError("A webhook has no user, password, fragment or backslash in its address.")
  tls = parts.scheme == "https"
  found = Target(
    tls, host, port or (443 if tls else 80), (parts.path or "/") + (parts.query and f"?{parts.query}")
  )
  if not tls and not is_allowed(found, allowed):
    raise RefusedError("A webhook has to be https.")
  if not is_allowed(found, allowed):
    try:
      address = ipaddress.ip_address(host)
    except ValueError:
      return found  # A name; it is asked for when it is called.
    if not is_public(address):
      raise RefusedError("A webhook may not call an address that is not public.")
  return found


def is_allowed(found: Target, allowed: Sequence[str]) -> bool:
  """Whether the operator has listed this host."""
  return found.host in allowed or f"{found.host}:{found.port}" in allowed


def is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
  """Whether an address is one of the public internet, and of one machine."""
  mapped = getattr(address, "ipv4_mapped", None)
  if mapped is not None:
    return is_public(mapped)
  if any(address in network for network in _GATEWAYS if network.version == address.version):
    return False
  return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def secret_of(secret_key: str, owner: str) -> str:
  """The secret that a key's webhooks are signed with, 64 hexadecimal digits."""
  return hmac.digest(secret_key.encode(), f"deepscan webhook\0{owner}".encode(), "sha256").hex()


def signature(secret: str, *, timestamp: int, body: bytes) -> str:
  """The value of the header SIGNATURE."""
  digest = hmac.digest(secret.encode(), f"{timestamp}.".encode() + body, "sha256").hex()
  return f"t={timestamp},v1={digest}"


def deliver(
  url: str,
  message: Mapping,
  *,
  secret: str,
  delivery: str,
  allowed: Sequence[str] = (),
  timeout_s: float = _TIMEOUT_S,
  resolve: Callable = socket.getaddrinfo,
  tls: ssl.SSLContext | None = None,
) -> None:
  """Sends one message, once.

  Args:
    url: where to.
    message: JSON-able.
    secret: of `secret_of`.
    delivery: names it; the same each time that it is sent.
    allowed: as of `target`.
    timeout_s: for each step.
    resolve: as socket.getaddrinfo.
    tls: None trusts what the system does.

  Raises:
    RefusedError: it may not be called.
    UndeliveredError: nobody has taken it.
  """
  found = target(url, allowed=allowed)
  body = json.dumps(message, sort_keys=True, allow_nan=False).encode()
  try:
    addresses = _addresses(found, allowed, resolve)
    connection = _Pinned(found, addresses, timeout_s, tls or ssl.create_default_context())
  except OSError as error:
    raise UndeliveredError(f"The host {found.host} is not known.") from error
  headers = {
    "Content-Type": "application/json",
    "User-Agent": f"deepscan_jax/{__version__}",
    SIGNATURE: signature(secret, timestamp=int(time.time()), body=body),
    "X-Deepscan-Delivery": delivery,
    "Connection": "close",
  }
  # Timeouts are for single reads; this is for all of them together.
  limit = threading.Timer(_WHOLE_S, connection.break_off)
  limit.daemon = True
  limit.start()
  try:
    connection.request("POST", found.path, body=body, headers=headers)
    status = connection.getresponse().status
  except (OSError, http.client.HTTPException) as error:
    raise UndeliveredError(f"{found.host} does not answer ({type(error).__name__}).") from error
  finally:
    limit.cancel()
    connection.close()
  if not 200 <= status < 300:
    raise UndeliveredError(f"{found.host} answered with {status}.", for_good=status == 410)


def _addresses(found: Target, allowed: Sequence[str], resolve: Callable) -> list[str]:
  addresses = [info[4][0] for info in resolve(found.host, found.port, type=socket.SOCK_STREAM)]
  if not addresses:
    raise OSError("no addresses")
  if not is_allowed(found, allowed):
    for address in addresses:
      # A zone, as in fe80::1%eth0, is part of what is local.
      if not is_public(ipaddress.ip_address(address.partition("%")[0])):
        raise RefusedError("A webhook may not call an address that is not public.")
  return addresses


class _Pinned(http.client.HTTPConnection):
  """A connection to one of the addresses that were looked at."""

  def __init__(self, found: Target, addresses: Sequence[str], timeout_s: float, tls: ssl.SSLContext):
    super().__init__(found.host, found.port, timeout=timeout_s)
    self._found, self._addresses, self._tls = found, addresses, tls

  def connect(self) -> None:
    """Connects to the first address that takes it."""
    for number, address in enumerate(self._addresses, start=1):
      try:
        self.sock = socket.create_connection((address, self._found.port), self.timeout)
        break
      except OSError:
        if number == len(self._addresses):
          raise
    if self._found.tls:
      self.sock = self._tls.wrap_socket(self.sock, server_hostname=self._found.host)

  def break_off(self) -> None:
    """Ends whatever is being waited for."""
    sock = self.sock
    if sock is not None:
      try:
        sock.shutdown(socket.SHUT_RDWR)
      except OSError:
        self.close()
