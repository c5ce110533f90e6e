"""How a service is set up: one frozen object, of flags and the environment; a wrong value is a sentence."""

import dataclasses
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

MEGABYTE = 1_000_000
KINDS = ("video", "image", "audio")
# 128 bits and more: 32 characters of hexadecimal digits or base64.
SHORTEST_SECRET, FEWEST_SYMBOLS = 32, 8
MAKE_ONE = "make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
_LONGEST_SECRET_FILE = 4096


def _about(
  text: str, env: str | None = None, *, least: float | None = None, secret: bool = False, blank: bool = False
) -> dict:
  """Of a field of Settings its help, its environment variable (DEEPSCAN_NAME if None) and its least value;
  whether it may stand in a file, for nobody else is to see it; whether an empty one is as good as none."""
  return {"help": text, "env": env, "least": least, "secret": secret, "blank": blank}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The settings of one service; `read` makes them of flags and environment variables.

  Raises:
    ValueError: a value that cannot be used; one sentence that says which and what to do.
  """

  host: str = dataclasses.field(
    default="127.0.0.1", metadata=_about("Address to listen on; 0.0.0.0 is all there are.", "HOST")
  )
  port: int = dataclasses.field(default=5000, metadata=_about("Port to listen on.", "PORT", least=0))
  models: tuple[Path, ...] = dataclasses.field(
    default=(),
    metadata=_about(
      "Checkpoint folders, separated by commas, the default first; none: that of the package.", "MODEL_PATH"
    ),
  )
  secret_key: str = dataclasses.field(
    default=None,
    repr=False,
    metadata=_about(
      "Secret that keys are hashed with; as a flag it is visible to others on this machine.",
      "SECRET_KEY",
      secret=True,
    ),
  )
  api_key: str | None = dataclasses.field(
    default=None,
    repr=False,
    metadata=_about("A key that may detect and run batches; may be left out.", "API_KEY", secret=True),
  )
  metrics_key: str | None = dataclasses.field(
    default=None,
    repr=False,
    metadata=_about("A key that may read /metrics and nothing else.", "METRICS_KEY", secret=True),
  )
  database_url: str = dataclasses.field(
    default="",
    repr=False,
    metadata=_about(
      "SQLAlchemy URL of the database; without it a SQLite file in data_dir.",
      "DATABASE_URL",
      secret=True,
      blank=True,
    ),
  )
  data_dir: Path = dataclasses.field(
    default=None,
    metadata=_about("Folder of the service's own files (default: deepscan_jax in the user's data folder)."),
  )
  redis_url: str | None = dataclasses.field(
    default=None,
    repr=False,
    metadata=_about(
      "Where several replicas count requests together, such as redis://host:6379/0.",
      "REDIS_URL",
      secret=True,
      blank=True,
    ),
  )
  roots: tuple[Path, ...] = dataclasses.field(
    default=(), metadata=_about("Folders that batch jobs may read, with commas between; none: no folder.")
  )
  batch_workers: int = dataclasses.field(
    default=1, metadata=_about("Files of jobs that are judged at once.", least=1)
  )
  batch_files: int = dataclasses.field(default=100_000, metadata=_about("Most files of a job.", least=1))
  jobs_per_key: int = dataclasses.field(
    default=20, metadata=_about("Jobs of a key that may be under way at once.", least=1)
  )
  jobs_kept_h: float = dataclasses.field(
    default=168.0, metadata=_about("Hours that jobs are kept after their end.", least=0)
  )
  webhook_hosts: str = dataclasses.field(
    default="",
    metadata=_about(
      "Hosts (or HOST:PORT), with commas between, that webhooks may call by http and at private addresses."
    ),
  )
  temp_dir: Path = dataclasses.field(
    default=None,
    metadata=_about("Folder in which received files lie until they are answered (default: TMPDIR or /tmp)."),
  )
  keep: Path | None = dataclasses.field(
    default=None,
    metadata=_about("Keep every received file in this folder, named by its hash; without it none is kept."),
  )
  video_bytes: int = dataclasses.field(
    default=500 * MEGABYTE, metadata=_about("Largest video, in bytes.", least=1)
  )
  image_bytes: int = dataclasses.field(
    default=20 * MEGABYTE, metadata=_about("Largest picture, in bytes.", least=1)
  )
  audio_bytes: int = dataclasses.field(
    default=100 * MEGABYTE, metadata=_about("Largest sound file, in bytes.", least=1)
  )
  max_frames: int = dataclasses.field(
    default=256, metadata=_about("Most frames of a video that a request may ask to be looked at.", least=1)
  )
  requests_per_hour: int = dataclasses.field(
    default=100, metadata=_about("Requests an hour and key, where a key says nothing else.", least=1)
  )
  reads_per_hour: int = dataclasses.field(
    default=3600,
    metadata=_about("Requests an hour and key of those that cost nothing, such as a job's state.", least=1),
  )
  failed_auth_per_hour: int = dataclasses.field(
    default=60,
    metadata=_about(
      "Wrong keys an hour from one address; then it has to wait, with a right one too.", least=1
    ),
  )
  workers: int = dataclasses.field(
    default=os.cpu_count() or 1, metadata=_about("Files that are decoded at once.", least=1)
  )
  queue: int = dataclasses.field(
    default=64,
    metadata=_about("Files that are received, waiting or judged at once; more are sent away.", least=1),
  )
  queue_per_key: int = dataclasses.field(default=32, metadata=_about("Likewise of one key.", least=1))
  upload_idle_s: float = dataclasses.field(
    default=30.0, metadata=_about("An upload that stands still for so many seconds ends.", least=0.01)
  )
  upload_s: float = dataclasses.field(
    default=900.0, metadata=_about("An upload that takes so many seconds ends.", least=0.01)
  )
  results_kept_h: float = dataclasses.field(
    default=24.0,
    metadata=_about(
      "Hours that answers are kept, for the same file again and for feedback; 0 keeps none.", least=0
    ),
  )
  results_bytes: int = dataclasses.field(
    default=1000 * MEGABYTE, metadata=_about("Most bytes that answers take; the oldest go first.", least=0)
  )
  shared_results: bool = dataclasses.field(
    default=False,
    metadata=_about(
      "Answer a file from another key's results too; a key can then learn what others have sent."
    ),
  )
  live_connections: int = dataclasses.field(
    default=8, metadata=_about("Streams that are watched at once, /api/v1/live.", least=0)
  )
  live_per_key: int = dataclasses.field(default=2, metadata=_about("Likewise of one key.", least=0))
  live_bytes_per_s: int = dataclasses.field(
    default=2 * MEGABYTE, metadata=_about("Bytes a second that a stream may send.", least=1)
  )
  live_s: float = dataclasses.field(
    default=3600.0, metadata=_about("Seconds that a stream may last.", least=0.01)
  )
  live_idle_s: float = dataclasses.field(
    default=30.0, metadata=_about("A stream of which nothing comes for so many seconds ends.", least=0.01)
  )
  live_delay_s: float = dataclasses.field(
    default=5.0, metadata=_about("Windows that could only be told later than this are dropped.", least=0.01)
  )
  live_windows_per_request: int = dataclasses.field(
    default=30, metadata=_about("Windows of a stream that count as one request of its key.", least=1)
  )
  live_origins: str = dataclasses.field(
    default="",
    metadata=_about("Other sites whose pages may open streams, such as https://example.org, with commas."),
  )
  connections: int = dataclasses.field(
    default=512, metadata=_about("Open connections; more are told to come again.", least=1)
  )
  drain_delay_s: float = dataclasses.field(
    default=0.0,
    metadata=_about("After SIGTERM, go on accepting for so many seconds while /readyz says no.", least=0),
  )
  drain_s: float = dataclasses.field(
    default=60.0, metadata=_about("Then wait so many seconds for the requests under way.", least=0)
  )
  forwarded_allow_ips: str = dataclasses.field(
    default="",
    metadata=_about("Addresses of proxies, separated by commas, whose X-Forwarded-For is believed."),
  )
  ssl_certfile: Path | None = dataclasses.field(
    default=None, metadata=_about("Certificate chain (PEM); with ssl_keyfile it makes this HTTPS.")
  )
  ssl_keyfile: Path | None = dataclasses.field(
    default=None, metadata=_about("Private key (PEM) of the certificate.")
  )

  def __post_init__(self):
    for field in dataclasses.fields(self):
      least, value = field.metadata["least"], getattr(self, field.name)
      if least is not None and not value >= least:
        raise ValueError(f"{_name(field)} must be {least:g} or more, got {value:g}.")
    if self.port > 65535:
      raise ValueError(f"PORT must be 0 to 65535, got {self.port}.")
    if not self.secret_key:
      raise ValueError(f"SECRET_KEY is not set; {MAKE_ONE}")
    given = {name: getattr(self, name.lower()) for name in ("SECRET_KEY", "API_KEY", "METRICS_KEY")}
    for name, value in given.items():
      _check_secret(name, value)
    told = [value for value in given.values() if value is not None]
    if len(set(told)) < len(told):
      raise ValueError(f"SECRET_KEY, API_KEY and METRICS_KEY must differ from each other; {MAKE_ONE}")
    data_home = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    data_dir = Path(self.data_dir or Path(data_home) / "deepscan_jax")
    object.__setattr__(self, "data_dir", data_dir)
    if not self.database_url:
      object.__setattr__(self, "database_url", f"sqlite:///{data_dir.absolute() / 'service.sqlite3'}")
    object.__setattr__(self, "temp_dir", Path(self.temp_dir or os.environ.get("TMPDIR") or "/tmp"))
    if not self.temp_dir.is_dir():
      raise ValueError(f"The temporary folder {self.temp_dir} is not there; make it, or name another.")
    for root in self.roots:
      if not root.is_dir():
        raise ValueError(f"The batch folder {root} is not there; make it, or leave it out of the roots.")
    if self.queue_per_key > self.queue:
      object.__setattr__(self, "queue_per_key", self.queue)
    self._check_tls()

  def _check_tls(self) -> None:
    files = {"ssl_certfile": self.ssl_certfile, "ssl_keyfile": self.ssl_keyfile}
    missing = [name for name, path in files.items() if path is None]
    if len(missing) == 1:
      raise ValueError(f"HTTPS needs both ssl_certfile and ssl_keyfile; {missing[0]} is not set.")
    if missing:
      return
    for name, path in files.items():
      if not path.is_file():
        raise ValueError(f"There is no file {path} for {name}; check the path.")
    try:
      ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.ssl_certfile, self.ssl_keyfile)
    except (ssl.SSLError, OSError) as error:
      reason = getattr(error, "reason", None) or error.strerror
      raise ValueError(
        f"{self.ssl_certfile} and {self.ssl_keyfile} are not a certificate and its key ({reason})."
      ) from error

  @property
  def tls(self) -> bool:
    """Whether this is HTTPS."""
    return self.ssl_certfile is not None

  def most_bytes(self, kind: str) -> int:
    """The largest file of a kind, "video", "image" or "audio"."""
    return getattr(self, f"{kind}_bytes")

  @property
  def largest_bytes(self) -> int:
    """The largest file of all kinds."""
    return max(map(self.most_bytes, KINDS))

  @classmethod
  def read(cls, flags: Mapping[str, object], environ: Mapping[str, str]) -> "Settings":
    """Settings of flags, then of the environment, then of the defaults.

    Args:
      flags: by field; None where a flag was not given. Those of secrets may also end in _file.
      environ: the environment. A secret may stand in a file named by NAME_FILE.

    Raises:
      ValueError: a value that cannot be used.
    """
    values = {}
    for field in dataclasses.fields(cls):
      given = flags.get(field.name)
      if field.metadata.get("secret"):
        given = _one_secret(
          _name(field),
          {
            f"--{field.name}": (given, False),
            f"--{field.name}_file": (flags.get(f"{field.name}_file"), True),
            _name(field): (environ.get(_name(field)), False),
            f"{_name(field)}_FILE": (environ.get(f"{_name(field)}_FILE"), True),
          },
        )
        # Of a password the service says that it is empty.
        given = None if field.metadata["blank"] and given == "" else given
      elif given is None and environ.get(_name(field)):
        given = environ[_name(field)]
      if given is not None:
        values[field.name] = _converted(field, given)
    return cls(**values)


def _name(field: dataclasses.Field) -> str:
  return field.metadata["env"] or f"DEEPSCAN_{field.name.upper()}"


def environment_names() -> dict[str, str]:
  """Field to the environment variable that sets it."""
  return {field.name: _name(field) for field in dataclasses.fields(Settings)}


def _check_secret(name: str, value: str | None) -> None:
  if value is None:
    return
  if len(value) < SHORTEST_SECRET or len(set(value)) < FEWEST_SYMBOLS:
    raise ValueError(
      f"{name} is too weak: it needs {SHORTEST_SECRET} characters or more, {FEWEST_SYMBOLS} of them "
      f"different; {MAKE_ONE}"
    )
  if not value.isascii() or not value.isprintable() or " " in value:
    raise ValueError(f"{name} may hold letters, digits and signs of ASCII only; {MAKE_ONE}")


def _one_secret(name: str, sources: Mapping[str, tuple[str | None, bool]]) -> str | None:
  """The secret, of the first source that has one: (value or file, whether it is a file)."""
  for source, (value, is_file) in sources.items():
    if value is None:
      continue
    if not is_file:
      return value
    try:
      with open(value, encoding="utf-8") as file:
        return file.read(_LONGEST_SECRET_FILE).strip()
    except (OSError, UnicodeDecodeError) as error:
      reason = getattr(error, "strerror", None) or "it is not text"
      raise ValueError(f"{name} cannot be read from {value}, which {source} names: {reason}.") from error
  return None


def _converted(field: dataclasses.Field, value: object) -> object:
  kind = str(field.type)
  if not isinstance(value, str):
    return value
  try:
    if kind.startswith("tuple"):
      return tuple(Path(part.strip()) for part in value.split(",") if part.strip())
    if "Path" in kind:
      return Path(value)
    if field.type is bool:
      return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[value.lower()]
    if field.type in (int, float):
      return field.type(value)
  except (KeyError, ValueError) as error:
    wanted = {bool: "true or false", int: "a whole number", float: "a number"}[field.type]
    raise ValueError(f"{_name(field)} must be {wanted}, got {value!r}.") from error
  return value
