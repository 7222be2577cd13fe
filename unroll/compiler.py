"""What XLA is told before it starts: which convolution the CPU runs.

From jaxlib 0.10 on, XLA:CPU hands float32 convolutions to YNNPACK. Inside a training step of ours
that library keeps to one thread unless the kernel is large (both of its channel counts near 128),
and its kernel gradients are slow, since it sees a convolution with a 32x32 window. XLA's older
convolution has neither flaw. Measured on 2 cores, AMD EPYC with AVX-512, float32, batch 64,
milliseconds, YNNPACK to XLA's own: forward 16x16, 32 to 32 channels 1.31 to 0.91; 32x32, 64 to 64
channels 24 to 14; kernel gradient 16x16, 128 to 128 channels 26 to 14; a whole step of ResNet-18,
width 64, 1178 to 880; of the small CNN 7.5 to 6.3. YNNPACK stays for matrix products and
reductions, where it is the faster one.

Design: one flag, appended to `XLA_FLAGS` when `unroll` is imported, which is part of the address of
every stored run. Rejected: `jax.jit(compiler_options=...)`, which jax refuses inside another jit.

A flag that is set already is left alone, and so is everything if the version of jaxlib is one for
which this was not measured, since XLA ends the process on a flag it does not know.
"""

from __future__ import annotations

import os
import warnings

import jax
import jaxlib

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
LIBRARY_FOR = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
MEASURED = ("0.10.",)


def choose_cpu_convolution() -> bool:
    """Asks for XLA's own convolution on the CPU; returns whether it did.

    Warns if jax has started already: it reads its flags once.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if FLAG in flags or not jaxlib.__version__.startswith(MEASURED):
        return False
    if _jax_has_started():
        if jax.default_backend() == "cpu":
            warnings.warn(
                "jax was used before unroll was imported, so convolutions run slower than they "
                "could; import unroll first",
                stacklevel=3,
            )
        return False
    os.environ["XLA_FLAGS"] = f"{flags} {FLAG}={LIBRARY_FOR}".strip()
    return True


def _jax_has_started() -> bool:
    """Whether a backend exists. jax has no public name for it, but its own `jax.distributed` asks
    in the same way."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()
