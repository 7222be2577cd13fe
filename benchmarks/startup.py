"""From the start of a process to the first trained step, with compiled programs cached.

Both sides are small scripts that print a line after their first step; the clock runs in the parent.
This library's switches jax's compilation cache on as the experiments do, and runs once before.
The scripts are this file, too:

  python benchmarks/startup.py unroll mlp /tmp/cache
  python benchmarks/startup.py torch mlp
"""

import statistics
import subprocess
import sys
import tempfile
import time


def first_step(settings, *, case: str):
    """Seconds from the start of a script to its first trained step."""
    import peers
    from timing import turn_about
    from work import DifferentWorkError, Outcome

    peers.setups(settings, images=False)  # is there a PyTorch for this device?
    sizes, seconds = {}, []

    def turn(side: str, *arguments: str) -> float:
        sizes[side], passed = _time_script(side, case, *arguments)
        return passed

    with tempfile.TemporaryDirectory() as cache:

        def ours() -> float:
            seconds.append(turn("unroll", cache))
            return seconds[-1]

        ours_counted, theirs = turn_about(ours, lambda: turn("torch"), settings)
    if sizes["unroll"] != sizes["torch"]:
        raise DifferentWorkError(f"the networks differ in size: {sizes}")
    check = f"{sizes['torch']} parameters on both sides, weights of their own"
    # The first turn of all filled the cache; what it took longer is compilation.
    compilation = max(seconds[0] - statistics.median(ours_counted), 0.0)
    return Outcome(ours_counted, theirs, check, "default threads", compilation)


def _time_script(*arguments: str) -> tuple[int, float]:
    """The number of parameters that a script prints after its first step, and when it does."""
    begin = time.perf_counter()
    command = [sys.executable, __file__, *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        seconds = time.perf_counter() - begin
        process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    return int(line), seconds


def _unroll(case: str, cache: str) -> int:
    import jax

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    import numpy as np

    import unroll

    if case == "mlp":
        data, _ = unroll.data.load("digits")
        model, batch = unroll.models.build("mlp", num_classes=10), 32
    else:
        inputs, labels = _images()
        data = unroll.data.Dataset("random", inputs, labels, 10)
        model, batch = unroll.models.build("cnn", num_classes=10), 64
    schedule = np.arange(batch, dtype=np.int32).reshape(1, batch)
    run = unroll.train(unroll.TrainSpec(model), data, schedule)
    return unroll.models.parameter_count(run.state.params)


def _torch(case: str) -> int:
    import numpy as np
    import peers
    import torch

    if case == "mlp":
        from sklearn.datasets import load_digits

        inputs, labels = load_digits(return_X_y=True)
        net, inputs, batch = peers.mlp(), torch.from_numpy(inputs.astype(np.float32)), 32
    else:
        inputs, labels = _images()
        net, batch = peers.small_cnn(), 64
        inputs = torch.from_numpy(inputs).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(labels.astype(np.int64))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net, inputs, labels = net.to(device), inputs.to(device), labels.to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    torch.nn.functional.cross_entropy(net(inputs[:batch]), labels[:batch]).backward()
    optimizer.step()
    float(next(net.parameters()).detach().sum())  # waits for the device
    return peers.parameter_count(net)


def _images():
    import numpy as np

    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(256, 32, 32, 3)).astype(np.float32)
    return inputs, rng.integers(0, 10, len(inputs))


if __name__ == "__main__":
    side, *rest = sys.argv[1:]
    print({"unroll": _unroll, "torch": _torch}[side](*rest), flush=True)
