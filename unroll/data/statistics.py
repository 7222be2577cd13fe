"""Published per-channel mean and standard deviation, on the pixel scale [0, 1].

They were computed by others over the full original training sets. They are fixed constants here:
statistics of the rows at hand would depend on the forget set, and a retrained model would have to
be normalised differently.
"""

from __future__ import annotations

PUBLISHED_STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "mnist": ((0.1307,), (0.3081,)),
    "tiny_imagenet": ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)),
}
"""(mean, std) by data set name."""


def published_statistics(
    name: str,
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Returns (mean, std) of a known image data set, or (None, None)."""
    return PUBLISHED_STATISTICS.get(name, (None, None))
