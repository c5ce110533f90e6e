"""How tests have XLA compile: quickly rather than well. Imported before JAX, which reads the flags once.

Most of the processor time of the tests goes into programs that run a few times. What users get is compiled as
usual where a test starts a process with empty XLA_FLAGS.
"""

from importlib import metadata

# XLA builds a compiler of its own for each fusion, and by the older way one for all: for a network's gradient
# that takes a third less. A program that is divided among the processors takes more in all than in one piece,
# and here they all have work. An XLA that does not know a flag aborts: versions that were not tried get none.
TRIED = tuple(metadata.version("jaxlib").split(".")[:2]) in {("0", "10")}
FLAGS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1" if TRIED else ""

# For programs that run a few times on little: most of the compiler's time is spared, and what it makes is ten
# times as slow. The default model is ready in half the time so, and then takes a second for a picture.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
QUICK_FLAGS = f"{FLAGS} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def quick_jit(function, **options):
  """jax.jit, compiled quickly."""
  import jax

  return jax.jit(function, compiler_options=QUICK, **options)
