"""Where arrays live: NumPy on a CPU, CuPy on a GPU. The only file that imports cupy."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import numpy as np

from .kernel import Array

try:
    import cupy
    import cupyx
except ImportError:
    cupy = None


def array_module(a: Array) -> ModuleType:
    """The module whose functions take `a`: numpy, or cupy for an array on a GPU."""
    return np if isinstance(a, np.ndarray) or cupy is None else cupy.get_array_module(a)


def erf(a: Array) -> Array:
    """The error function, element by element (NumPy has none; this one is for small arrays)."""
    if isinstance(a, np.ndarray):
        return np.vectorize(math.erf, otypes=[a.dtype])(a)
    from cupyx.scipy.special import erf as device_erf

    return device_erf(a)


class DeviceUnavailable(RuntimeError):
    """The device that was asked for is not here; the message says what is missing."""


class Event:
    """A point in a device's stream of work; on a CPU the work is done when the call returns."""

    @property
    def done(self) -> bool:
        """Whether the device has passed it."""
        return True

    def wait(self) -> None:
        """Return when the device has passed it."""


class Device:
    """Where a rank's arrays live and its kernels run. This one is the CPU: everything is host memory.

    `travelling` and `staging` give the host arrays through which gradients leave and samples enter; here they
    are the arrays themselves, and the copies between the two are none.
    """

    asynchronous = False

    @property
    def name(self) -> str:
        """For people."""
        return "cpu"

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A new array of zeros on the device, aligned to 64 bytes."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        raw = np.zeros(size + 64, np.uint8)
        start = -raw.ctypes.data % 64
        return raw[start : start + size].view(dtype).reshape(shape)

    def to_device(self, array: np.ndarray) -> Array:
        """A copy of a host array on the device."""
        copy = self.zeros(array.shape, str(array.dtype))
        copy[...] = array
        return copy

    def to_host(self, array: Array) -> np.ndarray:
        """A device array's content on the host, when all work submitted so far is done."""
        host: np.ndarray = array
        return host

    def travelling(self, array: Array) -> np.ndarray:
        """The host array through which a device array leaves: page-locked where that is faster."""
        return self.to_host(array)

    def staging(self, array: Array) -> np.ndarray:
        """The host array through which a device array is filled."""
        return self.to_host(array)

    def copy_in(self, host: np.ndarray, array: Array) -> None:
        """Bring `host` (of `staging` or `travelling`) to the device, in stream order."""

    def copy_out(self, array: Array, host: np.ndarray) -> None:
        """Bring a device array to `host`, in stream order; read it behind a `record()`ed event."""

    def record(self) -> Event | None:
        """An event behind everything submitted so far; None where that is done already."""
        return None

    def activate(self) -> None:
        """Make the calling thread submit to this device; a lane's thread calls it first."""


class _CudaEvent(Event):
    def __init__(self, stream: Any) -> None:
        self._event = cupy.cuda.Event(disable_timing=True)
        self._event.record(stream)

    @property
    def done(self) -> bool:
        return bool(self._event.done)

    def wait(self) -> None:
        self._event.synchronize()


class Cuda(Device):
    """One GPU and one stream on it; what the lane submits runs in order, later than the call."""

    asynchronous = True

    def __init__(self, index: int) -> None:
        self._device = cupy.cuda.Device(index)
        self._device.use()
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._title = cupy.cuda.runtime.getDeviceProperties(index)["name"].decode()
        self._index = index

    @property
    def name(self) -> str:
        """For people."""
        return f"cuda:{self._index} ({self._title})"

    def zeros(self, shape: tuple[int, ...], dtype: str) -> Array:
        """A new array of zeros in GPU memory."""
        with self._device, self._stream:
            return cupy.zeros(shape, dtype)

    def to_device(self, array: np.ndarray) -> Array:
        """A copy of a host array in GPU memory."""
        with self._device, self._stream:
            return cupy.asarray(array)

    def to_host(self, array: Array) -> np.ndarray:
        """A copy on the host; waits for the stream."""
        with self._device:
            host: np.ndarray = array.get(stream=self._stream)
        return host

    def travelling(self, array: Array) -> np.ndarray:
        """A page-locked host array of the same shape: copies then need no detour and no waiting."""
        host: np.ndarray = cupyx.zeros_pinned(array.shape, array.dtype)
        return host

    def staging(self, array: Array) -> np.ndarray:
        """A page-locked host array of the same shape."""
        return self.travelling(array)

    def copy_in(self, host: np.ndarray, array: Array) -> None:
        """Host to GPU, in stream order."""
        array.set(host, stream=self._stream)

    def copy_out(self, array: Array, host: np.ndarray) -> None:
        """GPU to host, in stream order."""
        array.get(stream=self._stream, out=host, blocking=False)

    def record(self) -> Event | None:
        """An event on the stream."""
        return _CudaEvent(self._stream)

    def activate(self) -> None:
        """Make this GPU and this stream the calling thread's."""
        self._device.use()
        self._stream.use()


def choose_device(name: str, node_rank: int) -> Device:
    """The device "cpu", "cuda" or "auto" (a GPU if there is one); ranks of a node take GPUs in turn."""
    if name == "cpu":
        return Device()
    if name not in ("cuda", "auto"):
        raise ValueError(f"unknown device {name!r}; there are cpu, cuda and auto")
    count, missing = _gpus()
    if count:
        return Cuda(node_rank % count)
    if name == "auto":
        return Device()
    raise DeviceUnavailable(f'device = "cuda", but {missing}; use device = "cpu" or "auto"')


def _gpus() -> tuple[int, str]:
    """How many GPUs CuPy can use, and if none, what is missing."""
    if cupy is None:
        return 0, "CuPy is not installed: pip install 'weft[cuda12]' or 'weft[cuda13]', as your driver needs"
    try:
        return int(cupy.cuda.runtime.getDeviceCount()), "CuPy finds no GPU"
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return 0, f"CuPy finds no usable GPU ({error})"
