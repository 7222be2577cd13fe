"""The choice of XLA's own convolution on the CPU."""

import os

import jax
import jax.numpy as jnp
import jaxlib
import pytest

from unroll import compiler
from unroll.models.convolution import conv2d

MEASURED = jaxlib.__version__.startswith(compiler.MEASURED)


@pytest.fixture
def flags(monkeypatch):
    """Sets the flags of a process in which jax has not started, or has."""

    def set_flags(text, started=False):
        monkeypatch.setenv("XLA_FLAGS", text)
        monkeypatch.setattr(compiler, "_jax_has_started", lambda: started)

    return set_flags


@pytest.mark.skipif(not MEASURED, reason="another jaxlib than the one it was measured for")
def test_the_flag_is_appended_once(flags):
    flags("--xla_dump_to=x")
    assert compiler.choose_cpu_convolution()
    assert os.environ["XLA_FLAGS"] == f"--xla_dump_to=x {compiler.FLAG}={compiler.LIBRARY_FOR}"
    assert not compiler.choose_cpu_convolution()


def test_a_flag_of_the_user_stays(flags):
    flags(f"{compiler.FLAG}=")
    assert not compiler.choose_cpu_convolution()
    assert os.environ["XLA_FLAGS"] == f"{compiler.FLAG}="


def test_an_unknown_jaxlib_gets_no_flag(flags, monkeypatch):
    flags("")
    monkeypatch.setattr(compiler, "MEASURED", ("0.0.",))
    assert not compiler.choose_cpu_convolution()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.skipif(not MEASURED, reason="another jaxlib than the one it was measured for")
def test_says_so_if_jax_has_started(flags):
    flags("", started=True)
    with pytest.warns(UserWarning, match="import unroll first"):
        assert not compiler.choose_cpu_convolution()
    assert os.environ["XLA_FLAGS"] == ""


@pytest.mark.skipif(
    not MEASURED or jax.default_backend() != "cpu", reason="the choice concerns the CPU only"
)
def test_convolutions_run_without_ynnpack():
    x, kernel = jnp.ones((8, 16, 16, 32)), jnp.ones((3, 3, 32, 32))
    compiled = jax.jit(conv2d).lower(x, kernel).compile().as_text()
    assert "ynn_fusion" not in compiled
