"""Asks a service whether it answers: python -m deepscan_jax.serve.health [URL]

For containers that have neither a shell nor curl. Without a URL it asks /readyz of the service of this
machine, at the PORT of the environment, by HTTPS where DEEPSCAN_SSL_CERTFILE is set. Exit code 0 where the
answer is 200, 1 otherwise, with a line on stderr that says why.
"""

import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping

WAIT_S = 5.0


def own_url(environ: Mapping[str, str]) -> str:
  """Where the service of this machine tells whether it is ready, as settings.py reads the environment."""
  scheme = "https" if environ.get("DEEPSCAN_SSL_CERTFILE") else "http"
  host = environ.get("HOST") or "127.0.0.1"
  # What stands for all addresses is none that can be called.
  host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
  host = f"[{host}]" if ":" in host else host
  return f"{scheme}://{host}:{environ.get('PORT') or 5000}/readyz"


def problem(url: str, *, wait_s: float = WAIT_S) -> str | None:
  """What is wrong with the answer at an address, in a sentence; None where it is 200."""
  # Nothing secret is sent, and the certificate is for the name that others know the service by.
  careless = ssl.create_default_context()
  careless.check_hostname, careless.verify_mode = False, ssl.CERT_NONE
  # Proxies of the environment are for others.
  opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=careless)
  )
  try:
    with opener.open(url, timeout=wait_s) as answer:
      return None if answer.status == 200 else f"{url} answers {answer.status}."
  except urllib.error.HTTPError as error:
    with error:
      return f"{url} answers {error.code}: {error.read(1000).decode('utf-8', 'replace')}"
  except (OSError, ValueError) as error:
    return f"{url} does not answer: {getattr(error, 'reason', None) or error}."


def main(arguments: list[str], environ: Mapping[str, str]) -> int:
  """Returns the exit code."""
  if len(arguments) > 1:
    print("Use: python -m deepscan_jax.serve.health [URL]", file=sys.stderr)
    return 2
  said = problem(arguments[0] if arguments else own_url(environ))
  if said:
    print(said, file=sys.stderr)
  return 1 if said else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:], os.environ))
