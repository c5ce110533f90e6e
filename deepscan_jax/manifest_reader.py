"""Reads the C2PA manifest of one open file, in a limited child process that provenance.py starts.

It needs the standard library and c2pa-python only, and is imported by its file name, as media_decoder.py is:
a manifest is as hostile as the file it stands in, and its reader is as large as a decoder.
"""

import json
import os
import resource
import signal
import sys

# https://cv.iptc.org/newscodes/digitalsourcetype: what a manifest may say that content is.
GENERATED = "trainedAlgorithmicMedia"
COMPOSITE = "compositeWithTrainedAlgorithmicMedia"
MEDIA_TYPES = (
  (0, b"\xff\xd8\xff", "image/jpeg"),
  (0, b"\x89PNG", "image/png"),
  (0, b"GIF8", "image/gif"),
  (8, b"WEBP", "image/webp"),
  (8, b"WAVE", "audio/wav"),
  (8, b"AVI ", "video/avi"),
  (4, b"ftyp", "video/mp4"),
  (0, b"ID3", "audio/mpeg"),
)
# The reader never goes to the network: a file must not choose whom this machine calls.
OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
# An edit's manifest names the one before it as its parent, and so on; so many generations are followed.
GENERATIONS = 16


def read_manifest(file: int) -> dict:
  """Returns what `summarise` makes of the manifest in an open file; {"state": "none"} if there is none.

  Args:
    file: descriptor of a regular file, open for reading.
  """
  import c2pa

  if not hasattr(c2pa, "Settings"):  # then there is no way to keep it off the network
    return {"state": "unread", "problems": ["c2pa-python is too old"]}
  head = os.pread(file, 16, 0)
  kind = next((kind for at, mark, kind in MEDIA_TYPES if head[at : at + len(mark)] == mark), None)
  if kind is None:
    return {"state": "unread", "problems": ["not a kind of file that holds manifests"]}
  with os.fdopen(os.dup(file), "rb") as stream:
    try:
      context = c2pa.Context(c2pa.Settings.from_dict(OFFLINE))
      reader = c2pa.Reader.try_create(kind, stream, context=context)
      return {"state": "none"} if reader is None else summarise(json.loads(reader.json()))
    except c2pa.C2paError as error:
      return {"state": "invalid", "problems": [str(error)]}


def summarise(store: dict) -> dict:
  """Returns {state, declares, signer, tool, problems} of a manifest store as c2pa-python's JSON holds it.

  state: "invalid" where the signature or a hash does not fit the file, "valid" where all fits, "trusted"
  where the signer is on the reader's trust list too. declares: "generated" or "composite", by the newest
  manifest or one that it names as its parent; None otherwise. problems: the codes of what failed.
  """
  manifests = store.get("manifests") or {}
  label = store.get("active_manifest")
  active = manifests.get(label) or {}
  problems = [str(status.get("code")) for status in store.get("validation_status") or []]
  state = str(store.get("validation_state") or ("invalid" if problems or not active else "valid")).lower()
  declares = None
  for _ in range(GENERATIONS):
    manifest = manifests.get(label) or {}
    declares = declares or _declaration(manifest)
    parents = [i for i in manifest.get("ingredients") or [] if i.get("relationship") == "parentOf"]
    label = parents[0].get("active_manifest") if parents else None
  signature = active.get("signature_info") or {}
  tools = [info.get("name") for info in active.get("claim_generator_info") or []]
  return {
    "state": state,
    "declares": declares,
    "signer": signature.get("issuer"),
    "tool": (tools or [active.get("claim_generator")])[0],
    "problems": problems,
  }


def _declaration(manifest: dict) -> str | None:
  kinds = [
    str(action.get("digitalSourceType")).rpartition("/")[2]
    for assertion in manifest.get("assertions") or []
    if str(assertion.get("label")).startswith("c2pa.actions")
    for action in (assertion.get("data") or {}).get("actions") or []
  ]
  return "generated" if GENERATED in kinds else "composite" if COMPOSITE in kinds else None


def run_child():
  """Reads in a process of its own, under limits that it sets itself before it looks at the file.

  The command line holds one JSON object (file, cpu_s, address_space_bytes, answer_bytes); the answer goes to
  standard output, which is a file that cannot grow beyond answer_bytes.
  """
  order = json.loads(sys.argv[1])
  for limit, value in (
    (resource.RLIMIT_AS, order["address_space_bytes"]),
    (resource.RLIMIT_CPU, order["cpu_s"]),
    (resource.RLIMIT_FSIZE, order["answer_bytes"]),
    (resource.RLIMIT_NOFILE, 64),
    (resource.RLIMIT_CORE, 0),
  ):
    hard = resource.getrlimit(limit)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(limit, (value, value))
  signal.signal(signal.SIGALRM, signal.SIG_DFL)
  signal.alarm(order["cpu_s"] * 4)  # should the parent die, this ends by itself
  sys.stdout.write(json.dumps(read_manifest(order["file"])))
  sys.stdout.flush()
  os._exit(0)  # nothing here needs tidying up, and the caller is waiting
