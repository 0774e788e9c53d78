"""Which devices a training would use, told without starting it."""

from lightning.pytorch.accelerators import CUDAAccelerator

from mmfusion.training.hardware import Hardware


def on_cuda(hardware: Hardware) -> bool:
    """Whether Lightning trains on CUDA devices."""
    return hardware.accelerator in ("auto", "gpu", "cuda") and CUDAAccelerator.is_available()


def local_devices(hardware: Hardware) -> int:
    """Devices of a node; a negative number asks for all."""
    if hardware.devices > 0:
        return hardware.devices
    return int(CUDAAccelerator.auto_device_count()) if on_cuda(hardware) else 1
