"""What the figures were taken on."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax


def describe() -> dict[str, Any]:
    """Cores, models of processor and device, versions, and how busy the machine is."""
    return {
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "cpu": _processor(),
        "device": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("jax", "torch", "pyhessian")},
        "load": round(os.getloadavg()[0], 2),
    }


def in_words(machine: dict[str, Any]) -> str:
    """One line about a machine."""
    device = machine["device_kind"] if machine["device"] != "cpu" else "no accelerator"
    return (
        f"{machine['cores']} cores of {machine['cpu']}, {device}, jax {machine['jax']}, "
        f"torch {machine['torch']}, Python {machine['python']}"
    )


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two rows were taken on the same machine with the same versions."""
    return _fixed(one) == _fixed(other)


def _fixed(machine: dict[str, Any]) -> dict[str, Any]:
    """Without what changes from row to row: the load, and virtual devices of one processor."""
    devices = machine["devices"] if machine["device"] != "cpu" else None
    return {**machine, "load": None, "devices": devices}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
