"""What is missing on this machine before the evidence can be measured?"""

from __future__ import annotations

import importlib.util

from l0runtime.machine import nvidia_gpus
from l0runtime.session.devices import Device, library_problem, preload_gpu_libraries

CUDA = "13"


def missing_pieces() -> list[str]:
    """One line for each missing piece: what was found, and what to do; empty where all is there."""
    missing = []
    if not nvidia_gpus():
        missing.append("no NVIDIA GPU: the driver shows none. Run this on a machine with one.")
    if importlib.util.find_spec("torch") is None:
        missing.append(f"no torch. Install a build of torch for CUDA {CUDA}.")
    else:
        import torch

        build = torch.version.cuda
        if build is None or build.split(".")[0] != CUDA:
            found = "for the CPU only" if build is None else f"for CUDA {build}"
            missing.append(f"torch {torch.__version__} is built {found}. Install a build for CUDA {CUDA}.")
        elif not torch.cuda.is_available():
            missing.append("torch sees no CUDA device. Check the driver with nvidia-smi.")
    missing += [
        f"no {package}, which holds networks to measure. pip install {package}"
        for package in ("torchvision", "transformers")
        if importlib.util.find_spec(package) is None
    ]
    if importlib.util.find_spec("onnxruntime") is None:
        missing.append("no onnxruntime. pip install onnxruntime-gpu")
        return missing
    preload_gpu_libraries()
    problem = library_problem(Device("cuda"))
    if problem is not None:
        missing.append(f"onnxruntime cannot load CUDA ({problem}). pip install 'onnxruntime-gpu[cuda,cudnn]'")
    return missing
